"""The commands that hand a distilled set, or a teacher, to others."""

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import h5py
import numpy as np
import torch
from cyclopts import Parameter
from cyclopts.validators import Number

from wmdd.artifacts import hdf5
from wmdd.artifacts.atomic_files import atomic, read_json
from wmdd.artifacts.hdf5 import LEARNED, check_classes, checked_weights, learned_labels
from wmdd.base.errors import WmddError
from wmdd.base.progress import progress
from wmdd.cli.arguments import Flag, Paths, Teacher, Threads, command
from wmdd.cli.readers import CODED, images_per_epoch
from wmdd.cli.tensor_readers import network_settings, read_teacher
from wmdd.export.dataset_card import Origin
from wmdd.export.export import PictureFiles, check_output, mean_soft_labels
from wmdd.export.export import export as write_folder
from wmdd.export.manifest import Layout, Manifest, SoftLabels, check_images, manifest_classes, provenance
from wmdd.networks.foreign_teacher import outside_state
from wmdd.networks.state_dicts import described
from wmdd.report.scores import top1_of
from wmdd.settings import catalogue
from wmdd.stages.labels import opened
from wmdd.workflow.layout import Cell, place_of

Temperature = Annotated[float, Parameter(validator=Number(gt=0))]


@command
def export(
    *,
    images: Path,
    to: Layout,
    output: Path,
    labels: Path | None = None,
    temperature: Temperature = 1.0,
    student: Paths | None = None,
    source: str | None = None,
    overwrite: Flag = False,
    threads: Threads = 1,
) -> None:
    """Write a distilled set as a folder that others read without this package, with a dataset card (docs/use/export.md).

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
    """
    check_output(output, overwrite)
    torch.set_num_threads(threads)
    with hdf5.reading(images) if h5py.is_hdf5(images) else _no_set(images) as file:
        check_images(images, file)
        meta, held = file.meta, file["weights"].shape[1]
        shown = images_per_epoch(meta, held)
        soft, soft_facts, labels_meta = _soft_labels(images, file, labels, temperature)
        manifest = Manifest(
            layout=to,
            classes=manifest_classes(meta["classes"], meta["names"]),
            images_per_class=held,
            resolution=file["images"].shape[-1],
            mean=meta["mean"],
            std=meta["std"],
            picture_format="webp" if CODED in meta else "png",
            images_per_epoch=shown if shown < held else None,
            soft_labels=soft_facts,
            made={"images": provenance(meta)} | ({"labels": provenance(labels_meta)} if labels_meta else {}),
        )
        place = place_of(images.absolute())
        cell = place.cell if place and place.kind == "images" else None
        dataset = _source(source, cell, meta)
        accuracy = labels_meta.get("teacher_accuracy") if labels_meta else None
        origin = Origin(cell, dataset, source is not None, _students(student or [], images, meta), accuracy)
        weights = checked_weights(images, file["weights"][()].astype(np.float32))
        files = PictureFiles(*(file[f"files/{name}"][()] for name in ("bytes", "offsets"))) if CODED in meta else None
        write_folder(output, manifest, file["images"], weights, soft, origin, progress, overwrite, files)
    print(
        f"{output}: {manifest.images} images of {len(weights)} classes; read {output / 'README.md'} before you pass them on"
    )


def _no_set(path: Path) -> nullcontext[hdf5.Artifact]:
    if not path.exists():
        raise WmddError(f"{path} does not exist; give the images.h5 of a run")
    raise WmddError(f"{path} is no whole HDF5 file; give the images.h5 of a run")


