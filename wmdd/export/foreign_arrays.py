"""Sets as arrays of NumPy or in any HDF5 file. Nothing is unpickled, and no array may claim more than its file can hold."""

import math
import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from wmdd.base.errors import WmddError
from wmdd.export.foreign_content import GET_AGAIN, Content, check_claim, check_number, chosen, content_of, readable

_Header = tuple[tuple[int, ...], np.dtype]


def read_arrays(path: Path, most: int) -> Content:
    """Read a set from an .npz file, or from an .npy file of images with its labels beside it (images.npy, labels.npy).

    Raises:
        WmddError: it is damaged, has Python objects, lacks images, or claims more than it holds.
    """
    if path.suffix == ".npy":
        return _read_pair(path, most)
    with readable(path), zipfile.ZipFile(path) as archive:
        members = [member for member in archive.infolist() if member.filename.endswith(".npy")]
        headers = {}
        for member in members:
            with archive.open(member) as file:
                headers[member.filename.removesuffix(".npy")] = _header(file, path, member.compress_size)
        shapes = {name: shape for name, (shape, _) in headers.items()}
        roles = chosen(path, shapes)
        check_number(path, math.prod(shapes[roles["images"]][:-3]), most)
        parts = {}
        for role, name in roles.items():
            with archive.open(f"{name}.npy") as file:
                parts[role] = np.lib.format.read_array(file, allow_pickle=False)
    return content_of(path, "arrays", parts, roles, shapes)


def _read_pair(path: Path, most: int) -> Content:
    """Read X.npy of images, and the labels of the file whose name has labels (or y, targets) in the place of images."""
    images = _load(path, most)
    for images_word, label_words in {
        "images": ("labels", "targets"),
        "x": ("y",),
        "data": ("labels", "targets"),
    }.items():
        for word in label_words:
            other = path.with_name(path.name.replace(images_word, word))
            if other != path and other.is_file():
                found = Content("arrays", [path, other], images, _load(other, 0))
                found.notes.append(f"The labels are those of {other.name}.")
                return found
    return Content("arrays", [path], images, None)


def _load(path: Path, most: int) -> np.ndarray:
    with readable(path), path.open("rb") as file:
        shape, _ = _header(file, path, path.stat().st_size)
        if len(shape) > 3:
            check_number(path, math.prod(shape[:-3]), most)
        file.seek(0)
        return np.asarray(np.lib.format.read_array(file, allow_pickle=False))


def _header(file: IO[bytes], path: Path, held: int) -> _Header:
    """Return shape and type of an array that is stored in .npy's format, and refuse one that claims too much."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise WmddError(f"{path} holds Python objects, which are not unpickled; save plain arrays: numpy.savez(...)")
    check_claim(path, math.prod(shape) * dtype.itemsize, held)
    return shape, dtype


def read_hdf5(path: Path, most: int) -> Content:
    """Read a set from any HDF5 file that has images and labels, at the root or in groups.

    Raises:
        WmddError: it is damaged, lacks images, or its arrays lie elsewhere or claim more than it holds.
    """
    import h5py

    from wmdd.artifacts import hdf5

    with hdf5.opened(path, GET_AGAIN) as file, hdf5.damage(path, GET_AGAIN):
        shapes: dict[str, tuple[int, ...]] = {}
        file.visititems(
            lambda name, item: shapes.update({name: item.shape}) if isinstance(item, h5py.Dataset) else None
        )
        roles = chosen(path, shapes)
        check_number(path, math.prod(shapes[roles["images"]][:-3]), most)
        parts = {role: np.asarray(hdf5.dataset_of(path, file, name, GET_AGAIN)[()]) for role, name in roles.items()}
    return content_of(path, "hdf5", parts, roles, shapes)
