"""Sets as encoded pictures: folders of classes, Parquet as Hugging Face lays it out, tars of WebDataset.

    imagefolder  {class}/{picture}, with or without a folder train/ above. SRe2L saves new000/class000_id000.jpg
                 (VILA-Lab/SRe2L: SRe2L/recover/data_synthesis.py), RDED 00000/class00000_id00000.jpg (LINs-lab/RDED:
                 synthesize/main.py); torchvision's ImageFolder reads any names
    parquet      columns image (or img: a struct of bytes and path, or bytes) and label, and optionally soft_label and weight
                 (huggingface.co/docs/datasets, Image feature)
    webdataset   tars of members {key}.{ending}, those of a sample side by side: png, jpg or webp; cls; optionally npy (the
                 soft label) and json (label, weight)             (github.com/webdataset/webdataset)

All pictures have one size; with `side` they are resized and cropped to it as the pictures of a data set are.
"""

import io
import itertools
import json
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from wmdd.base.errors import WmddError
from wmdd.datasets import class_folders
from wmdd.export.foreign_content import GET_AGAIN, IMAGES, LABELS, Content, check_claim, check_number, readable

_SPLITS = ("train", "val", "valid", "validation", "test")
_SETTING = "images.path"
_GROUP = 100  # rows of a Parquet file that are in memory at once, still encoded


def _stacked(pictures: Iterable[tuple[str, bytes]], number: int, held: int, side: int) -> np.ndarray:
    """Return encoded pictures, which yield what they are and their bytes, as pixels [N, 3, H, W] uint8.

    Raises:
        WmddError: one can't be decoded, or has another size than the first; names it.
    """
    from wmdd.datasets.decode import UnreadableError, decode

    images = np.empty((0, 3, 0, 0), np.uint8)
    first, count = "", 0
    for where, data in pictures:
        try:
            pixels = decode(data, side).pixels
        except UnreadableError as error:
            raise WmddError(f"{where} cannot be read as a picture ({error}); {GET_AGAIN}") from None
        if not first:
            check_claim(where, number * pixels.size, held)
            first, images = where, np.empty((number, *pixels.shape), np.uint8)
        if pixels.shape != images.shape[1:]:
            sizes = [f"{shape[2]} x {shape[1]}" for shape in (images.shape[1:], pixels.shape)]
            raise WmddError(
                f"{first} is {sizes[0]} px and {where} is {sizes[1]} px; make all one size, or ask to resize"
            )
        if count < number:
            images[count] = pixels
        count += 1
    if count != number:
        raise WmddError(f"the file of {first} says that it has {number} pictures and holds {count}; {GET_AGAIN}")
    return images


def picture_folder(path: Path) -> Path | None:
    """Return the folder that holds the class folders: the path, its train/, or the only folder in it that has folders of them.

    None if there is none.
    """
    for folder in (path / "train", path):
        inner = sorted(entry for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []
        classes = [entry for entry in inner if entry.name not in _SPLITS and next(_pictures_below(entry), None)]
        if len(classes) == 1 and next(_pictures_below(classes[0])).parent != classes[0]:
            return picture_folder(classes[0]) or folder
        if classes:
            return folder
    return None


def _pictures_below(folder: Path, endings: tuple[str, ...] = class_folders.EXTENSIONS) -> Iterator[Path]:
    """Yield the pictures below a folder, in no order; hidden ones (as ._1.jpg of macOS) are passed over."""
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in (folder.name, *path.relative_to(folder).parts))
        if not hidden and path.name.lower().endswith(endings) and path.is_file():
            yield path


