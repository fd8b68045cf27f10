"""The commands of the match family (see `wmdd.cli.stages`)."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from wmdd.artifacts import hdf5, hdf5_writer
from wmdd.artifacts.hdf5 import LEARNED, check_classes
from wmdd.base.errors import WmddError
from wmdd.cli.stages import ENGINE, Ipc, Several, _block, _manifest, _save_images, _write_history, app
from wmdd.jobs.job import job
from wmdd.jobs.node_cache import staged
from wmdd.settings.engine import EngineSettings
from wmdd.settings.match import ExpertSettings, MatchSettings

if TYPE_CHECKING:
    from wmdd.networks.context import Context
    from wmdd.stages.match import Matched, Real


@app.command
def expert(
    *,
    data: Path,
    output: Path,
    seed: int,
    threads: int = 1,
    settings: ExpertSettings = ExpertSettings(),
    engine: EngineSettings = ENGINE,
) -> None:
    """Train one expert on the real training set, and keep its parameters after every epoch.

    Args:
        data: of the data stage.
        output: of the trajectory; the history is written beside it.
        seed: the expert's number.
        threads: of the CPU.
        settings: network and optimisation.
        engine: device, precision.
    """
    from wmdd.datasets.loader import opened
    from wmdd.networks import whitening
    from wmdd.stages.expert import train

    about = hdf5.load_meta(data)
    with (
        job("expert", output, [settings], {"data": about["digest"]}, engine, threads, seed=seed) as this,
        opened(near := staged(data), "train", device=this.engine.device) as (pictures, _),
        opened(near, "val", device=this.engine.device) as (val_pictures, _),
    ):
        white = whitening.fit(pictures, about["mean"], about["std"]) if settings.whiten else None
        trajectory, history = train(
            pictures, val_pictures, len(about["classes"]), about["mean"], about["std"], white, settings, seed,
            this.context,
        )  # fmt: skip
        _write_history(output.with_suffix(".csv"), history)
        with hdf5_writer.writing(output) as writer:
            writer.meta = this.meta | _manifest(about) | {"accuracy": {n: history[-1][n] for n in ("top1", "top5")}}
            writer.put("parameters", trajectory.numpy())


@contextmanager
def _experts(
    paths: list[Path], data: dict[str, Any]
) -> Iterator[tuple[Sequence[h5py.Dataset], ExpertSettings, dict[str, str]]]:
    """Open trajectories; yield their rows, the settings that all were trained with, and their digests.

    Raises:
        WmddError: one is of other data, or of another network or training than the first.
    """
    with ExitStack() as files:
        found: list[h5py.Dataset] = []
        metas: list[dict[str, Any]] = []
        for path in paths:
            file = files.enter_context(hdf5.reading(path, "parameters"))
            meta = hdf5.meta_of(file)
            if meta["inputs"]["data"] != data["digest"]:
                raise WmddError(f"{path} was trained on other data; delete it and run the expert stage again")
            if metas and meta["settings"] != metas[0]["settings"]:
                name = next(n for n, v in meta["settings"].items() if v != metas[0]["settings"].get(n))
                raise WmddError(
                    f"{path} has {name} {meta['settings'][name]}, but {paths[0]} has {metas[0]['settings'].get(name)}; give "
                    "experts of one kind"
                )
            check_classes(data["classes"], meta["classes"], "the data", str(path))
            found.append(file["parameters"])
            metas.append(meta)
        known = {n: v for n, v in metas[0]["settings"].items() if n in ExpertSettings.model_fields}
        yield found, ExpertSettings(**known), {f"expert{i}": meta["digest"] for i, meta in enumerate(metas)}


@app.command
def match(
    *,
    data: Path,
    output: Path,
    block: str,
    ipc: Ipc,
    seed: int,
    experts: Several | None = None,
    threads: int = 1,
    settings: MatchSettings = MatchSettings(),
    engine: EngineSettings = ENGINE,
) -> None:
    """Optimise the images of a block of classes until networks behave on them as on real ones (DM, DataDAM, MTT).

    Args:
        data: of the data stage.
        output: of the images.
        block: of classes, as in classes0-4; for the objective mtt all of them.
        ipc: images per class.
        seed: of the distillation.
        experts: trajectories of the expert stage, for the objective mtt.
        threads: of the CPU.
        settings: the objective and its optimisation.
        engine: device, precision.
    """
    import torch

    from wmdd.datasets.loader import opened
    from wmdd.stages.match import real

    about = hdf5.load_meta(data)
    wanted = _block(block, about["classes"])
    follows = settings.objective == "mtt"
    if follows != bool(experts):
        raise WmddError(
            f"match with objective {settings.objective} takes {'' if follows else 'no '}--experts; make them agree"
        )
    if follows and len(wanted) != len(about["classes"]):
        raise WmddError(f"mtt does not separate by class: give all of them, classes0-{len(about['classes']) - 1}")
    inputs = {"data": about["digest"]}
    with ExitStack() as files:
        rows, trained, digests = files.enter_context(_experts(experts, about)) if experts else ([], None, {})
        this = files.enter_context(
            job("match", output, [settings], inputs | digests, engine, threads, block=block, ipc=ipc, seed=seed)
        )
        pictures, _ = files.enter_context(opened(staged(data), "train", once=follows, device=this.engine.device))
        begun = ipc if settings.init == "real" else 1  # images of each class that it begins with
        least = begun if follows else max(begun, settings.real_batch)
        remedy = "lower match.real_batch" if least > begun else "take fewer images per class, or init: noise"
        found = real(pictures, list(wanted), about["names"], least, remedy)
        made = _matched(found, ipc, about, rows, trained, settings, seed, this.context)
        more = {} if made.rate is None else {"student_lr": made.rate}
        learned = {} if made.labels is None else {LEARNED: made.labels.numpy().astype(np.float32)}
        weights = torch.full((len(wanted), ipc), 1 / ipc)
        _save_images(this, made.images, weights, list(wanted), about, learned, more)


def _matched(
    found: "Real",
    k: int,
    about: dict[str, Any],
    rows: Sequence[h5py.Dataset],
    trained: ExpertSettings | None,
    settings: MatchSettings,
    seed: int,
    context: "Context",
) -> "Matched":
    classes, mean, std = len(about["classes"]), about["mean"], about["std"]
    if trained is None:
        from wmdd.stages.match.distributions import match as run

        return run(found, classes, k, mean, std, settings, seed, context)
    from wmdd.networks import whitening
    from wmdd.stages.match.trajectories import match as follow

    white = whitening.fit(found.pictures, mean, std) if trained.whiten else None
    return follow(found, classes, k, mean, std, rows, trained, white, settings, seed, context)
