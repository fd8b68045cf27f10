"""The command of the select family: real images, or parts of them, as the distilled set."""

import shutil
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]
import torch
from torch import Tensor

from wmdd.artifacts import hdf5
from wmdd.artifacts.hdf5 import check_classes
from wmdd.base.errors import WmddError
from wmdd.base.units import size as size_text
from wmdd.cli.arguments import ENGINE, Data, Ipc, Seed, Threads, command
from wmdd.cli.readers import CODED, PER_EPOCH
from wmdd.cli.tensor_readers import confident_points, read_teacher
from wmdd.cli.writers import save_images
from wmdd.datasets.loader import Pictures, opened, read
from wmdd.jobs.job import StageJob, job
from wmdd.jobs.node_cache import staged
from wmdd.networks.models import Network
from wmdd.networks.normalisation import Normalisation
from wmdd.settings.barycenter import BarycenterSettings
from wmdd.settings.engine import EngineSettings
from wmdd.settings.select import SelectSettings
from wmdd.stages.coded import coded, expected
from wmdd.stages.point_clouds import Cloud
from wmdd.stages.select import masses, mosaic, patches, rows_of
from wmdd.stages.select import select as choose


@command
def select(
    *,
    data: Data,
    output: Path,
    ipc: Ipc,
    seed: Seed,
    features: Path | None = None,
    teacher: Path | None = None,
    threads: Threads = 1,
    settings: SelectSettings = SelectSettings(),
    solver: BarycenterSettings = BarycenterSettings(),
    engine: EngineSettings = ENGINE,
) -> None:
    """Choose real images, or parts of them, as the distilled set.

    Args:
        output: of the images.
        features: of the features stage, for the strategies kmeans-medoid and margins.
        teacher: of the teacher stage, for the strategies patches and margins, and where only a share of the images counts
            (`confident`).
    """
    _check_needs(settings, solver, teacher, features)
    with ExitStack() as files:
        pictures, meta = files.enter_context(opened(staged(data, make=False), "train", once=True))
        inputs, cloud, network = dict[str, hdf5.Meta | str](data=meta), None, None
        if settings.strategy == "patches" and teacher is not None:
            network, teacher_meta = read_teacher(teacher)
            check_classes(teacher_meta["classes"], meta["classes"], str(teacher), str(data))
            inputs["teacher"] = teacher_meta
        if features is not None:
            file = files.enter_context(hdf5.reading(features, "features", "labels"))
            features_meta = file.meta
            inputs["features"] = features_meta
            cloud = Cloud(file["features"], file["labels"][()], features_meta["names"])
            always = settings.strategy == "margins"
            cloud, judge = confident_points(cloud, features_meta, features, teacher, solver.confident, always)
            inputs |= judge
        used_engine = None if network is None else engine
        stage_job = files.enter_context(
            job("select", output, [settings, solver], inputs, used_engine, threads, ipc=ipc, seed=seed)
        )
        count = (
            ipc if settings.codec == "none" else _fitting(pictures, len(meta["classes"]), ipc, cloud, settings, seed)
        )
        positions, weights = choose(pictures.labels, meta["classes"], count, cloud, settings, solver, seed)
        classes = stage_job.context.progress(positions, "selecting", len(positions), 0, "class")
        files_of_set: dict[str, np.ndarray] = {}
        if settings.holds_more:
            stage_job.meta[PER_EPOCH] = ipc
        if settings.codec != "none":
            images, files_of_set, stage_job.meta[CODED] = _coded(pictures, classes, ipc, settings)
            positions = positions[:, : images.shape[1]]
            weights = weights[:, : images.shape[1]]
            weights = weights / weights.sum(1, keepdim=True)
            stage_job.meta["positions"] = positions.tolist()
        elif network is None:
            if settings.strategy == "whole":
                _check_room(positions, pictures, output)
            images, weights = _unchanged(pictures, classes, weights, settings)
            stage_job.meta["positions"] = positions.tolist()
        else:
            images, weights, facts = _patches(pictures, classes, network, teacher_meta, ipc, settings, seed, stage_job)
            stage_job.meta |= facts
        save_images(stage_job, images, weights, list(range(len(meta["classes"]))), meta, files_of_set)


def _fitting(
    pictures: Pictures, classes: int, ipc: int, cloud: Cloud | None, settings: SelectSettings, seed: int
) -> int:
    """Return how many images of each class to choose for files: as many as are expected to fit, at most those that count."""
    most = min(map(len, rows_of(pictures.labels, classes, cloud)))
    return max(ipc, min(most, expected(pictures, ipc, settings.quality, seed)))


