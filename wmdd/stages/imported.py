"""A set that others distilled becomes one of ours: sorted by class, K images of each, weights of sum 1.

Its pixels come from `imported_pixels`, its labels from `imported_classes`.
"""

from dataclasses import dataclass, field

import numpy as np
import torch

from wmdd.base.errors import WmddError
from wmdd.networks.context import Context
from wmdd.networks.models import Network, normalise
from wmdd.networks.normalisation import Normalisation

WHOLE = 10  # times the images that were asked for are taken for a whole training set


@dataclass(frozen=True, eq=False)
class ImportedSet:
    """A set in the form of images.h5."""

    images: np.ndarray  # [C, K, 3, R, R] uint8, or float32 in unit scale
    weights: np.ndarray  # [C, K] float32, of sum 1 in each class
    labels: np.ndarray | None  # [C, K, C] float32, probabilities; None if labels are hard
    notes: list[str] = field(default_factory=list)


def most_images(classes: int, ipc: int) -> int:
    """Return how many images a set of C classes and K images of each has at most; more are taken for a whole training set."""
    return WHOLE * classes * ipc


def as_set(
    images: np.ndarray,
    labels: np.ndarray,
    classes: list[str],
    ipc: int | None = None,
    side: int | None = None,
    hard_labels: np.ndarray | None = None,
    weights: np.ndarray | None = None,
) -> ImportedSet:
    """Return a set sorted by class (within one in the file's order), with K images of each class.

    A class with fewer images has them repeated in turn until there are K, each image's mass split equally among its copies,
    so that losses and weighted means are those of the images that there are.

    Args:
        images: [N, 3, R, R].
        labels: [N] indices of the data's classes, or [N, C] probabilities.
        classes: of the data, in order.
        ipc: K; None: as many as the largest class has.
        side: R of the data; None: not checked.
        hard_labels: [N] the class of each image, where labels are probabilities and it is known.
        weights: [N] masses; equal ones if None. Those of a class are scaled to sum to 1.

    Raises:
        WmddError: images are of another size or hold NaN, labels are missing or of other classes, a class has no images, or
            the largest has more or fewer than K.
    """
    own, notes = _own_classes(images, labels, classes, side, hard_labels)
    counts = np.bincount(own, minlength=len(classes))
    k = _checked_counts(counts, classes, ipc)
    if (counts < k).any():
        few = np.flatnonzero(counts < k)
        notes.append(
            f"{len(few)} of {len(classes)} classes have fewer than {k} images ({classes[few[0]]}: {counts[few[0]]}); their own "
            "are repeated, with their weight split."
        )
    order, masses = [], []
    for index, name in enumerate(classes):
        rows = np.flatnonzero(own == index)
        mass = np.ones(len(rows)) if weights is None else weights[rows].astype(np.float64)
        if not mass.sum() > 0:
            raise WmddError(f"all weights of the class {name} are 0; leave the weights out, or correct them")
        place = np.arange(k) % len(rows)
        copies = np.bincount(place, minlength=len(rows))
        order.append(rows[place])
        masses.append((mass / mass.sum() / copies)[place])
    chosen = np.stack(order)  # [C, K]
    sorted_already = np.array_equal(chosen.ravel(), np.arange(len(images)))  # nothing has to be copied
    sorted_images = images.reshape(*chosen.shape, *images.shape[1:]) if sorted_already else images[chosen]
    learned = np.asarray(labels[chosen], np.float32) if labels.ndim == 2 else None
    return ImportedSet(sorted_images, np.stack(masses).astype(np.float32), learned, notes)


def _own_classes(
    images: np.ndarray, labels: np.ndarray, classes: list[str], side: int | None, hard_labels: np.ndarray | None
) -> tuple[np.ndarray, list[str]]:
    """Return the class of each image, once images and labels are seen to be of the data, and what was noticed."""
    if not len(labels) or len(labels) != len(images):
        raise WmddError(f"the set has {len(images)} images and {len(labels)} labels; give one label for each image")
    if side is not None and images.shape[2:] != (side, side):
        height, width = images.shape[2:]
        raise WmddError(
            f"the set's images are {width} x {height} px and the data's {side} px; set resize: true to resize them, or name "
            "the data set at that resolution"
        )
    if images.dtype != np.uint8 and not np.isfinite(images).all():
        raise WmddError("the set has NaN or infinite pixels; leave such images out, or distil them again")
    if labels.ndim == 2 and labels.shape[1] != len(classes):
        raise WmddError(
            f"the set's labels have {labels.shape[1]} classes and the data {len(classes)}; name the data of the set"
        )
    own, notes = (labels if hard_labels is None else hard_labels), list[str]()
    if own.ndim == 2:
        own, notes = _classes_by_place(own)
    if own.min() < 0 or own.max() >= len(classes):
        raise WmddError(
            f"the set's labels go up to {own.max()} and the data has {len(classes)} classes; name the set's data"
        )
    return own, notes


def _classes_by_place(rows: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Return the class that each image with a soft label was made for.

    Sets are sorted by class, and a learned label may have its largest entry elsewhere. So where N images make C runs of equal
    length, each run mostly of one class and no two of the same, that class is taken; else it is the largest entry.
    """
    largest, classes = rows.argmax(1), rows.shape[1]
    if len(rows) % classes == 0:
        runs = largest.reshape(classes, -1)
        modes = np.array([np.bincount(run, minlength=classes).argmax() for run in runs])
        if len(set(modes)) == classes and (runs == modes[:, None]).mean() >= 0.5:
            own = modes.repeat(runs.shape[1])
            other = int((own != largest).sum())
            if other:
                return own, [
                    f"Of the soft labels, {other} are largest at another class than their place says; the place was taken."
                ]
            return own, []
    return largest, ["The class of an image is the largest entry of its soft label."]


def _checked_counts(counts: np.ndarray, classes: list[str], ipc: int | None) -> int:
    """Return K, and refuse numbers of images that do not fit it."""
    if not counts.all():
        empty = [classes[index] for index in np.flatnonzero(counts == 0)]
        more = f" and {len(empty) - 3} more" if len(empty) > 3 else ""
        raise WmddError(
            f"the set has no image of {', '.join(empty[:3])}{more}, which the data has ({len(classes)} classes); name the data "
            "that the set was distilled from"
        )
    most, total = int(counts.max()), int(counts.sum())
    if ipc is None:
        return most
    if total > most_images(len(classes), ipc):
        raise WmddError(
            f"the set has {total:,} images, where {len(classes)} classes of {ipc} make {len(classes) * ipc:,}: is it a whole "
            "training set? Name the distilled set"
        )
    if most != ipc:
        raise WmddError(
            f"the set has {most} images of its largest class ({classes[int(counts.argmax())]}), and not ipc {ipc}; set "
            f"ipc: {most}, or name another set"
        )
    return ipc


@torch.inference_mode()
def confidence(network: Network, images: np.ndarray, normalisation: Normalisation, context: Context) -> np.ndarray:
    """Return the mean probability [C, C] that a teacher gives class j on the images [C, K, 3, R, R] of class i."""
    engine = context.engine
    engine.place(network).eval()
    rows = []
    for pixels in context.progress(images, "checking the order of classes", len(images), 0, "class"):
        shown = normalise(torch.from_numpy(pixels).to(engine.device), normalisation)
        rows.append(network(engine.arranged(shown, network)).float().softmax(1).mean(0).cpu().numpy())
    return np.stack(rows)
