"""The commands of the recover family: barycenters, and the images that have them as features."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wmdd.artifacts import hdf5
from wmdd.artifacts.hdf5 import Meta, check_classes, checked_weights, load
from wmdd.base.errors import WmddError
from wmdd.base.progress import progress
from wmdd.cli.arguments import ENGINE, Block, Ipc, Positive, Seed, Teacher, Threads, command
from wmdd.cli.readers import block_classes, data_facts
from wmdd.cli.tensor_readers import check_start, confident_points, read_start, read_statistics, read_teacher
from wmdd.cli.writers import save_atoms, save_images
from wmdd.jobs.job import StageJob, job
from wmdd.networks.normalisation import Normalisation
from wmdd.settings.barycenter import BarycenterSettings
from wmdd.settings.engine import EngineSettings
from wmdd.settings.recover import RecoverSettings
from wmdd.stages import point_clouds
from wmdd.stages.barycenter import Quality, barycenters, columns, table
from wmdd.stages.recover import recover as optimise
from wmdd.transport import Barycenter


@command
def barycenter(
    *,
    features: Path,
    k: Positive,
    output: Path | None = None,
    block: str | None = None,
    seed: int = 0,
    dataset: str | None = None,
    labels: str | None = None,
    teacher: Path | None = None,
    threads: Threads = 1,
    settings: BarycenterSettings = BarycenterSettings(),
) -> None:
    """Compute the Wasserstein barycenter of each class with K atoms, and print how good they are.

    Args:
        features: features.h5 of the features stage, or any HDF5 or .npy file of points [N, D].
        k: atoms; images per class, in the workflow.
        output: HDF5 file of the atoms; without it only the table is printed.
        block: of classes, as in classes0-4; all of them by default.
        seed: of the starts.
        dataset: name of the points in an HDF5 file of your own, where it is not `features` and not the only 2-D one.
        labels: name of their classes there, if it is not `labels`; without labels all points are one measure.
        teacher: of the teacher stage, where only a share of the images counts (`confident`).
    """
    settings.check()
    with point_clouds.reading(features, dataset, labels) as source:
        cloud, judge = confident_points(source.cloud, source.meta, features, teacher, settings.confident)
        block = block or f"classes0-{len(source.meta['classes']) - 1}"
        classes = block_classes(block, source.meta["classes"])
        if output is None:
            torch.set_num_threads(threads)
            solved = barycenters(cloud, classes, k, settings, seed, progress)
        else:
            inputs = {"features": source.input(), **judge}
            with job(
                "barycenter", output, [settings], inputs, threads=threads, block=block, k=k, seed=seed
            ) as stage_job:
                solved = barycenters(cloud, classes, k, settings, seed, stage_job.context.progress)
                _save(stage_job, solved, classes, source)
        print(table([source.cloud.name(label) for label in classes], [quality for _, quality in solved]))


def _save(
    stage_job: StageJob, solved: list[tuple[Barycenter, Quality]], labels: range, source: point_clouds.Source
) -> None:
    """Write barycenters with their quality; of points from elsewhere, the file says which."""
    atoms, weights = (torch.stack([getattr(measure, n) for measure, _ in solved]) for n in ("atoms", "weights"))
    quality, seconds = columns([quality for _, quality in solved]), [quality.seconds for _, quality in solved]
    origin = data_facts(source.meta) if "digest" in source.meta else source.meta | {"file": source.path.name}
    save_atoms(stage_job, atoms, weights, labels, quality, seconds, origin)


@command
def recover(
    *,
    teacher: Teacher,
    class_statistics: Path,
    output: Path,
    block: Block,
    ipc: Ipc,
    seed: Seed,
    barycenter: Path | None = None,
    start: Path | None = None,
    threads: Threads = 1,
    settings: RecoverSettings = RecoverSettings(),
    engine: EngineSettings = ENGINE,
) -> None:
    """Optimise the images of a block of classes until their features are the barycenter's atoms.

    Args:
        class_statistics: of the features stage.
        output: of the images.
        barycenter: whose atoms are to be matched, where the loss has such a term.
        start: a distilled set to begin with, where `init` names a method.
    """
    network, teacher_meta = read_teacher(teacher)
    meta = hdf5.load_meta(class_statistics)
    if "layers" not in meta:
        raise WmddError(f"{class_statistics} holds no BatchNorm statistics; give statistics.h5 of the features stage")
    check_classes(teacher_meta["classes"], meta["classes"], str(teacher), str(class_statistics))
    classes = block_classes(block, teacher_meta["classes"])
    statistics, labels = read_statistics(class_statistics, classes), torch.tensor(classes)
    inputs: dict[str, Meta] = {"teacher": teacher_meta, "statistics": meta}
    atoms, weights, images = None, torch.full((len(labels), ipc), 1 / ipc), None
    if barycenter is not None:
        width = network.head.in_features
        atoms, weights, inputs["barycenter"] = _atoms(barycenter, teacher, teacher_meta, block, ipc, width)
    check_start("recover", settings, start)
    if start is not None:
        images, inputs["start"] = read_start(start, teacher_meta, classes, ipc)
    with job("recover", output, [settings], inputs, engine, threads, block=block, ipc=ipc, seed=seed) as stage_job:
        images = optimise(
            network, labels, atoms, weights, statistics, teacher_meta["resolution"], Normalisation.of(teacher_meta),
            settings, seed, stage_job.context, images, teacher_meta.get("grey", False),
        )  # fmt: skip
        save_images(stage_job, images, weights, labels.tolist(), teacher_meta)


def _atoms(
    path: Path, teacher: Path, teacher_meta: dict[str, Any], block: str, ipc: int, width: int
) -> tuple[Tensor, Tensor, Meta]:
    """Read the atoms [C, K, D] and weights [C, K] of a block that fit a teacher, and the meta data of their file."""
    arrays, meta = load(path, "labels", "atoms", "weights")
    check_classes(teacher_meta["classes"], meta["classes"], str(teacher), str(path))
    classes = block_classes(block, teacher_meta["classes"])
    if arrays["labels"].tolist() != list(classes) or arrays["atoms"].shape[1] != ipc:
        raise WmddError(f"{path} is of other classes or images per class than {block} at ipc {ipc}; rebuild it")
    if arrays["atoms"].shape[2] != width:
        raise WmddError(f"{path} is of the features of another teacher than {teacher}; rebuild it")
    return torch.from_numpy(arrays["atoms"]), torch.from_numpy(checked_weights(path, arrays["weights"])), meta
