"""Data: raw pictures become uint8 pixels [N, 3, R, R], or the files' own bytes, sorted by class, in one pass.

Each picture is read and decoded once, checked, and written; memory does not grow with their number.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from importlib.metadata import distribution
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.nn.functional import interpolate

from wmdd.artifacts.hdf5_writer import Writer
from wmdd.base.errors import WmddError
from wmdd.base.progress import progress
from wmdd.base.rng import generator
from wmdd.base.threads import in_order
from wmdd.datasets import cifar
from wmdd.datasets.class_files import ClassFiles
from wmdd.datasets.decode import Decoded, UnreadableError, decode
from wmdd.datasets.find_images import DatasetFiles, find
from wmdd.settings.catalogue import known
from wmdd.settings.data import DataSettings
from wmdd.stages.data_summary import SPLITS, Tally, summary

PIXELS = 2**32  # bytes; `storage: auto` keeps datasets up to this size as pixels, so that they are decoded once for all
PIECE = 64  # pictures that are written at once


def pack(settings: DataSettings, writer: Writer, seed: int = 0) -> dict[str, Any]:
    """Read the raw pictures of a dataset once and write them; return what a reader needs beside the arrays.

    For each split S the arrays are `S/labels` [N] int64 and `S/images` [N, 3, R, R] uint8, or in place of the images
    `S/bytes`, `S/offsets` [N + 1] (file i is `bytes[offsets[i]:offsets[i + 1]]`) and `S/plain` [N] (see
    `wmdd.datasets.decode.decode_plain`). `seed` matters only where the source has no split of its own (digits), or its
    validation set is left aside (`held_out`).

    Raises:
        WmddError: something is missing, unreadable or does not fit the settings; the message names it.
    """
    layout = known(settings.source).layout
    if layout == "digits":
        return _pack_arrays(settings, writer, seed, *digits(seed))
    if layout == "cifar":
        return _pack_arrays(settings, writer, seed, *cifar.read(settings))
    return _pack_files(settings, writer, seed, find(settings))


def _pack_files(settings: DataSettings, writer: Writer, seed: int, listing: DatasetFiles) -> dict[str, Any]:
    limit = settings.images_per_class or None
    _check_count(listing.classes, settings, str(listing.root))
    count = {"train": sum(map(len, listing.train)), "val": sum(map(len, listing.val))}
    _check_images(settings, count, str(listing.root))
    if settings.held_out:
        apart = [
            [files.at(positions.tolist()) for positions in _apart(len(files), settings, seed, label, listing.classes)]
            for label, files in enumerate(listing.train)
        ]
        listing = replace(listing, train=[kept for kept, _ in apart], val=[held for _, held in apart], val_folder="")
        count["val"] = sum(map(len, listing.val))
    count["train"] = sum(min(len(files), limit or len(files)) for files in listing.train)
    reader = _Reader(settings, listing)
    size = sum(count.values()) * 3 * reader.side() ** 2
    encoded = _is_encoded(settings, size)
    if not encoded:
        writer.reserve(size)
    tallies = {}
    for split, classes in zip(SPLITS, (listing.train, listing.val), strict=True):
        tally = tallies[split] = Tally()
        pictures = reader.read(classes, tally, limit if split == "train" else None)
        pictures = progress(pictures, f"reading {split}", count[split], unit="img")
        _write_split(writer, split, tally, pictures, encoded)
    meta = {"classes": listing.classes, "names": listing.names, "val_folder": listing.val_folder}
    meta |= {"variant": _variant(listing.variant, settings), "other_formats": list(listing.other_formats)}
    return meta | summary(settings, tallies, reader.resolution, encoded)


Picture = tuple[int, bytes, Decoded]  # label, file, pixels


def _write_split(writer: Writer, split: str, tally: Tally, pictures: Iterable[Picture], encoded: bool) -> None:
    """Write a split as it comes."""
    offsets, plain = array("q", [0]), array("b")
    pieces = iter(pictures)
    while piece := list(islice(pieces, PIECE)):
        for label, data, decoded in piece:
            tally.add(label, decoded.pixels, data)
            offsets.append(offsets[-1] + len(data))
            plain.append(decoded.plain)
        if encoded:
            writer.append(f"{split}/bytes", np.frombuffer(b"".join(data for _, data, _ in piece), np.uint8))
        else:
            writer.append(f"{split}/images", np.stack([decoded.pixels for *_, decoded in piece]))
    writer.put(f"{split}/labels", np.array(tally.labels, np.int64))
    if encoded:
        writer.put(f"{split}/offsets", np.array(offsets, np.int64))
        writer.put(f"{split}/plain", np.array(plain, bool))


class _Reader:
    """Reads and decodes the pictures of splits, each once; carries over from one split to the next what they share."""

    def __init__(self, settings: DataSettings, listing: DatasetFiles) -> None:
        self.settings, self.root, self._first = settings, listing.root, listing.train[0]
        self.resolution = settings.resolution  # when 0: that of the first picture

    def read(self, classes: Sequence[ClassFiles], tally: Tally, limit: int | None) -> Iterator[Picture]:
        """Yield the first `limit` readable pictures of each class, None: all."""
        for label, files in enumerate(classes):
            nothing = True
            for data, decoded in islice(self._readable(files, tally), limit):
                nothing = False
                yield label, data, decoded
            if nothing:
                raise WmddError(
                    f"none of the {len(files)} pictures of class {label}, the first of which is {files.name(0)!r}, can be "
                    f"read in {self.root}; replace them, or delete the class in both splits"
                )

    def side(self) -> int:
        """Return the side that the pictures will have: as is set, or that of the first that can be read."""
        if self.settings.resolution:
            return self.settings.resolution
        for index in range(len(self._first)):
            try:
                return decode(self._first.read(index), 0).pixels.shape[-1]
            except UnreadableError:
                continue
        return 1

    def _readable(self, files: ClassFiles, tally: Tally) -> Iterator[tuple[bytes, Decoded]]:
        def opened(index: int) -> tuple[bytes, Decoded]:
            data = files.read(index)
            return data, decode(data, self.settings.resolution)

        for index, done in in_order(opened, range(len(files))):
            name = files.name(index)
            try:
                data, decoded = done.result()
            except UnreadableError as error:
                if self.settings.on_corrupt == "error":
                    remedy = "replace it, or set data.on_corrupt to skip"
                    raise WmddError(f"cannot read the picture {self.root / name} ({error}); {remedy}") from None
                tally.skipped.append(name)
                continue
            self._check_size(decoded, name)
            tally.note(decoded, name, self.resolution)
            yield data, decoded

    def _check_size(self, decoded: Decoded, name: str) -> None:
        _, height, width = decoded.pixels.shape
        side = self.resolution = self.resolution or width
        if (height, width) != (side, side):
            fault = "is not square" if height != width else f"differs from the first, {side} x {side}"
            remedy = "set data.resolution to the side that all shall have"
            raise WmddError(f"{self.root / name} ({width} x {height}) {fault}; {remedy}")


def _is_encoded(settings: DataSettings, size: int) -> bool:
    """Return whether to store the files themselves, which `auto` does with datasets of many bytes of pixels."""
    return size > PIXELS if settings.storage == "auto" else settings.storage == "encoded"


def _apart(
    count: int, settings: DataSettings, seed: int, label: int, classes: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Divide the training pictures of a class: the positions of those that train, and of those that validate, drawn by `seed`.

    Raises:
        WmddError: none would be left on one side.
    """
    held = round(settings.held_out * count)
    if not 0 < held < count:
        raise WmddError(
            f"class {classes[label]!r} has {count} training pictures, of which data.held_out {settings.held_out:g} would take "
            f"{held}; add pictures, or choose another share"
        )
    order = torch.randperm(count, generator=generator("data", "split", seed, label)).numpy()
    return np.sort(order[held:]), np.sort(order[:held])