def _coded(
    pictures: Pictures, positions: Iterable[Tensor], ipc: int, settings: SelectSettings
) -> tuple[Tensor, dict[str, np.ndarray], dict[str, Any]]:
    """Return the images [C, M, 3, R, R] of the files that fit, these files as arrays, and what to say of them.

    Raises:
        WmddError: not even the images of an epoch fit.
    """
    images, files = coded((read(pictures, chosen) for chosen in positions), ipc, settings.quality)
    sizes = [len(file) for of_class in files for file in of_class]
    budget = 3 * pictures.resolution**2 * ipc * len(files)
    if images.shape[1] < ipc:
        raise WmddError(
            f"WebP files of quality {settings.quality} are larger than raw images; lower select.quality, or set codec: none"
        )
    print(
        f"{images.shape[1]} images of each class in {size_text(sum(sizes))}, where {ipc} raw ones have {size_text(budget)}"
    )
    arrays: dict[str, np.ndarray] = {
        "files/bytes": np.frombuffer(b"".join(file for of_class in files for file in of_class), np.uint8),
        "files/offsets": np.cumsum([0, *sizes], dtype=np.int64),
    }
    facts: dict[str, Any] = {
        "format": settings.codec,
        "quality": settings.quality,
        "bytes": sum(sizes),
        "budget": budget,
    }
    return images, arrays, facts


def _check_needs(
    settings: SelectSettings, solver: BarycenterSettings, teacher: Path | None, features: Path | None
) -> None:
    """Refuse a strategy that lacks a file."""
    patches, sifts = settings.strategy == "patches", settings.strategy != "patches" and solver.confident < 1
    measures, judged = not (settings.drawn or patches), settings.judged or sifts
    for needed, given, name in (judged, teacher, "teacher"), (measures or sifts, features, "features"):
        if needed and given is None:
            share = f" and confident {solver.confident:g}" if sifts else ""
            raise WmddError(f"select with strategy {settings.strategy}{share} needs --{name}")


def _check_room(positions: Tensor, pictures: Pictures, output: Path) -> None:
    """Refuse a training set that memory or disk has no room for; say which images are left out of [C, M] positions.

    The images of all classes are gathered, which takes their size twice.
    """
    needed = 3 * pictures.resolution**2 * positions.numel()
    memory, disk = psutil.virtual_memory().available, shutil.disk_usage(output.parent).free
    for times, free, where in (2, memory, "memory"), (1, disk, f"the disk of {output.parent}"):
        if free < times * needed:
            raise WmddError(
                f"the whole training set is {size_text(needed)} of pixels and takes {size_text(times * needed)} of {where}, "
                f"which has {size_text(free) or 'nothing'} left; make room, or leave this method out"
            )
    if left_out := len(pictures.labels) - positions.numel():
        print(
            f"{positions.shape[1]} images of each class, as many as the smallest has; {left_out:,} of "
            f"{len(pictures.labels):,} training images are left out"
        )


def _unchanged(
    pictures: Pictures, positions: Iterable[Tensor], weights: Tensor, settings: SelectSettings
) -> tuple[Tensor, Tensor]:
    """Return the images [C, K, 3, R, R] of whole pictures at positions [C, n], and their weights [C, K]."""
    images = [mosaic(read(pictures, chosen), settings.tiles) for chosen in positions]
    return torch.stack(images), masses(weights, settings.tiles)


def _patches(
    pictures: Pictures,
    candidates: Iterable[Tensor],
    network: Network,
    teacher_meta: dict[str, Any],
    ipc: int,
    settings: SelectSettings,
    seed: int,
    stage_job: StageJob,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Return the images [C, K, 3, R, R] of the patches that a teacher chooses, equal weights, and where they were cut."""
    engine, count = stage_job.engine, ipc * settings.tiles**2
    engine.place(network).eval()
    images, positions, boxes = [], [], []
    for label, rows in enumerate(candidates):
        best = patches(
            network, read(pictures, rows), label, count, Normalisation.of(teacher_meta), settings, seed, engine
        )
        positions.append(rows[best.images].tolist())
        boxes.append(best.boxes.tolist())
        images.append(mosaic(best.pixels, settings.tiles))
    weights = torch.full((len(images), ipc), 1 / ipc)
    return torch.stack(images), weights, {"boxes": boxes, "positions": positions}
