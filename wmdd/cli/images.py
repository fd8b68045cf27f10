"""The command that takes a distilled set which others made."""

import os
from pathlib import Path

import numpy as np
import torch

from wmdd.artifacts import hdf5
from wmdd.artifacts.hdf5 import LEARNED, Meta, check_classes
from wmdd.base.errors import WmddError, one_line
from wmdd.cli.arguments import Data, Ipc, Seed, Threads, command
from wmdd.cli.tensor_readers import read_teacher
from wmdd.cli.writers import save_images
from wmdd.datasets.loader import opened
from wmdd.export import foreign
from wmdd.export.foreign import ForeignSet
from wmdd.jobs.job import job
from wmdd.jobs.node_cache import staged
from wmdd.networks.normalisation import Normalisation
from wmdd.settings.imported import ImportSettings
from wmdd.stages import imported_classes, imported_pixels
from wmdd.stages.imported import ImportedSet, as_set, confidence, most_images


@command
def images(
    *,
    data: Data,
    output: Path,
    ipc: Ipc,
    seed: Seed,
    teacher: Path | None = None,
    threads: Threads = 1,
    settings: ImportSettings = ImportSettings(),
) -> None:
    """Take a distilled set that others made: undo what was done to its pixels, and bring its classes into our order.

    Args:
        data: of the data stage, whose classes the set has.
        teacher: of the teacher stage, that looks whether the classes are permuted.
    """
    source = settings.source(ipc, seed)
    if not source:
        raise WmddError("--path is missing; name the file or folder of the set")
    if settings.order == "checked" and teacher is None:
        raise WmddError("a teacher checks the order of classes: give --teacher, or --order trusted")
    meta = hdf5.load_meta(data)
    side, most = meta["resolution"], most_images(len(meta["classes"]), ipc)
    theirs = foreign.read(source, settings.layout, settings.label_kind, side if settings.resize else 0, most)
    inputs: dict[str, Meta | str] = {"data": meta, "set": theirs.sha256}
    network = None
    if teacher is not None and settings.order == "checked":
        network, teacher_meta = read_teacher(teacher)
        check_classes(teacher_meta["classes"], meta["classes"], str(teacher), str(data))
        inputs["teacher"] = teacher_meta
    with job("images", output, [settings], inputs, threads=threads, ipc=ipc, seed=seed) as stage_job:
        ours, notes = _ours(theirs, settings, data, meta, ipc)
        if network is not None:
            seen = confidence(network, ours.images, Normalisation.of(teacher_meta), stage_job.context)
            _check_order(seen, meta["names"], source)
        for note in notes:
            print(note, flush=True)
        stage_job.meta["imported"] = {"path": source, "sha256": theirs.sha256, "layout": theirs.layout, "notes": notes}
        keeps = settings.labels == "theirs"
        learned = {LEARNED: ours.labels} if keeps and ours.labels is not None else {}
        rate = {"student_lr": theirs.learned_rate} if keeps and theirs.learned_rate is not None else {}
        pixels, weights = torch.from_numpy(ours.images), torch.from_numpy(ours.weights)
        save_images(stage_job, pixels, weights, list(range(len(weights))), meta, learned, rate)


def _ours(
    theirs: ForeignSet, settings: ImportSettings, data: Path, meta: Meta, ipc: int
) -> tuple[ImportedSet, list[str]]:
    """Return a set in our form, and what was guessed or changed on the way."""
    pixels, notes = _pixels(theirs, settings, data, meta)
    if theirs.labels.ndim == 2 and theirs.labels.shape[1] != len(meta["classes"]):
        raise WmddError(
            f"the labels of {settings.path} have {theirs.labels.shape[1]} columns and the data {len(meta['classes'])} classes; "
            "name the data that the set was distilled from"
        )
    names = theirs.names, meta["classes"], meta["names"], _mapping(settings.classes), theirs.layout
    labels, said = imported_classes.classes_of(
        imported_classes.in_probabilities(theirs.labels, theirs.label_kind), *names
    )
    hard = None if theirs.hard_labels is None else imported_classes.classes_of(theirs.hard_labels, *names)[0]
    tiles = settings.tiles or theirs.factor or 1
    pixels, labels = imported_pixels.untiled(pixels, labels, tiles)
    side = meta["resolution"]
    if settings.resize and pixels.shape[2:] != (side, side):
        pixels = imported_pixels.resized(pixels, side)
    copies = [None if part is None else np.concatenate([part] * tiles**2) for part in (hard, theirs.weights)]
    ours = as_set(pixels, labels, meta["classes"], ipc * tiles**2, side, *copies)
    return ours, [*theirs.notes, *notes, *said, *ours.notes]


def _mapping(path: str) -> dict[str, str] | list[str] | None:
    """Read which class of the data each class of the set is: by their order, or by the set's names."""
    if not path:
        return None
    try:
        text = Path(os.path.expanduser(path)).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise WmddError(
            f"cannot read the names of classes in {path} ({one_line(error)}); give a text file in UTF-8"
        ) from None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    pairs = [line.split("\t") for line in lines]
    return {pair[0]: pair[-1] for pair in pairs} if any(len(pair) > 1 for pair in pairs) else lines


def _pixels(theirs: ForeignSet, settings: ImportSettings, data: Path, meta: Meta) -> tuple[np.ndarray, list[str]]:
    """Return the images in unit scale, or as bytes, and how that was done."""
    space, said = imported_pixels.space_of(theirs.images, settings.space, theirs.space, theirs.layout)
    notes, normalisation, whitening = [said], Normalisation.of(meta), None
    if space == "normalised":
        source = meta.get("settings", {}).get("source", "")
        normalisation, undone = imported_pixels.published_normalisation(source, normalisation)
        notes.append(undone)
    if space == "zca":
        with opened(staged(data, make=False), "train", once=True) as (pictures, _):
            whitening = imported_pixels.authors_whitening(pictures)
    pixels, more = imported_pixels.in_unit_scale(theirs.images, space, normalisation, whitening)
    return pixels, notes + more


def _check_order(seen: np.ndarray, names: list[str], source: str) -> None:
    """Refuse a set whose classes are permuted, as a teacher sees them."""
    order, said = imported_classes.permutation(seen)
    if order is not None:
        moved = [(names[given], names[other]) for given, other in enumerate(order) if given != other]
        pairs = ", ".join(f"{given} looks like {other}" for given, other in moved[:3]) + (", ..." if moved[3:] else "")
        raise WmddError(
            f"the classes of {source} are in another order: {pairs}. {said} Give the order as a text file (classes), or set "
            "order: trusted"
        )
