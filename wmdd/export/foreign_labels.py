"""Labels of other people's sets: indices, one-hot rows, probabilities or logits, told apart by what they are."""

from pathlib import Path
from typing import Literal, get_args

import numpy as np

from wmdd.base.errors import WmddError

LabelKind = Literal["index", "one-hot", "probabilities", "logits"]
KINDS: tuple[str, ...] = get_args(LabelKind)
CLOSE = 1e-3  # of a row's sum to 1; half-precision probabilities of 1,000 classes are within it
_ASK = "say which by label_kind: one-hot, probabilities or logits"


def kind_of(labels: np.ndarray, path: Path, stated: str = "auto") -> tuple[np.ndarray, LabelKind, list[str]]:
    """Return labels as int64 [N] or float32 [N, C], their kind, and what was guessed.

    One axis of whole numbers are indices. Rows are one-hot where each has one 1 and zeros, probabilities where none is
    negative and each sums to 1, and logits where some number is negative and rows have more than two values. Else they are
    ambiguous: rows that are not negative and sum to something else may be scores of anything, and rows of two values with
    negative ones are the centred one-hot rows of kernel methods (KIP, FRePo), which are no logits.

    Args:
        labels: [N], [N, 1] or [N, C].
        path: they are from, for messages.
        stated: the kind of rows where the user says it, else "auto".

    Raises:
        WmddError: they are NaN, ambiguous, or not of the kind that was stated.
    """
    if stated != "auto" and stated not in KINDS:
        raise WmddError(f"labels are not {stated!r}; name one of auto, {', '.join(KINDS)}")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind not in "iufb" or labels.ndim not in (1, 2):
        raise WmddError(
            f"the labels of {path} are {labels.dtype} {list(labels.shape)}; they must be [N] or [N, C] numbers"
        )
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        raise WmddError(
            f"the labels of {path} hold NaN or infinite numbers; get the set again, or use its images alone"
        )
    if labels.ndim == 1:
        return _indices(labels, path, stated)
    rows = labels.astype(np.float32)
    fitting = _fitting(rows)
    if stated == "auto":
        if len(fitting) != 1:
            sums = rows.sum(1)
            raise WmddError(
                f"the labels of {path} are {rows.min():g} to {rows.max():g} and their rows sum to {sums.min():.4g} to "
                f"{sums.max():.4g}: they may be one-hot, probabilities or logits; {_ASK}"
            )
        return rows, fitting[0], [f"The labels are rows of {rows.shape[1]} numbers, read as {fitting[0]}."]
    _check_stated(rows, stated, path)
    if stated == "one-hot":  # scaled and centred ones, too: the largest is the class
        rows = np.eye(rows.shape[1], dtype=np.float32)[rows.argmax(1)]
    return rows, stated, []  # type: ignore[return-value]


def _indices(labels: np.ndarray, path: Path, stated: str) -> tuple[np.ndarray, LabelKind, list[str]]:
    whole = labels.astype(np.int64)
    if stated not in ("auto", "index"):
        raise WmddError(f"the labels of {path} are one number an image, and so indices, not {stated}; set labels: auto")
    if not (whole == labels).all():
        raise WmddError(
            f"the labels of {path} are one number an image, but not whole ones; give indices or rows of C numbers"
        )
    if whole.min(initial=0) < 0:
        raise WmddError(f"the labels of {path} go down to {whole.min()}; indices count from 0")
    return whole, "index", [] if labels.dtype.kind in "iu" else ["The labels are whole numbers stored as fractions."]


def _fitting(rows: np.ndarray) -> list[LabelKind]:
    if ((rows == 0) | (rows == 1)).all() and (rows.sum(1) == 1).all():
        return ["one-hot"]
    if (rows >= 0).all() and (np.abs(rows.sum(1) - 1) < CLOSE).all():
        return ["probabilities"]
    ordered = np.sort(rows, 1)
    two_values = (ordered[:, -2] == ordered[:, 0]).all() and rows.shape[1] > 2
    return ["logits"] if (rows < 0).any() and not two_values else []


def _check_stated(rows: np.ndarray, stated: str, path: Path) -> None:
    if stated == "index":
        raise WmddError(f"the labels of {path} are rows of {rows.shape[1]} numbers, not indices; {_ASK}")
    if stated == "probabilities" and not ((rows >= 0).all() and (np.abs(rows.sum(1) - 1) < CLOSE).all()):
        raise WmddError(
            f"the labels of {path} are no probabilities: a number is negative, or a row does not sum to 1; {_ASK}"
        )
    ordered = np.sort(rows, 1)
    if stated == "one-hot" and not (ordered[:, -1] > ordered[:, -2]).all():
        raise WmddError(f"the labels of {path} are not one-hot: a row has no single largest number; {_ASK}")
