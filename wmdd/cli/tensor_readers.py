"""What several commands read to compute with: pictures, teachers, statistics, the features that count."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from wmdd.artifacts import hdf5
from wmdd.artifacts.hdf5 import Meta, check_classes
from wmdd.artifacts.model_files import load_model
from wmdd.base.errors import WmddError
from wmdd.datasets.loader import Pictures, opened
from wmdd.jobs.node_cache import staged
from wmdd.networks.batchnorm import Statistics
from wmdd.networks.engine import Engine
from wmdd.networks.models import Network
from wmdd.networks.state_dicts import restore
from wmdd.settings.base import StartSettings
from wmdd.settings.network import NetworkSettings
from wmdd.stages.point_clouds import Cloud, Confident


def class_rows(labels: Tensor, classes: range | None) -> tuple[int, int]:
    """Return where the rows of some classes (None: all) begin and end in labels [N] that are sorted by class."""
    if classes is None:
        return 0, len(labels)
    return int((labels < classes.start).sum()), int((labels < classes.stop).sum())


@contextmanager
def both_splits(data: Path, engine: Engine) -> Iterator[tuple[Pictures, Pictures]]:
    """Open the training and the validation pictures of a dataset, copied to this node where it has scratch space."""
    near = staged(data)
    with (
        opened(near, "train", device=engine.device) as (train, _),
        opened(near, "val", device=engine.device) as (val, _),
    ):
        yield train, val


def read_teacher(path: Path) -> tuple[Network, Meta]:
    """Read a teacher with its meta data."""
    state, meta = load_model(path)
    return restore(network_settings(meta), state, len(meta["classes"]), meta["resolution"], str(path)), meta


def network_settings(meta: Meta) -> NetworkSettings:
    """Return the network that the meta data of a teacher name."""
    return NetworkSettings(**{k: v for k, v in meta["settings"].items() if k in NetworkSettings.model_fields})


def read_start(path: Path, facts: Meta, classes: range, ipc: int) -> tuple[Tensor, Meta]:
    """Read the images [C, K, 3, R, R] of some classes that others begin with, and the meta data of their file.

    Args:
        path: of a distilled set.
        facts: meta data with the classes and the resolution that are needed.
        classes: of the block.
        ipc: images per class that are needed.

    Raises:
        WmddError: the set has other classes, another number of images or another size.
    """
    with hdf5.reading(path, "images") as file:
        meta = file.meta
        check_classes(facts["classes"], meta["classes"], str(facts.path), str(path))
        if file["images"].shape[1] != ipc or meta["resolution"] != facts["resolution"]:
            raise WmddError(
                f"{path} has {file['images'].shape[1]} images per class of {meta['resolution']} px, but {ipc} of "
                f"{facts['resolution']} px are to begin with; rebuild it"
            )
        return torch.from_numpy(file["images"][classes.start : classes.stop]), meta


def check_start(stage: str, settings: StartSettings, start: Path | None) -> None:
    """Refuse images to begin with that the settings do not name, or the lack of such.

    Raises:
        WmddError: they do not agree.
    """
    if bool(settings.start) != (start is not None):
        raise WmddError(f"{stage} with init {settings.init} takes {'no ' if start else ''}--start; make them agree")


def read_statistics(path: Path, classes: range) -> Statistics:
    """Read the BatchNorm statistics of some classes, [C, channels] a layer, in the network's order of layers."""
    with hdf5.reading(path) as file:
        layers = file.meta["layers"]
        mean, variance = (
            {name: torch.from_numpy(file[f"{kind}/{name}"][classes.start : classes.stop]) for name in layers}
            for kind in ("mean", "variance")
        )
    return Statistics(mean, variance)


def confident_points(
    cloud: Cloud, meta: Meta, path: Path, teacher: Path | None, share: float, always: bool = False
) -> tuple[Cloud, dict[str, Meta]]:
    """Return the features that count, and the meta data of the teacher that chooses them where not all do.

    `meta` and `path` are those of the features; `share` is the part of each class of which the teacher is most confident.
    With `always` they know the teacher's losses even if all count.
    """
    if share >= 1 and not always:
        return cloud, {}
    if teacher is None:
        raise WmddError(f"with confident {share:g} give the --teacher whose features {path} has, or set confident: 1")
    state, teacher_meta = load_model(teacher)
    if meta.get("inputs", {}).get("teacher") != teacher_meta["digest"]:
        raise WmddError(f"{path} has no features of {teacher}; run the features stage again")
    return Confident(cloud, state["head.weight"], state["head.bias"], share), {"teacher": teacher_meta}
