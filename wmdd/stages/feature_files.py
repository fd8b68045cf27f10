"""Files of features: shards of a pass, kept while it goes on (`wmdd.artifacts.partial_output`), and parts of several jobs.

A shard and a part are the same kind of file: `features` [n, D], `labels` [n], and of the classes in it `moments/classes` [c],
`moments/count` [c] and `moments/sums` [c, 2, all channels] (see `wmdd.networks.batchnorm.ClassMoments`).
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from wmdd.artifacts import hdf5, hdf5_writer
from wmdd.artifacts.partial_output import Pieces
from wmdd.base.errors import WmddError
from wmdd.networks.batchnorm import ClassMoments, statistics_of
from wmdd.stages.features import Shard

ROWS = 4096  # that are copied at once


def keep(pieces: Pieces, shard: Shard, seconds: float = 0.0) -> None:
    """Keep a shard, with the seconds that were spent on all up to it."""
    moments = shard.moments
    arrays = {
        "features": shard.features.numpy(),
        "labels": shard.labels.numpy(),
        "moments/classes": np.array(list(moments.count)),
        "moments/count": np.array(list(moments.count.values())),
        "moments/sums": torch.stack(list(moments.sums.values())).numpy(),
    }
    pieces.add(shard.first, len(shard.labels), arrays, seconds, widths=list(moments.widths.items()))


def taken_up(pieces: Pieces) -> tuple[int, ClassMoments | None]:
    """Return where an earlier job was: the position behind what it had done, and the moments of the class it was at."""
    stop = pieces.restore()
    if not pieces.files:
        return stop, None
    with hdf5.reading(pieces.files[-1], "moments/classes", "moments/count", "moments/sums") as file:
        classes, count = (file[f"moments/{name}"][()].tolist() for name in ("classes", "count"))
        sums = dict(zip(classes, torch.from_numpy(file["moments/sums"][()]), strict=True))
        widths = dict(file.meta["widths"])
    return stop, ClassMoments(dict(zip(classes, count, strict=True)), sums, widths).last()


def join_features(files: list[Path], output: Path, meta: dict[str, Any]) -> None:
    """Write `features` [N, D] and `labels` [N] of files that follow each other."""
    with hdf5_writer.writing(output) as writer:
        writer.meta = meta
        copy_rows(files, writer)


def join_statistics(files: list[Path], output: Path, meta: dict[str, Any], classes: int) -> None:
    """Write mean and variance of each class and layer, [C, ch] float64, and the number of images [C].

    Raises:
        WmddError: a class is in none of the files.
    """
    widths = hdf5.load_meta(files[0])["widths"]
    count = _by_class(files, "moments/count", classes)
    if missing := np.flatnonzero(count == 0).tolist():
        raise WmddError(f"no features of the classes {missing[:3]} of {classes}; run the features stage for them")
    with hdf5_writer.writing(output) as writer:
        writer.meta = meta | {"layers": [layer for layer, _ in widths]}
        writer.put("count", count)
        of_batches, start = meta.get("settings", {}).get("variance") == "batches", 0
        for layer, width in widths:
            sums = _by_class(files, "moments/sums", classes, np.s_[:, :, start : start + width])
            mean, variance = statistics_of(torch.from_numpy(sums), torch.from_numpy(count), of_batches)
            writer.put(f"mean/{layer}", mean.numpy())
            writer.put(f"variance/{layer}", variance.numpy())
            start += width


def join_part(files: list[Path], output: Path, meta: dict[str, Any], classes: int) -> None:
    """Write the shards of a job that made some of the classes as one file of their kind."""
    count = _by_class(files, "moments/count", classes)
    part = np.flatnonzero(count)
    with hdf5_writer.writing(output) as writer:
        writer.meta = meta | {"widths": hdf5.load_meta(files[0])["widths"]}
        copy_rows(files, writer)
        writer.put("moments/classes", part)
        writer.put("moments/count", count[part])
        writer.put("moments/sums", _by_class(files, "moments/sums", classes)[part])


def check_parts(files: list[Path], classes: int) -> None:
    """Refuse parts that do not hold every class once and in order, which the rows of the joined file must be in.

    Raises:
        WmddError: says which part does not follow.
    """
    expected = 0
    for path in files:
        with hdf5.reading(path, "moments/classes") as file:
            part = file["moments/classes"][()].tolist()
        if part != list(range(expected, expected + len(part))):
            raise WmddError(
                f"{path} has the classes {part[0]}..{part[-1]} where class {expected} follows; give all parts in order"
            )
        expected += len(part)
    if expected != classes:
        raise WmddError(f"the parts end before class {expected} of {classes}; give all of them, in order")


def copy_rows(files: list[Path], writer: hdf5_writer.Writer, names: tuple[str, ...] = ("features", "labels")) -> None:
    """Copy arrays, one after the other, so that the bytes do not depend on how the files are cut."""
    for name in names:
        for path in files:
            with hdf5.reading(path) as file:
                for start in range(0, len(file[name]), ROWS):
                    writer.append(name, file[name][start : start + ROWS])


def _by_class(files: list[Path], name: str, classes: int, part: Any = ()) -> np.ndarray:
    """Return [C, ...]: of each class what the last file says that has it."""
    whole: np.ndarray | None = None
    for path in files:
        with hdf5.reading(path) as file:
            rows = file[name][part]
            whole = np.zeros((classes, *rows.shape[1:]), rows.dtype) if whole is None else whole
            whole[file["moments/classes"][()]] = rows
    assert whole is not None
    return whole
