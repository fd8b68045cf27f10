"""The command that hands a distilled set to others (see `wmdd.cli.stages`)."""

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import h5py
import numpy as np
import torch
from cyclopts import Parameter
from cyclopts.validators import Number

from wmdd.artifacts import hdf5
from wmdd.artifacts.atomic_files import read_json
from wmdd.artifacts.hdf5 import LEARNED, check_classes, learned_labels
from wmdd.base.errors import WmddError
from wmdd.base.progress import progress
from wmdd.cli.stages import Several, app
from wmdd.export.dataset_card import Origin
from wmdd.export.loading import check_images, provenance
from wmdd.export.manifest import Layout, Manifest, SoftLabels, manifest_classes
from wmdd.workflow.layout import Cell, place_of

if TYPE_CHECKING:
    from wmdd.settings.catalogue import Known

Temperature = Annotated[float, Parameter(validator=Number(gt=0))]


@app.command
def export(
    *,
    images: Path,
    to: Layout,
    output: Path,
    labels: Path | None = None,
    temperature: Temperature = 1.0,
    student: Several | None = None,
    source: str | None = None,
    overwrite: bool = False,
    threads: int = 1,
) -> None:
    """Write a distilled set as a folder that others read without this package, with a dataset card (docs/export.md).

    Args:
        images: the distilled set, images.h5 of a run.
        to: the layout.
        output: a new folder.
        labels: of the relabel stage; their mean over the epochs becomes the soft label of each image. Without, the soft labels
            are those that the method learned, where it learned any.
        temperature: of the softmax of these labels; that of the student protocol.
        student: scores of students of this set, for the card.
        source: dataset that the set is made of, a name in wmdd/settings/datasets.yaml, for its licence; by default the
            name of the folder under results/, where it is known.
        overwrite: replace an earlier export.
        threads: of the CPU.
    """
    from wmdd.export.export import check_output
    from wmdd.export.export import export as run

    check_output(output, overwrite)
    torch.set_num_threads(threads)
    with hdf5.reading(images) if h5py.is_hdf5(images) else _no_set(images) as file:
        check_images(images, file)
        meta = hdf5.meta_of(file)
        weights = file["weights"][()].astype(np.float32)
        classes, k = weights.shape
        soft, about_labels, of_labels = None, None, None
        if labels is not None:
            if LEARNED in file:
                print(f"wmdd export: {labels} takes the place of the labels that {images} learned", file=sys.stderr)
            soft, about_labels = _soft(labels, meta, (classes * k, classes), temperature)
            of_labels = _averaged(about_labels, temperature)
        elif (own := learned_labels(images, file)) is not None:
            soft, of_labels = (
                own,
                SoftLabels(temperature=1, epochs=0, store="learned", mix="none", digest=meta["digest"]),
            )
        about = Manifest(
            layout=to,
            classes=manifest_classes(meta["classes"], meta["names"]),
            images_per_class=k,
            resolution=file["images"].shape[-1],
            mean=meta["mean"],
            std=meta["std"],
            soft_labels=of_labels,
            made={"images": provenance(meta)} | ({"labels": provenance(about_labels)} if about_labels else {}),
        )
        place = _place(images)
        known = _source(source, place, meta)
        accuracy = about_labels.get("teacher_accuracy") if about_labels else None
        origin = Origin(place, known, source is not None, _students(student or [], images, meta), accuracy)
        run(output, about, file["images"], weights, soft, origin, progress, overwrite)
    print(f"{output}: {about.images} images of {classes} classes; read {output / 'README.md'} before you pass them on")


def _no_set(path: Path) -> nullcontext[h5py.File]:
    if not path.exists():
        raise WmddError(f"{path} does not exist; give the images.h5 of a run")
    raise WmddError(f"{path} is no whole HDF5 file; give the images.h5 of a run")


def _soft(
    path: Path, images: dict[str, Any], shape: tuple[int, int], temperature: float
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the mean soft labels [N, C], and the meta data of their file."""
    from wmdd.export.export import mean_soft_labels
    from wmdd.stages import labels

    with hdf5.reading(path, "seeds") as file:
        epochs, meta = len(file["seeds"]), hdf5.meta_of(file)
        calibrated = meta["settings"].get("temperature") if "rest" in file else None
    if meta["inputs"].get("images") != images["digest"]:
        raise WmddError(f"{path} labels other images than those given; run the relabel stage again")
    check_classes(images["classes"], meta["classes"], "the distilled set", str(path))
    if calibrated not in (None, temperature):
        raise WmddError(f"{path} was pruned for temperature {calibrated:g}; add --temperature {calibrated:g}")
    with labels.opened(path) as (found, _):
        return mean_soft_labels(found, epochs, shape, temperature, progress), meta | {"labelled_epochs": epochs}


def _averaged(meta: dict[str, Any], temperature: float) -> SoftLabels:
    settings = meta["settings"]
    return SoftLabels(
        temperature=temperature,
        epochs=meta["labelled_epochs"],
        store=settings.get("store", "stored"),
        mix=settings.get("mix", "none"),
        digest=meta["digest"],
    )


def _place(images: Path) -> Cell | None:
    place = place_of(images.absolute())
    return place.cell if place and place.kind == "images" else None


def _source(name: str | None, place: Cell | None, meta: dict[str, Any]) -> "Known | None":
    """Return the dataset that a set is made of, where it is known by name."""
    from wmdd.settings import catalogue

    count = len(meta["classes"])
    if name is None:
        found = catalogue.table().get(place.dataset) if place else None
        return found if found and found.data.get("classes") == count else None
    found = catalogue.known(name)
    if found.data.get("classes", count) != count:
        raise WmddError(
            f"{name} has {found.data['classes']} classes, the set has {count}; correct --source or leave it out"
        )
    return found


def _students(paths: Sequence[Path], images: Path, meta: dict[str, Any]) -> list[dict[str, Any]]:
    """Read the scores of students of this set."""
    found = []
    for path in paths:
        content = read_json(path)
        if not isinstance(content, dict) or not {"settings", "result", "inputs"} <= content.keys():
            raise WmddError(f"{path} has no scores of a student; give run0.json and the like")
        if content["inputs"].get("images") != meta["digest"]:
            raise WmddError(f"{path} is of a student of another set than {images}; leave it out")
        found.append(content)
    return found
