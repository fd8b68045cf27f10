"""ImageNet (ILSVRC 2012) as people have it: class folders, Kaggle's folders, or the official tar files, read in place.

It may not be downloaded by a program: a person has to agree to its terms first.
"""

import csv
import io
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from wmdd.base.errors import WmddError, one_line
from wmdd.base.progress import progress
from wmdd.datasets import class_folders
from wmdd.datasets.archives import DAMAGED, StrictTarInfo
from wmdd.datasets.class_files import ClassFiles, OpenTar, in_folder, reading
from wmdd.datasets.class_folders import Splits
from wmdd.datasets.download import by_hand, fetch
from wmdd.settings.catalogue import Archive, Known

KAGGLE = "ILSVRC/Data/CLS-LOC"
SOLUTION = "LOC_val_solution.csv"  # Kaggle's
SYNSET_LABELS = "imagenet_2012_validation_synset_labels.txt"  # TensorFlow's: a class a line, in the order of the names
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"  # the devkit's: an id a line, in the order of the names
META = "meta.mat"  # the devkit's classes


class _Split(NamedTuple):
    """The classes of a split, how the pictures of one are listed, and what it is all from."""

    classes: list[str]
    files_of: Callable[[str], ClassFiles]
    form: str


def find(root: Path, entry: Known, dataset: str) -> tuple[Path, Splits, str]:
    """Find ImageNet, or the classes of it that the entry keeps; return also its root and what it was found as.

    Raises:
        WmddError: something is missing or damaged, or the splits do not fit together; says what to put where.
    """
    base = root / KAGGLE if (root / KAGGLE / "train").is_dir() else root
    train = _train(base, entry)
    val = _val(root, base, entry, train.classes)
    classes = sorted(entry.subset) or train.classes
    for split, present in (("train", train.classes), ("val", val.classes)):
        if missing := sorted(set(entry.subset) - set(present)):
            raise WmddError(f"{root} lacks {class_folders.shortened(missing)} of {dataset} in {split}; complete it")
    if not entry.subset:
        class_folders.check_same(base, train.classes, val.classes, "val")
    files = [
        (train.files_of(name), val.files_of(name)) for name in progress(classes, "listing ImageNet", unit="classes")
    ]
    form = train.form if train.form == val.form else f"{train.form} (train) and {val.form} (val)"
    splits = Splits(classes, [both[0] for both in files], [both[1] for both in files], "val")
    return base, splits, form + (" as Kaggle has them" if base != root else "")


def _train(base: Path, entry: Known) -> _Split:
    archive = entry.archive("train.tar")
    if (base / "train").is_dir():
        return _class_folders(base, "train")
    if not (base / archive.name).is_file():
        raise _nothing(base, entry, "training")
    tar = _open_tar(base, archive)
    inner = {PurePosixPath(m.name).stem: m for m in _members(tar.path) if m.name.endswith(".tar")}

    def files_of(name: str) -> ClassFiles:
        member = inner[name]
        pictures = _pictures(_members(tar.path, member.offset_data, member.offset_data + member.size))
        files = tar.files(PurePosixPath(member.name).name, sorted(pictures))
        if not len(files):
            raise WmddError(f"{member.name} in {tar.path} has no pictures; fetch it anew")
        return files

    return _Split(sorted(inner), files_of, "official tar files")


def _val(root: Path, base: Path, entry: Known, classes: list[str]) -> _Split:
    archive, folder = entry.archive("val.tar"), base / "val"
    if folder.is_dir() and any(entry.is_dir() for entry in class_folders.visible_entries(folder, base)):
        return _class_folders(base, "val")
    if folder.is_dir():
        names = class_folders.pictures_in(base, "val")
        kept = _positions(root, base, entry, names, classes, folder)
        return _Split(list(kept), lambda name: in_folder(base, "val", (names[i] for i in kept[name])), "a flat folder")
    if not (base / archive.name).is_file():
        raise _nothing(base, entry, "validation")
    tar = _open_tar(base, archive)
    members = sorted(_pictures(_members(tar.path)))
    kept = _positions(root, base, entry, [name for name, _, _ in members], classes, tar.path)
    return _Split(list(kept), lambda name: tar.files("", (members[i] for i in kept[name])), "official tar files")


def _class_folders(base: Path, split: str) -> _Split:
    classes = class_folders.class_names(base, split)
    return _Split(classes, lambda name: class_folders.class_files(base, f"{split}/{name}"), "class folders")


def _nothing(base: Path, entry: Known, split: str) -> WmddError:
    names = ", ".join(archive.name for archive in entry.archives)
    return WmddError(
        f"ImageNet's {split} pictures are not in {base}; agree to its terms at {entry.homepage} and put there either {names}, "
        f"or the folders train/ and val/ with a folder a class, or Kaggle's ILSVRC/ with {SOLUTION}; or correct data.root"
    )