def _soft_labels(
    images: Path, file: hdf5.Artifact, labels: Path | None, temperature: float
) -> tuple[np.ndarray | None, SoftLabels | None, dict[str, Any] | None]:
    """Return soft labels [N, C] where there are any: what the manifest says of them, and the meta data of their file."""
    meta, (classes, k) = file.meta, file["weights"].shape
    if labels is not None:
        if LEARNED in file:
            print(f"wmdd export: {labels} takes the place of the labels that {images} learned", file=sys.stderr)
        return _mean_labels(labels, meta, (classes * k, classes), temperature)
    if (learned := learned_labels(images, file)) is None:
        return None, None, None
    facts = SoftLabels(temperature=1, epochs=0, store="learned", mix="none", digest=meta["digest"])
    return learned, facts, None


def _mean_labels(
    path: Path, images: hdf5.Meta, shape: tuple[int, int], temperature: float
) -> tuple[np.ndarray, SoftLabels, dict[str, Any]]:
    """Return the mean soft labels [N, C] over the epochs, what the manifest says of them, and the meta data of their file."""
    with hdf5.reading(path, "seeds") as file:
        epochs, meta = len(file["seeds"]), file.meta
        calibrated = meta["settings"].get("temperature") if "rest" in file else None
    if meta["inputs"].get("images") != images["digest"]:
        raise WmddError(f"{path} labels other images than those given; run the relabel stage again")
    check_classes(images["classes"], meta["classes"], "the distilled set", str(path))
    if images_per_epoch(images, shape[0] // shape[1]) * shape[1] < shape[0]:
        raise WmddError(f"{path} labels other images in each epoch, so that they have no mean; leave out --labels")
    if calibrated not in (None, temperature):
        raise WmddError(f"{path} was pruned for temperature {calibrated:g}; add --temperature {calibrated:g}")
    with opened(path) as (stored, _):
        means = mean_soft_labels(stored, epochs, shape, temperature, progress)
    store, mix = meta["settings"].get("store", "stored"), meta["settings"].get("mix", "none")
    facts = SoftLabels(temperature=temperature, epochs=epochs, store=store, mix=mix, digest=meta["digest"])
    return means, facts, meta | {"labelled_epochs": epochs}


def _source(name: str | None, cell: Cell | None, meta: dict[str, Any]) -> catalogue.Known | None:
    """Return the dataset that a set is made of, where it is known by name."""
    count = len(meta["classes"])
    if name is None:
        dataset = catalogue.table().get(cell.dataset) if cell else None
        return dataset if dataset and dataset.data.get("classes") == count else None
    dataset = catalogue.known(name)
    if dataset.data.get("classes", count) != count:
        raise WmddError(
            f"{name} has {dataset.data['classes']} classes, the set has {count}; correct --source or leave it out"
        )
    return dataset


def _students(paths: Sequence[Path], images: Path, meta: dict[str, Any]) -> list[dict[str, Any]]:
    """Read the scores of students of a distilled set."""
    contents = [read_json(path) for path in paths]
    for path, content in zip(paths, contents, strict=True):
        if not isinstance(content, dict) or not {"settings", "result", "inputs"} <= content.keys():
            raise WmddError(f"{path} has no scores of a student; give run0.json and the like")
        top1_of(path, content)
        if content["inputs"].get("images") != meta["digest"]:
            raise WmddError(f"{path} is of a student of another set than {images}; leave it out")
    return contents


@command
def export_teacher(*, teacher: Teacher, output: Path, threads: Threads = 1) -> None:
    """Write the weights of a teacher as a state dict of torch, by the names that others have for them (docs/use/export.md).

    Args:
        output: the checkpoint, ckpt_best.pt for DD-Ranking. A file of that name is replaced.
    """
    torch.set_num_threads(threads)
    network, meta = read_teacher(teacher)
    settings = network_settings(meta)
    state = outside_state(network, settings, str(teacher))
    with atomic(output) as part:
        torch.save(state, part)
    mean, std = (", ".join(f"{value:g}" for value in meta[name]) for name in ("mean", "std"))
    print(
        f"{output}: {described(settings, meta['resolution'])}; it takes (x - mean) / std of x in [0, 1], mean {mean}, std {std}"
    )
