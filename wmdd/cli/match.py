"""The commands of the match family: experts, and images on which networks behave as on real ones."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wmdd.artifacts import hdf5, hdf5_writer
from wmdd.artifacts.hdf5 import LEARNED, check_classes
from wmdd.base.errors import WmddError
from wmdd.cli.arguments import ENGINE, Block, Data, Ipc, Paths, Seed, Threads, command
from wmdd.cli.readers import block_classes, data_facts
from wmdd.cli.tensor_readers import both_splits, check_start, read_start
from wmdd.cli.writers import save_history, save_images
from wmdd.datasets.loader import opened
from wmdd.jobs.job import job
from wmdd.jobs.node_cache import staged
from wmdd.networks import whitening
from wmdd.networks.context import Context
from wmdd.networks.normalisation import Normalisation
from wmdd.settings.engine import EngineSettings
from wmdd.settings.match import ExpertSettings, MatchSettings
from wmdd.stages.expert import train
from wmdd.stages.match import Matched, Real, distributions, real
from wmdd.stages.match import trajectories as following


@command
def expert(
    *,
    data: Data,
    output: Path,
    seed: int,
    threads: Threads = 1,
    settings: ExpertSettings = ExpertSettings(),
    engine: EngineSettings = ENGINE,
) -> None:
    """Train one expert on the real training set, and keep its parameters after every epoch.

    Args:
        output: of the trajectory; the history is written beside it.
        seed: the expert's number.
    """
    meta = hdf5.load_meta(data)
    with (
        job("expert", output, [settings], {"data": meta}, engine, threads, seed=seed) as stage_job,
        both_splits(data, stage_job.engine) as (pictures, val_pictures),
    ):
        normalisation = Normalisation.of(meta)
        white = whitening.fit(pictures, normalisation) if settings.whiten else None
        trajectory, history = train(
            pictures, val_pictures, len(meta["classes"]), normalisation, white, settings, seed, stage_job.context
        )
        save_history(output, history)
        accuracy = {name: history[-1][name] for name in ("top1", "top5")}
        with hdf5_writer.writing(output) as writer:
            writer.meta = stage_job.meta | data_facts(meta) | {"accuracy": accuracy}
            writer.put("parameters", trajectory.numpy())


@contextmanager
def _experts(
    paths: list[Path], data: dict[str, Any]
) -> Iterator[tuple[Sequence[hdf5.Array], ExpertSettings, dict[str, hdf5.Meta]]]:
    """Open trajectories; yield their rows, the settings that all were trained with, and the meta data of each.

    Raises:
        WmddError: one is of other classes, or of another network or training than the first.
    """
    with ExitStack() as files:
        trajectories, metas = list[hdf5.Array](), list[hdf5.Meta]()
        for path in paths:
            file = files.enter_context(hdf5.reading(path, "parameters"))
            meta = file.meta
            metas.append(meta)
            settings, shared = meta["settings"], metas[0]["settings"]
            if settings != shared:
                name = next(name for name, value in settings.items() if value != shared.get(name))
                raise WmddError(
                    f"{path} has {name} {settings[name]}, but {paths[0]} has {shared.get(name)}; give experts of one kind"
                )
            check_classes(data["classes"], meta["classes"], "the data", str(path))
            trajectories.append(file["parameters"])
        known = {name: value for name, value in shared.items() if name in ExpertSettings.model_fields}
        yield trajectories, ExpertSettings(**known), {f"expert{i}": meta for i, meta in enumerate(metas)}


@command
def match(
    *,
    data: Data,
    output: Path,
    block: Block,
    ipc: Ipc,
    seed: Seed,
    experts: Paths | None = None,
    start: Path | None = None,
    threads: Threads = 1,
    settings: MatchSettings = MatchSettings(),
    engine: EngineSettings = ENGINE,
) -> None:
    """Optimise the images of a block of classes until networks behave on them as on real ones (DM, DataDAM, MTT).

    Args:
        output: of the images.
        block: of classes, as in classes0-4; for the objective mtt all of them.
        experts: trajectories of the expert stage, for the objective mtt.
        start: a distilled set to begin with, where `init` names a method.
    """
    meta = hdf5.load_meta(data)
    classes = block_classes(block, meta["classes"])
    follows = settings.objective == "mtt"
    if follows != bool(experts):
        raise WmddError(
            f"match with objective {settings.objective} takes {'' if follows else 'no '}--experts; make them agree"
        )
    if follows and len(classes) != len(meta["classes"]):
        raise WmddError(f"mtt does not separate by class: give all of them, classes0-{len(meta['classes']) - 1}")
    check_start("match", settings, start)
    with ExitStack() as files:
        trajectories, trained, expert_metas = (
            files.enter_context(_experts(experts, meta)) if experts else ([], None, {})
        )
        inputs, begun = {"data": meta} | expert_metas, None
        if start is not None:
            begun, inputs["start"] = read_start(start, meta, classes, ipc)
        stage_job = files.enter_context(
            job("match", output, [settings], inputs, engine, threads, block=block, ipc=ipc, seed=seed)
        )
        pictures, _ = files.enter_context(opened(staged(data), "train", once=follows, device=stage_job.engine.device))
        initial = ipc if settings.init == "real" else 1  # real images of each class that it begins with
        least = initial if follows else max(initial, settings.real_batch)
        remedy = "lower match.real_batch" if least > initial else "take fewer images per class, or init: noise"
        real_images = real(pictures, list(classes), meta["names"], least, remedy, begun)
        matched = _match(real_images, ipc, meta, trajectories, trained, settings, seed, stage_job.context)
        rate = {} if matched.rate is None else {"student_lr": matched.rate}
        learned = {} if matched.labels is None else {LEARNED: matched.labels.numpy().astype(np.float32)}
        weights = torch.full((len(classes), ipc), 1 / ipc)
        save_images(stage_job, matched.images, weights, list(classes), meta, learned, rate)


def _match(
    real_images: Real,
    k: int,
    meta: dict[str, Any],
    trajectories: Sequence[hdf5.Array],
    trained: ExpertSettings | None,
    settings: MatchSettings,
    seed: int,
    context: Context,
) -> Matched:
    """Match the distributions of features, or trajectories where experts were trained."""
    classes, normalisation = len(meta["classes"]), Normalisation.of(meta)
    if trained is None:
        return distributions.match(real_images, classes, k, normalisation, settings, seed, context)
    white = whitening.fit(real_images.pictures, normalisation) if trained.whiten else None
    return following.match(
        real_images, classes, k, normalisation, trajectories, trained, white, settings, seed, context
    )
