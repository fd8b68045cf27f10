"""The command of the select family: real images, or parts of them, as the distilled set."""

import shutil
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
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
        choice = partial(
            choose, pictures.labels, meta["classes"], features=cloud, settings=settings, solver=solver, seed=seed
        )
        arrays: dict[str, np.ndarray] = {}
        if settings.codec != "none":
            images, weights, arrays = _coded(pictures, choice, cloud, ipc, settings, stage_job)
        else:
            positions, weights = choice(k=ipc)
            classes = stage_job.context.progress(positions, "selecting", len(positions), 0, "class")
            if network is None:
                if settings.strategy == "whole":
                    _check_room("the whole training set", positions.numel(), pictures, output)
                    _say_what_is_left_out(positions, pictures)
                    stage_job.meta[PER_EPOCH] = ipc
                images, weights = _unchanged(pictures, classes, weights, settings)
                stage_job.meta["positions"] = positions.tolist()
            else:
                images, weights, facts = _patches(
                    pictures, classes, network, teacher_meta, ipc, settings, seed, stage_job
                )
                stage_job.meta |= facts
        save_images(stage_job, images, weights, list(range(len(meta["classes"]))), meta, arrays)


def _coded(
    pictures: Pictures,
    choice: Callable[..., tuple[Tensor, Tensor]],
    cloud: Cloud | None,
    ipc: int,
    settings: SelectSettings,
    stage_job: StageJob,
) -> tuple[Tensor, Tensor, dict[str, np.ndarray]]:
    """Choose images until some do not fit; return those that do [C, M, 3, R, R], their weights [C, M], and their files.

    Raises:
        WmddError: not even the images of an epoch fit, or memory or disk have no room for what they show.
    """
    classes = int(pictures.labels[-1]) + 1
    most = min(map(len, rows_of(pictures.labels, classes, cloud)))
    count = max(ipc, min(most, expected(pictures, ipc, settings.quality, stage_job.meta["identity"]["seed"])))
    while True:
        positions, weights = choice(k=count)
        _check_room("the coded set", positions.numel(), pictures, stage_job.output)
        chosen = stage_job.context.progress(positions, "coding", len(positions), 0, "class")
        images, files = coded((read(pictures, of_class) for of_class in chosen), ipc, settings.quality)
        held = images.shape[1]
        if held < count or count == most:
            break
        count = min(most, 1 + 11 * count // 10)
    if held < ipc:
        raise WmddError(
            f"WebP files of quality {settings.quality} are larger than raw images; lower select.quality, or set codec: none"
        )
    sizes = [len(file) for of_class in files for file in of_class]
    budget, end = 3 * pictures.resolution**2 * ipc * classes, " (all that may be chosen)" if held == most else ""
    print(f"{held} images of each class{end} in {size_text(sum(sizes))}, where {ipc} raw ones have {size_text(budget)}")
    stage_job.meta |= {PER_EPOCH: ipc, "positions": positions[:, :held].tolist()}
    stage_job.meta[CODED] = {
        "format": settings.codec,
        "quality": settings.quality,
        "bytes": sum(sizes),
        "budget": budget,
    }
    arrays: dict[str, np.ndarray] = {
        "files/bytes": np.frombuffer(b"".join(file for of_class in files for file in of_class), np.uint8),
        "files/offsets": np.cumsum([0, *sizes], dtype=np.int64),
    }
    weights = weights[:, :held]
    return images, weights / weights.sum(1, keepdim=True), arrays


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


def _check_room(what: str, count: int, pictures: Pictures, output: Path) -> None:
    """Refuse a set of `count` images that memory or disk has no room for; they are gathered, which takes their size twice."""
    needed = 3 * pictures.resolution**2 * count
    memory, disk = psutil.virtual_memory().available, shutil.disk_usage(output.parent).free
    for times, free, where in (2, memory, "memory"), (1, disk, f"the disk of {output.parent}"):
        if free < times * needed:
            raise WmddError(
                f"{what} is {size_text(needed)} of pixels and takes {size_text(times * needed)} of {where}, "
                f"which has {size_text(free) or 'nothing'} left; make room, or leave this method out"
            )


def _say_what_is_left_out(positions: Tensor, pictures: Pictures) -> None:
    """Say how many images a set of [C, M] positions leaves out, because the smallest class has no more."""
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