def _variant(name: str, settings: DataSettings) -> str:
    share = f"{100 * settings.held_out:g} % of the training pictures"
    return f"{name}, validated on {share}" if settings.held_out else name


def _pack_arrays(
    settings: DataSettings, writer: Writer, seed: int, train: cifar.Arrays, val: cifar.Arrays, classes: list[str]
) -> dict[str, Any]:
    """Pack labels [N] and images [N, 3, h, w] in 0..255, in any order."""
    _check_count(classes, settings, settings.source)
    _check_images(settings, {"train": len(train[0]), "val": len(val[0])}, settings.source)
    if settings.storage == "encoded":
        raise WmddError(f"{settings.source} has no picture files to store; set data.storage to auto or pixels")
    if settings.held_out:
        labels, images = train
        rows_of_classes = [np.flatnonzero(labels == label) for label in range(len(classes))]
        apart = [
            [rows[positions] for positions in _apart(len(rows), settings, seed, label, classes)]
            for label, rows in enumerate(rows_of_classes)
        ]
        train, val = ((labels[rows], images[rows]) for rows in map(np.concatenate, zip(*apart, strict=True)))
    side = settings.resolution or 32  # CIFAR's own; digits are enlarged to it
    tallies = {}
    for split, arrays, limit in zip(SPLITS, (train, val), (settings.images_per_class or None, None), strict=True):
        tally = tallies[split] = Tally()
        for labels, images in _arranged(*arrays, limit, side):
            for label, image in zip(labels.tolist(), images, strict=True):
                tally.add(label, image, image.tobytes())
            writer.append(f"{split}/images", images)
        writer.put(f"{split}/labels", np.array(tally.labels, np.int64))
    val_folder = "" if settings.source == "digits" or settings.held_out else "test"
    variant = _variant(known(settings.source).title, settings)
    meta = {"classes": classes, "names": classes, "val_folder": val_folder, "variant": variant}
    return meta | summary(settings, tallies, side, False)