def read_image_folder(path: Path, side: int, most: int) -> Content:
    """Read a set from folders of classes, sorted by the folders' names and, within them, the pictures'.

    Raises:
        WmddError: there are no class folders, one has no pictures, or a picture can't be read.
    """
    root = picture_folder(path)
    if root is None:
        raise WmddError(f"{path} has no folders of classes with pictures in them; give each class a folder")
    names = [e.name for e in class_folders.visible_entries(root, root.resolve(), _SETTING) if e.is_dir()]
    by_class = [sorted(_pictures_below(root / name)) for name in names]
    for name, own in zip(names, by_class, strict=True):
        if not own:
            raise WmddError(f"the class folder {root / name} has no pictures; add them or delete the folder")
    files = [file for own in by_class for file in own]
    check_number(path, len(files), most)
    for file in files:
        class_folders.check_inside(file, root.resolve(), _SETTING)

    def pictures() -> Iterator[tuple[str, bytes]]:
        for file in files:
            with readable(file):
                data = file.read_bytes()
            yield str(file), data

    images = _stacked(pictures(), len(files), sum(file.stat().st_size for file in files), side)
    labels = np.arange(len(names)).repeat([len(own) for own in by_class])
    notes = [] if root == path else [f"The classes are the folders in {root}."]
    if passed := sorted(_pictures_below(root, class_folders.OTHER_FORMATS)):
        notes.append(
            f"{len(passed)} pictures are in formats that are not read ({passed[0].name}) and were passed over."
        )
    return Content("imagefolder", files, images, labels, names=names, notes=notes)


# ---- Parquet


def parquet_files(path: Path) -> list[Path]:
    """Return the Parquet files of a path: itself, or those of a folder; of several splits those of training."""
    if path.is_file():
        return [path]
    files = sorted([*path.glob("*.parquet"), *path.glob("*/*.parquet")])
    return [file for file in files if file.name.startswith("train")] or files


def read_parquet(path: Path, side: int, most: int) -> Content:
    """Read a set from Parquet files.

    Raises:
        WmddError: a file is damaged, or a column is missing or holds something else.
    """
    from pyarrow.parquet import ParquetFile

    files = parquet_files(path)
    columns, names, total, claimed = dict[str, str](), None, 0, 0
    for file in files:
        with readable(file), ParquetFile(file) as table:
            columns = _columns(file, table.schema_arrow.names)
            names = _class_names(table.schema_arrow.metadata, columns)
            total += table.metadata.num_rows
            claimed += sum(
                table.metadata.row_group(group).total_byte_size for group in range(table.metadata.num_row_groups)
            )
    held = sum(file.stat().st_size for file in files)
    check_number(path, total, most)
    check_claim(path, claimed, held)
    rest: dict[str, list[Any]] = {role: [] for role in columns if role != "images"}

    def pictures() -> Iterator[tuple[str, bytes]]:
        row = 0
        for file in files:
            with readable(file), ParquetFile(file) as table:
                for batch in table.iter_batches(_GROUP, columns=list(columns.values())):
                    for role, values in rest.items():
                        values += batch.column(columns[role]).to_pylist()
                    for value in batch.column(columns["images"]).to_pylist():
                        data = value.get("bytes") if isinstance(value, dict) else value
                        if not isinstance(data, bytes):
                            raise WmddError(
                                f"row {row} of {file} has no bytes of a picture in {columns['images']}; export the set with "
                                "its pictures in it"
                            )
                        yield f"row {row} of {file}", data
                        row += 1

    images = _stacked(pictures(), total, max(held, claimed), side)
    content = Content("parquet", files, images, None, names=names)
    for role, values in rest.items():
        setattr(content, role, _rows(values, path, columns[role]))
    return content


def _columns(file: Path, present: list[str]) -> dict[str, str]:
    """Return the columns by their role."""
    roles = {
        "images": IMAGES,
        "labels": LABELS,
        "soft_labels": ("soft_label", "soft_labels"),
        "weights": ("weight", "weights"),
    }
    found = {role: next((word for word in words if word in present), None) for role, words in roles.items()}
    if found["images"] is None:
        raise WmddError(f"{file} has the columns {', '.join(present[:8])} and none of pictures; name it image")
    return {role: column for role, column in found.items() if column is not None}


