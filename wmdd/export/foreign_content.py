"""What the readers of other people's sets hand on, and how their arrays become images [N, 3, H, W]."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tokenize import TokenError

import numpy as np

from wmdd.base.errors import WmddError, one_line

GET_AGAIN = "get it again from where it was published"
# The names that files give their arrays, in order of preference. The first of each are those of this package and of DD-Ranking.
IMAGES = ("images", "image", "syn_images", "image_syn", "data", "imgs", "img", "x_train", "x", "pixels")
LABELS = ("labels", "label", "syn_labels", "label_syn", "targets", "target", "y_train", "y", "cls", "fine_label")
SOFT = ("soft_labels", "soft_label", "labels_learned", "logits")
RATES = ("lr", "syn_lr", "learned_lr", "learning_rate")
WEIGHTS = ("weights", "weight")


@dataclass
class Content:
    """What a file or folder holds, as its reader finds it."""

    layout: str
    files: list[Path]  # that were read
    images: np.ndarray
    labels: np.ndarray | None  # [N], [N, 1] or [N, C']
    soft_labels: np.ndarray | None = None  # [N, C'], where the file has both
    weights: np.ndarray | None = None
    rate: float | None = None
    names: list[str] | None = None  # of the classes; labels are positions in it
    space: str | None = None  # of the pixels, where the layout says it
    factor: int | None = None  # of IDC's formation, where a file says it
    notes: list[str] = field(default_factory=list)


def chosen(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Return which array of a file is which: `images`, `labels`, `soft_labels`, `weights`, `rate`, as far as it has them.

    Names decide (without regard to case, the last part of a path); failing that, the only array of four axes is the images.

    Args:
        path: of the file, for messages.
        shapes: of its arrays, by name.

    Raises:
        WmddError: there are no images, or several arrays may be.
    """
    by_word = {name.rpartition("/")[2].casefold(): name for name in reversed(list(shapes))}

    def named(words: tuple[str, ...], axes: tuple[int, ...]) -> str | None:
        return next((by_word[w] for w in words if w in by_word and len(shapes[by_word[w]]) in axes), None)

    images = named(IMAGES, (4, 5))
    if images is None:
        pictures = [name for name, shape in shapes.items() if len(shape) in (4, 5)]
        if len(pictures) != 1:
            held = ", ".join(f"{name} {list(shape)}" for name, shape in list(shapes.items())[:6]) or "nothing"
            several = "several arrays that may be its images" if pictures else "no images [N, 3, H, W]"
            raise WmddError(f"{path} has {several} ({held}); name them images and labels")
        images = pictures[0]
    roles = {
        "images": images, "labels": named(LABELS, (1, 2)), "soft_labels": named(SOFT, (2, 3)),
        "weights": named(WEIGHTS, (1, 2)), "rate": named(RATES, (0, 1)),
    }  # fmt: skip
    return {role: name for role, name in roles.items() if name is not None}


def content_of(
    path: Path,
    layout: str,
    parts: Mapping[str, np.ndarray],
    roles: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
) -> Content:
    """Return the arrays of a file, by their role, as what a reader hands on; `roles` and `shapes` as of `chosen`."""
    others = [name for name, shape in shapes.items() if len(shape) in (4, 5) and name != roles["images"]]
    rate = parts.get("rate")
    number = float(rate.reshape(-1)[0]) if rate is not None and rate.size == 1 and rate.dtype.kind in "iuf" else None
    found = Content(
        layout, [path], parts["images"], parts.get("labels"), parts.get("soft_labels"), parts.get("weights"), number
    )
    if others:
        found.notes.append(f"The images are {roles['images']}; {', '.join(others[:4])} may be images too: left out.")
    return found


def images_of(array: np.ndarray, path: Path) -> tuple[np.ndarray, list[str]]:
    """Return the images [N, 3, H, W], uint8 or float32 with the values of the array, and what was done to get there.

    Axes in the order [N, H, W, 3] are turned, [C, K, 3, H, W] are joined, and grey images get three equal channels.

    Raises:
        WmddError: it has other axes, numbers that are no pixels, none, or NaN.
    """
    notes = []
    if array.ndim == 5 and array.size:
        array = array.reshape(-1, *array.shape[2:])
    if array.ndim != 4 or 0 in array.shape or (array.shape[1] not in (1, 3) and array.shape[3] not in (1, 3)):
        raise WmddError(f"the images of {path} are {list(array.shape)}; images [N, 3, H, W] are needed")
    if array.shape[1] not in (1, 3):
        array = np.ascontiguousarray(array.transpose(0, 3, 1, 2))
        notes.append("The images have their channels last; the axes were turned.")
    if array.shape[1] == 1:
        array = array.repeat(3, 1)
        notes.append("The images are grey; each got three equal channels.")
    if array.dtype.kind in "iu" and array.dtype != np.uint8:
        if array.min() < 0 or array.max() > 255:
            raise WmddError(f"the images of {path} are integers {array.min()} to {array.max()}; pixels are 0 to 255")
        array = array.astype(np.uint8)
    elif array.dtype.kind == "f" and array.dtype != np.float32:
        notes.append(f"The pixels are {array.dtype}; they were rounded to float32.")
        array = array.astype(np.float32)
    elif array.dtype not in (np.uint8, np.float32):
        raise WmddError(f"the images of {path} are {array.dtype}; pixels are uint8 or floating-point numbers")
    if array.dtype == np.float32 and not np.isfinite(array).all():
        broken = int((~np.isfinite(array)).any((1, 2, 3)).sum())
        raise WmddError(
            f"{broken} of {len(array)} images of {path} have NaN or infinite pixels; leave them out, or distil them again"
        )
    return array, notes


def check_number(path: Path, number: int, most: int) -> None:
    """Refuse more images than a distilled set has; `most` 0 is no limit.

    Raises:
        WmddError: names both numbers.
    """
    if number <= 0:
        raise WmddError(f"{path} has no images; name a distilled set")
    if most and number > most:
        raise WmddError(
            f"{path} has {number:,} images, where at most {most:,} were expected: is it a whole training set? Name the "
            "distilled set"
        )


def check_claim(path: Path | str, claimed: int, held: int) -> None:
    """Refuse what claims more bytes than compression can make of those that it has.

    Raises:
        WmddError: names both numbers.
    """
    from wmdd.artifacts.hdf5 import MOST, SMALL

    if claimed > max(SMALL, MOST * held):
        raise WmddError(f"{path} claims {claimed:,} bytes, of which it has {held:,}, and is not read; {GET_AGAIN}")


@contextmanager
def readable(path: Path | str) -> Iterator[None]:
    """Turn what readers raise on damaged files into one line.

    Raises:
        WmddError: names the path.
    """
    from wmdd.datasets.archives import DAMAGED
    from wmdd.export.layouts import DAMAGE

    try:
        yield
    except PermissionError:
        raise WmddError(f"no permission to read {path}; ask its owner for `chmod a+r`, or copy it") from None
    except (*DAMAGE, *DAMAGED, TokenError, SyntaxError) as error:  # the last two of headers of NumPy
        raise WmddError(f"cannot read {path} ({one_line(error)}); {GET_AGAIN}") from None
