"""The images of a dataset, as far as they are known before it is made: how many, of which side, how they will be stored."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from wmdd.base.errors import WmddError
from wmdd.cost import rates
from wmdd.settings import catalogue
from wmdd.settings.data import DataSettings
from wmdd.workflow.layout import Cell, path_of

NAN = math.nan
DIGITS = {"train": 1438, "val": 359}  # of scikit-learn's 1,797, a fifth of each class validates
SAMPLE = 100  # files whose mean size stands for all
# Of modules that import torch; a test compares them.
RESIDENT_MB = 4096  # wmdd.datasets.loader
PIXELS = 2**32  # wmdd.stages.data


@dataclass(frozen=True)
class Pictures:
    """The images of a dataset: how many in each split, their side (0: not known), bytes of the data file and its kind."""

    train: float
    val: float
    resolution: int
    disk: float
    encoded: bool = False

    def decoded(self, train: float, val: float) -> float:
        """Return how many are decoded when the splits are looked at so often: all, where they are stored as files.

        A split that fits into memory is decoded once.
        """
        splits = ((self.train, train), (self.val, val))
        times = [(1.0 if looks and self.held(count) else looks) * count for count, looks in splits]
        return sum(times) if self.encoded else 0

    def held(self, count: float) -> float:
        """Return the bytes of a split in memory: all of it if it fits (`wmdd.datasets.loader`), else nothing."""
        try:
            most = float(os.environ.get("WMDD_RESIDENT_MB", RESIDENT_MB))
        except ValueError:  # the stages will say so
            most = RESIDENT_MB
        size = 3 * count * self.resolution**2
        return size if size <= most * 2**20 else 0


def pictures(name: str, settings: DataSettings, note: Callable[[str], None] | None) -> Pictures:
    """Return what is known of a dataset: by its data file, if that has these settings; else by settings and table.

    Folders of one's own are listed.

    Args:
        name: of the dataset.
        settings: of its data stage.
        note: is told what is missing; None: no file is looked at, and what is missing is `unknown` in rates.yaml.
    """
    if note and (stored := _stored(Path(path_of("data", Cell(name))), settings)):
        return stored
    train, val, each, side = _stated(settings, "train"), _stated(settings, "val"), _archived(settings), settings.side
    reason = ""
    if note is None:
        unknown = rates.table()["asked"]["unknown"]
        train = unknown["train"] * settings.classes if math.isnan(train) else train
        val = unknown["val"] * settings.classes if math.isnan(val) else val
        side = side or unknown["resolution"]
        each = 3 * side**2 if math.isnan(each) else each
    elif settings.source == "imagefolder":
        try:
            train, val, first, each = _listed(settings)
            side = side or first
        except WmddError as error:
            reason = f" ({str(error).partition(';')[0]})"
    train = min(train, (settings.images_per_class or math.inf) * settings.classes)
    if note and (not side or math.isnan(train + val)):
        note(
            f"{name}: its pictures are not known yet{reason}; make data/{name}.h5, or set data.train_images, "
            "val_images and resolution"
        )
    pixels = (train + val) * 3 * (side or NAN) ** 2
    encoded = pixels > PIXELS if settings.storage == "auto" else settings.storage == "encoded"
    return Pictures(train, val, side, (train + val) * each if encoded else pixels, encoded)


def _stored(path: Path, settings: DataSettings) -> Pictures | None:
    """Return the images of a data file, if it is of these settings."""
    if not path.is_file():
        return None
    from wmdd.artifacts import hdf5

    meta = hdf5.load_meta(path)
    if meta.get("settings") != settings.model_dump(mode="json"):
        return None
    train, val = (sum(meta["counts"][split]) for split in ("train", "val"))
    return Pictures(train, val, meta["resolution"], path.stat().st_size, meta["storage"] == "encoded")


def _stated(settings: DataSettings, split: str) -> float:
    """Return how many images a split has by the settings or the table."""
    entry = catalogue.known(settings.source)
    usual = DIGITS[split] if entry.layout == "digits" else entry.data.get(f"{split}_images", 0)
    return float(getattr(settings, f"{split}_images") or usual or NAN)


def _archived(settings: DataSettings) -> float:
    """Return the mean bytes of a picture in the published archives, of which a dataset may be a part."""
    archives = catalogue.known(settings.source).archives
    if not archives:
        return NAN
    same = [other for other in catalogue.table().values() if other.archives[:1] == archives[:1]]
    count = max(other.data.get("train_images", 0) + other.data["val_images"] for other in same)
    return float(sum(archive.size for archive in archives) / count)


def _listed(settings: DataSettings) -> tuple[float, float, int, float]:
    """List folders of one's own: pictures of both splits, side of the first, mean bytes of the first of each class."""
    from wmdd.datasets.decode import UnreadableError, decode
    from wmdd.datasets.find_images import find

    images, limit = find(settings), settings.images_per_class or math.inf
    sample = [files.read(0) for files in images.train[:SAMPLE]]
    try:
        side = decode(sample[0], 0).pixels.shape[-1]
    except UnreadableError:
        side = 0
    train = sum(min(len(files), limit) for files in images.train)
    return train, sum(map(len, images.val)), side, sum(map(len, sample)) / len(sample)