def _open_tar(base: Path, archive: Archive) -> OpenTar:
    """Open a tar of the published size; its checksum would take as long as reading all of it."""
    path = base / archive.name
    class_folders.check_inside(path, path.resolve().parent if path.exists() else base)
    size = path.stat().st_size
    if archive.size and size != archive.size:
        fault = f"has {size:,} bytes where {archive.size:,} are published"
        raise WmddError(f"{path} {fault}; {by_hand(archive, base)}")
    return OpenTar(path)


def _members(path: Path, start: int = 0, end: int | None = None) -> Iterator[tarfile.TarInfo]:
    """Yield the files of a tar, or of the tar from `start` to `end` within one; offsets count from the outer one's start."""
    name = ""
    end = path.stat().st_size if end is None else end
    try:
        with reading(path), path.open("rb") as file:
            file.seek(start)
            with tarfile.open(fileobj=file, mode="r:", tarinfo=StrictTarInfo) as tar:
                for member in tar:
                    name = member.name
                    if member.offset_data + member.size > end:
                        raise tarfile.ReadError("it ends within it")
                    if member.isreg():
                        yield member
                    elif not member.isdir():
                        raise tarfile.ReadError("which is neither a file nor a folder")
    except DAMAGED as error:
        place = f" at {name!r}" if name else ""
        raise WmddError(f"{path} is damaged{place} ({error}); fetch it anew") from None


def _pictures(members: Iterable[tarfile.TarInfo]) -> Iterator[tuple[str, int, int]]:
    for member in members:
        if class_folders.is_picture(member.name):
            yield PurePosixPath(member.name).name, member.offset_data, member.size


def _positions(
    root: Path, base: Path, entry: Known, names: list[str], classes: list[str], pictures: Path
) -> dict[str, list[int]]:
    """Sort the validation pictures into classes by the first list of labels that is there."""
    solution, synsets = (
        next((folder / name for folder in (root, base) if (folder / name).is_file()), None)
        for name in (SOLUTION, SYNSET_LABELS)
    )
    devkit = entry.archive("devkit_t12.tar.gz")
    if solution:
        label_file, labels = solution, _read_solution(solution)
    elif synsets:
        with reading(synsets):
            wnids = synsets.read_text(encoding="utf-8", errors="replace").split()
        label_file, labels = synsets, _in_order(names, wnids, pictures, synsets)
    elif (base / devkit.name).is_file():
        label_file = fetch(devkit, base, False)
        labels = _in_order(names, _read_devkit(label_file), pictures, label_file)
    else:
        remedy = f"put {devkit.name} from {entry.homepage}, Kaggle's {SOLUTION}, or {SYNSET_LABELS} into {root}"
        raise WmddError(f"nothing says which classes the pictures of {pictures} are of; {remedy}")
    if entry.subset:  # the other classes need not be in train/
        classes = sorted(set(labels.values()))
    return class_folders.positions_by_class(names, labels, classes, pictures, label_file)


def _in_order(names: list[str], labels: list[str], pictures: Path, label_file: Path) -> dict[str, str]:
    """Return the labels of sorted pictures by their names without the ending."""
    if len(names) != len(labels):
        raise WmddError(
            f"{label_file} has {len(labels):,} labels but {pictures} {len(names):,} pictures; complete them"
        )
    return {name.rpartition(".")[0]: label for name, label in zip(names, labels, strict=True)}


def _read_solution(path: Path) -> Mapping[str, str]:
    """Read Kaggle's labels: `ILSVRC2012_val_00048981,n03995372 85 1 499 272`."""
    with reading(path):
        text = path.read_text("utf-8-sig", errors="replace")
    try:
        return {row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(io.StringIO(text))}
    except (KeyError, IndexError, AttributeError, csv.Error):  # no such column, an empty or a short row, no text
        remedy = "fetch it anew from Kaggle"
        raise WmddError(f"{path} has not the columns ImageId,PredictionString in every row; {remedy}") from None


def _read_devkit(path: Path) -> list[str]:
    """Return the class of each validation picture, in the order of their names, from the development kit."""
    content = {}
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                if member.isreg() and (file := tar.extractfile(member)) and member.name.endswith((META, GROUND_TRUTH)):
                    content[PurePosixPath(member.name).name] = file.read()
        from scipy.io import loadmat

        synsets = loadmat(io.BytesIO(content[META]), squeeze_me=True)["synsets"]
        leaves = synsets[synsets["num_children"] == 0]
        wnids = {int(leaf["ILSVRC2012_ID"]): str(leaf["WNID"]) for leaf in leaves}
        return [wnids[int(line)] for line in content[GROUND_TRUTH].split()]
    except MemoryError:
        raise
    except Exception as error:  # scipy's reader raises nearly anything on damaged files
        reason = f"it lacks {error}" if isinstance(error, KeyError) else one_line(error)
        raise WmddError(f"{path} is damaged ({reason}); fetch it anew") from None
