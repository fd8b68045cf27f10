"""What several commands read: networks, statistics and parts of artifacts; and whether artifacts belong together."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wmdd.artifacts import hdf5
from wmdd.artifacts.atomic_files import read_json
from wmdd.base.errors import WmddError
from wmdd.jobs.job import cost_path
from wmdd.jobs.node_cache import staged
from wmdd.settings.network import NetworkSettings

if TYPE_CHECKING:
    import h5py
    import numpy as np
    from torch import Tensor

    from wmdd.datasets.loader import Pictures
    from wmdd.networks.batchnorm import Statistics
    from wmdd.networks.engine import Engine
    from wmdd.networks.models import Network
    from wmdd.stages.point_clouds import Cloud

Meta = dict[str, Any]


def data_facts(meta: Meta) -> Meta:
    """Return what every artifact says of the data it comes from."""
    grey = {"grey": True} if meta.get("grey") else {}
    return {name: meta[name] for name in ("classes", "names", "resolution", "mean", "std")} | grey


def numbered(metas: Iterable[Meta]) -> dict[str, str]:
    """Return the digests of inputs that have no name but their number."""
    return {str(number): meta["digest"] for number, meta in enumerate(metas)}


def read_meta(path: Path) -> Meta:
    """Read what an artifact says of itself: HDF5 or safetensors."""
    from wmdd.artifacts.model_files import load_model

    return load_model(path)[1] if path.suffix == ".safetensors" else hdf5.load_meta(path)


def block_classes(block: str, classes: list[str]) -> range:
    """Return the classes of a block named `classes{first}-{last}`.

    Raises:
        WmddError: the classes have no such block.
    """
    match = re.fullmatch(r"classes(\d+)-(\d+)", block)
    if match is None or not int(match[1]) <= int(match[2]) < len(classes):
        raise WmddError(f"there is no block {block!r}; name the classes as in classes0-{len(classes) - 1}")
    return range(int(match[1]), int(match[2]) + 1)


def class_rows(labels: "Tensor", classes: range | None) -> tuple[int, int]:
    """Return where the rows of some classes (None: all) begin and end in labels [N] that are sorted by class."""
    if classes is None:
        return 0, len(labels)
    return int((labels < classes.start).sum()), int((labels < classes.stop).sum())


@contextmanager
def both_splits(data: Path, engine: "Engine") -> "Iterator[tuple[Pictures, Pictures]]":
    """Open the training and the validation pictures of a dataset, copied to this node where it has scratch space."""
    from wmdd.datasets.loader import opened

    near = staged(data)
    with (
        opened(near, "train", device=engine.device) as (train, _),
        opened(near, "val", device=engine.device) as (val, _),
    ):
        yield train, val


def read_teacher(path: Path) -> "tuple[Network, Meta]":
    """Read a teacher with its meta data."""
    from wmdd.artifacts.model_files import load_model
    from wmdd.networks.state_dicts import restore

    state, meta = load_model(path)
    settings = NetworkSettings(**{k: v for k, v in meta["settings"].items() if k in NetworkSettings.model_fields})
    return restore(settings, state, len(meta["classes"]), meta["resolution"], str(path)), meta


def check_teacher(path: Path, meta: Meta, teacher: Path, teacher_meta: Meta) -> None:
    """Refuse features, or statistics, of another teacher.

    Raises:
        WmddError: names both files.
    """
    if meta["inputs"]["teacher"] != teacher_meta["digest"]:
        raise WmddError(f"{path} is of another teacher than {teacher}; run the features stage again")


@contextmanager
def reading_features(path: Path, teacher: Path, teacher_meta: Meta) -> "Iterator[tuple[h5py.File, Meta]]":
    """Open the features of a teacher; yield the file, which has `features` [N, D] and `labels` [N], and its meta data."""
    with hdf5.reading(path, "features", "labels") as file:
        meta = hdf5.meta_of(file)
        check_teacher(path, meta, teacher, teacher_meta)
        yield file, meta


def read_statistics(path: Path, classes: range) -> "Statistics":
    """Read the BatchNorm statistics of some classes, [C, channels] a layer, in the network's order of layers."""
    import torch

    from wmdd.networks.batchnorm import Statistics

    with hdf5.reading(path) as file:
        layers = hdf5.meta_of(file)["layers"]
        mean, variance = (
            {name: torch.from_numpy(file[f"{kind}/{name}"][classes.start : classes.stop]) for name in layers}
            for kind in ("mean", "variance")
        )
    return Statistics(mean, variance)


def confident_points(
    cloud: "Cloud", meta: Meta, path: Path, teacher: Path | None, share: float
) -> "tuple[Cloud, dict[str, str]]":
    """Return the features that count, and the digest of the teacher that chooses them where not all do.

    `meta` and `path` are those of the features; `share` is the part of each class of which the teacher is most confident.
    """
    from wmdd.artifacts.model_files import load_model
    from wmdd.stages.point_clouds import Confident

    if share >= 1:
        return cloud, {}
    if teacher is None:
        raise WmddError(f"with confident {share:g} give the --teacher whose features {path} has, or set confident: 1")
    state, teacher_meta = load_model(teacher)
    if meta.get("inputs", {}).get("teacher") != teacher_meta["digest"]:
        raise WmddError(f"{path} has no features of {teacher}; run the features stage again")
    return Confident(cloud, state["head.weight"], state["head.bias"], share), {"teacher": teacher_meta["digest"]}


def read_quality(path: Path) -> "tuple[dict[str, np.ndarray], list[float]]":
    """Read how good the barycenters of a block are, and the seconds of each from the cost file beside it."""
    with hdf5.reading(path) as file:
        if "quality" not in file:
            raise WmddError(f"{path} lacks the quality of its barycenters; delete it and run again to rebuild it")
        quality = {name: values[()] for name, values in file["quality"].items()}
    return quality, read_json(cost_path(path)).get("seconds_per_class", [float("nan")])