def _class_names(metadata: dict[bytes, bytes] | None, columns: dict[str, str]) -> list[str] | None:
    """Return the names of the classes from the description that the library `datasets` leaves in a file."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        names = features[columns["labels"]]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return [str(name) for name in names] if isinstance(names, list) else None


def _rows(values: list[Any], path: Path, column: str) -> np.ndarray:
    """Return the values of the images as an array."""
    try:
        array = np.array(values)
        if array.dtype.kind in "iuf":
            return array
        if array.dtype.kind == "U" and column not in ("weight", "weights"):
            return array
    except (ValueError, TypeError, OverflowError):
        pass
    raise WmddError(
        f"{column} of {path} is not one number, or one row of numbers, for each image; correct it or leave it out"
    )


# ---- WebDataset


def tar_files(path: Path) -> list[Path]:
    """Return the tars of a path: itself, or those of a folder; of several splits those of training."""
    if path.is_file():
        return [path]
    files = sorted(path.glob("*.tar"))
    return [file for file in files if file.name.startswith("train")] or files


def read_webdataset(path: Path, side: int, most: int) -> Content:
    """Read a set from tars of WebDataset, which are not compressed.

    Raises:
        WmddError: a tar is damaged or compressed, or a sample lacks its picture or label.
    """
    files = tar_files(path)
    keys = [key for file in files for key, _ in _samples(file)]
    check_number(path, len(keys), most)
    rest: dict[str, list[Any]] = {"labels": [], "soft_labels": [], "weights": []}

    def pictures() -> Iterator[tuple[str, bytes]]:
        for file in files:
            for key, sample in _samples(file, whole=True):
                where = f"{key} of {file}"
                ending = next((e for e in sample if class_folders.is_picture(f".{e.rpartition('.')[2]}")), None)
                if ending is None:
                    raise WmddError(f"the sample {where} has no picture (png, jpg, webp); {GET_AGAIN}")
                with readable(where):
                    for role, value in _values(sample).items():
                        rest[role].append(value)
                yield where, sample[ending]

    images = _stacked(pictures(), len(keys), sum(file.stat().st_size for file in files), side)
    content = Content("webdataset", files, images, None)
    for role, values in rest.items():
        if values and len(values) != len(keys):
            raise WmddError(
                f"{len(values)} of {len(keys)} samples of {path} have {role.replace('_', ' ')}; give all or none"
            )
        if values:
            setattr(content, role, _rows(values, path, role))
    return content


def _values(sample: dict[str, bytes]) -> dict[str, Any]:
    """Return label, soft label and weight of a sample, as far as it has them."""
    values: dict[str, Any] = {}
    if "json" in sample:
        known = json.loads(sample["json"])
        known = known if isinstance(known, dict) else {}
        values |= {role: known[word] for role, word in (("labels", "label"), ("weights", "weight")) if word in known}
    if "cls" in sample:
        text = sample["cls"].decode("utf-8").strip()
        values["labels"] = int(text) if text.lstrip("-").isdecimal() else text
    if "npy" in sample:
        values["soft_labels"] = np.load(io.BytesIO(sample["npy"]), allow_pickle=False)
    return values


def _samples(path: Path, whole: bool = False) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield the key of each sample of a tar and, if asked, its members by their ending."""
    from wmdd.datasets.archives import StrictTarInfo
    from wmdd.export.layouts import content

    def parts(name: str) -> tuple[str, str]:
        folder, _, base = name.rpartition("/")
        stem, _, ending = base.partition(".")
        return f"{folder}/{stem}" if folder else stem, ending.lower()

    with readable(path), tarfile.open(path, "r:", tarinfo=StrictTarInfo) as tar:
        plain = (member for member in tar if not member.isdir() and not Path(member.name).name.startswith("."))
        for key, members in itertools.groupby(plain, lambda member: parts(member.name)[0]):
            sample = {parts(member.name)[1]: content(tar, member) if whole else b"" for member in members}
            yield key, sample