def _arranged(labels: np.ndarray, images: np.ndarray, limit: int | None, side: int) -> Iterator[cifar.Arrays]:
    """Sort by class, keep the first `limit` of each, and resample to uint8 (bilinear, antialiased)."""
    order = np.concatenate([np.flatnonzero(labels == label)[:limit] for label in range(labels.max() + 1)])
    for start in range(0, len(order), 256):  # all of them as floats might not fit
        index = order[start : start + 256]
        part = torch.from_numpy(images[index]).float()
        resampled = interpolate(part, (side, side), mode="bilinear", antialias=True).round().clamp(0, 255).byte()
        yield labels[index].astype(np.int64), resampled.numpy()


def digits(seed: int) -> tuple[cifar.Arrays, cifar.Arrays, list[str]]:
    """Read scikit-learn's digits, 8 px and 0..16; a fifth of each class, drawn by `seed`, validates."""
    file = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")  # its import takes a second
    rows = np.loadtxt(str(file), delimiter=",")
    images, labels = rows[:, :-1], rows[:, -1].astype(int)
    images = images.reshape(-1, 1, 8, 8).repeat(3, axis=1) * (255 / 16)
    held_out = np.zeros(len(labels), bool)
    for label in range(10):
        members = np.flatnonzero(labels == label)
        order = torch.randperm(len(members), generator=generator("data", "split", seed, label)).numpy()
        held_out[members[order[: round(len(members) / 5)]]] = True
    return (labels[~held_out], images[~held_out]), (labels[held_out], images[held_out]), list("0123456789")


def _check_count(classes: list[str], settings: DataSettings, where: str) -> None:
    if len(classes) != settings.classes:
        remedy = f"set it to {len(classes)} or correct the data"
        raise WmddError(f"{where} has {len(classes)} classes but data.classes is {settings.classes}; {remedy}")


def _check_images(settings: DataSettings, listed: dict[str, int], where: str) -> None:
    """Refuse another variant of a dataset under its name."""
    for split, expected in (("train", settings.train_images), ("val", settings.val_images)):
        if expected and listed[split] != expected:
            raise WmddError(
                f"{where} has {listed[split]} {split} pictures but {settings.source} has {expected}; complete them, name "
                f"the dataset that it is, or set data.{split}_images to {listed[split]} (0: any number)"
            )
