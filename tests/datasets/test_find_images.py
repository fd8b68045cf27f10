"""Where pictures are: folders, Tiny-ImageNet and ImageNet in every form that people have them in."""

import io
import re
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import pytest
import scipy.io

from tests.artifacts.test_artifacts import unprivileged
from tests.stages.test_data import refusal
from wmdd.base.errors import WmddError
from wmdd.datasets.find_images import DatasetFiles, find
from wmdd.settings import catalogue
from wmdd.settings.catalogue import Archive
from wmdd.settings.data import DataSettings

WNIDS = ["n01440764", "n01443537", "n02102040"]  # tench, goldfish, English springer


def write(root: Path, names: Iterable[str]) -> Path:
    """Files whose content is their own name: what is read tells where it was read."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return root


def locate(root: Path | str, source: str = "imagefolder", **options: Any) -> DatasetFiles:
    return find(DataSettings(source=source, root=str(root), **options))


def names(classes: Iterable[Any]) -> list[list[str]]:
    return [[files.name(index) for index in range(len(files))] for files in classes]


def read(classes: Iterable[Any]) -> list[list[str]]:
    return [[files.read(index).decode() for index in range(len(files))] for files in classes]


@pytest.fixture
def entry(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Change an entry of the table."""

    def change(source: str, **changes: Any) -> None:
        table = dict(catalogue.table())
        table[source] = table[source].model_copy(update=changes)
        monkeypatch.setattr(catalogue, "table", lambda: table)

    return change


# Folders


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write(
        tmp_path / "pictures", [f"{s}/{c}/{i}.jpg" for s in ("train", "val") for c in ("cat", "dog") for i in "02"]
    )


def test_folders(root: Path) -> None:
    found = locate(root)
    assert (found.root, found.classes, found.names, found.val_folder) == (root, ["cat", "dog"], ["cat", "dog"], "val")
    assert names(found.train) == [["train/cat/0.jpg", "train/cat/2.jpg"], ["train/dog/0.jpg", "train/dog/2.jpg"]]
    assert read(found.train) == names(found.train)
    assert read(found.val) == names(found.val)
    assert found.variant == f"folders of {root.name}"
    (root / "val/dog/2.jpg").unlink()
    refusal(str(root / "val/dog/2.jpg"), "run again", call=lambda: found.val[1].read(1))


def test_odd_names(root: Path) -> None:
    odd = ["a b", "ü 猫", "-rf", "it's", "a;b", "100%", "{x}", "a\u00a0b\u3000c", "\u0645\u06cc\u200c\u0631"]
    for name, split in product(odd, ("train", "val")):
        (root / split / name).mkdir()
        (root / split / name / f"{name}.jpg").write_bytes(b"here")
    found = locate(root)
    for name in odd:
        label = found.classes.index(name)
        assert names(found.train)[label] == [f"train/{name}/{name}.jpg"]
        assert found.train[label].read(0) == b"here"


@pytest.mark.parametrize(("name", "shown"), [("caf\udce9", "caf\\udce9"), ("b\n\x1b[2J", "b\\n\\x1b[2J")])
def test_a_name_that_no_later_stage_can_write_is_refused(root: Path, name: str, shown: str) -> None:
    (root / "train" / name).mkdir()
    with pytest.raises(
        WmddError, match=f"the name {re.escape(shown)} in .*train is no UTF-8 or has control characters"
    ):
        locate(root)


def test_pictures_in_formats_that_are_not_read_are_counted(root: Path) -> None:
    write(root, ["train/cat/IMG_1.HEIC", "train/cat/deep/a.avif", "val/dog/x.jp2"])
    assert locate(root).other_formats == ["train/cat/IMG_1.HEIC", "train/cat/deep/a.avif", "val/dog/x.jp2"]


def test_with_a_part_held_out_no_validation_folder_is_needed(root: Path) -> None:
    shutil.rmtree(root / "val")
    listing = locate(root, held_out=0.5)
    assert (list(listing.val), listing.val_folder) == ([], "")


def test_nested_hidden_and_other_files(root: Path) -> None:
    write(
        root,
        [f"train/cat/{name}" for name in ("deep/er/1.PNG", "1/x.webp", ".hidden.jpg", ".d/0.jpg", "boxes.txt", "9")],
    )
    write(root, ["train/.cache/0.jpg", "train/readme.jpg"])
    assert names(locate(root).train)[0] == [
        f"train/cat/{name}" for name in ("0.jpg", "1/x.webp", "2.jpg", "deep/er/1.PNG")
    ]


def test_no_pictures_no_classes_no_split(root: Path) -> None:
    write(root, [f"train/{name}/0.jpg" for name in ("ant", "bee", "elk", "fox", "gnu")] + ["val/hen/0.jpg"])
    refusal("val/ lacks 'ant', 'bee', 'elk' and 2 more", "train/ lacks 'hen'", call=lambda: locate(root))
    shutil.rmtree(root / "val")
    refusal(str(root / "val"), "there is no folder", "data.root", call=lambda: locate(root))
    (root / "val").mkdir()
    refusal(str(root / "val"), "no class folders", "data.root", call=lambda: locate(root))
    write(root, [f"val/{name}/0.txt" for name in ("ant", "bee", "cat", "dog", "elk", "fox", "gnu")])
    refusal(str(root / "val/ant"), "no pictures", call=lambda: locate(root))


def test_links_that_leave_the_root_or_go_round(root: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    outside = dict.fromkeys(
        ("train/cat/x.jpg", "train/eel", "classes.txt", "val/dog/deep"), str(tmp_path / "elsewhere")
    )
    for place, target in (
        outside | {"train/cat/up": "..", "train/cat/y.jpg": "y.jpg", "train/cat/z": "../dog"}
    ).items():
        (root / place).symlink_to(target)
        refusal(str(root / place), target if place in outside else "link", call=lambda: locate(root))
        (root / place).unlink()


def test_a_link_to_a_picture_within_and_a_root_that_is_a_link(root: Path, tmp_path: Path) -> None:
    (root / "train/cat/1.jpg").symlink_to("../dog/0.jpg")
    (tmp_path / "link").symlink_to(root)
    found = locate(tmp_path / "link")
    assert read(found.train)[0] == ["train/cat/0.jpg", "train/dog/0.jpg", "train/cat/2.jpg"]


@pytest.mark.parametrize("name", ["train/cat", "val", "."])
def test_what_may_not_be_read(name: str) -> None:
    with TemporaryDirectory() as folder:  # tmp_path is closed to everybody else
        root = write(Path(folder) / "data", [f"{split}/cat/0.jpg" for split in ("train", "val")]).resolve()
        for path in (Path(folder), root):
            path.chmod(0o755)
        (root / name).chmod(0)
        with unprivileged():
            refusal(str(root / name), "permissions", call=lambda: locate(root))
        (root / name).chmod(0o755)


def test_root_is_needed_for_folders_and_known_for_others() -> None:
    refusal("data.root is not set", "imagefolder", call=lambda: locate(""))
    refusal(str(Path("data/raw/imagenette2.tgz").resolve()), call=lambda: locate("", "imagenette", download=False))
    refusal("digits", "are not files", call=lambda: locate(".", "digits"))


# Readable names


def test_readable_names(root: Path) -> None:
    write(root, [f"{split}/{wnid}/0.jpg" for split in ("train", "val") for wnid in ("n01440764", "n00000001")])
    (root / "classes.txt").write_text("\ufeffdog\thound\ncat\n")
    assert locate(root).names == ["cat", "hound", "n00000001", "tench, Tinca tinca"]


# Archives: the root may be above the folder, or the folder itself


def tar_of(files: Mapping[str, bytes], mode: Literal["w", "w:gz"] = "w") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


@pytest.fixture
def nette(tmp_path: Path, entry: Callable[..., None]) -> Path:
    """A root with the archive of a small ImageNette."""
    path = tmp_path / "raw/imagenette2.tgz"
    path.parent.mkdir()
    pictures = product(("train", "val"), WNIDS, "01")
    path.write_bytes(tar_of({f"imagenette2/{s}/{w}/{w}_{i}.JPEG": b"hello" for s, w, i in pictures}, "w:gz"))
    archive = Archive(name=path.name, size=path.stat().st_size, folder="imagenette2", url="http://127.0.0.1:1/x")
    entry("imagenette", archives=(archive,))
    return path.parent


def test_an_archive_is_unpacked_once(nette: Path) -> None:
    found = locate(nette, "imagenette")
    assert (found.root, found.classes) == (nette / "imagenette2", WNIDS)
    assert found.names[0] == "tench, Tinca tinca"
    assert found.variant == "imagenette: fastai's split of 2019 (v2), full size"
    (nette / "imagenette2.tgz").unlink()
    for root in (nette, nette / "imagenette2"):
        assert names(locate(root, "imagenette", download=False).train) == names(found.train)


def test_an_archive_that_is_not_whole(nette: Path) -> None:
    (nette / "imagenette2").mkdir()
    refusal(str(nette / "imagenette2"), "delete it and run again", call=lambda: locate(nette, "imagenette"))


# Tiny-ImageNet

TINY = ["n01443537", "n01629819"]
BOXES = "\t0\t10\t63\t58"


@pytest.fixture
def tiny(tmp_path: Path, entry: Callable[..., None]) -> Path:
    """A root with the zip of a small Tiny-ImageNet; a picture's content is its name."""
    pictures = [f"train/{w}/images/{w}_{i}.JPEG" for w in TINY for i in range(3)]
    pictures += [f"val/images/val_{i}.JPEG" for i in range(4)] + ["test/images/test_0.JPEG"]
    labels = "".join(f"val_{i}.JPEG\t{TINY[i % 2]}{BOXES}\n" for i in range(4))
    words = "n00001740\tentity\nn01443537\tgoldfish, Carassius auratus\nn01629819\tEuropean fire salamander\n"
    files = {name: name for name in pictures} | {f"train/{w}/{w}_boxes.txt": "" for w in TINY}
    files |= {"val/val_annotations.txt": labels, "words.txt": words, "wnids.txt": "\n".join(TINY)}
    path = tmp_path / "raw/tiny-imagenet-200.zip"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as out:
        for name, content in files.items():
            out.writestr(f"tiny-imagenet-200/{name}", content)
    entry("tiny-imagenet", archives=(Archive(name=path.name, folder="tiny-imagenet-200"),))
    return path.parent


def test_tiny_imagenet(tiny: Path) -> None:
    found = locate(tiny, "tiny-imagenet")
    assert (found.classes, found.names) == (TINY, ["goldfish, Carassius auratus", "European fire salamander"])
    assert names(found.train) == [[f"train/{w}/images/{w}_{i}.JPEG" for i in range(3)] for w in TINY]
    assert names(found.val) == [[f"val/images/val_{i}.JPEG" for i in those] for those in ((0, 2), (1, 3))]
    assert read(found.val) == names(found.val)
    assert (found.val_folder, found.root) == ("val", tiny / "tiny-imagenet-200")


def test_tiny_imagenet_sorted_by_someone(tiny: Path) -> None:
    folder = locate(tiny, "tiny-imagenet").root
    shutil.rmtree(folder / "val/images")
    write(folder, [f"val/{TINY[i % 2]}/images/val_{i}.JPEG" for i in range(4)])
    expected = [[f"val/{w}/images/val_{i}.JPEG" for i in those] for w, those in zip(TINY, ("02", "13"), strict=True)]
    assert names(locate(folder, "tiny-imagenet").val) == expected


def test_tiny_imagenet_whose_annotations_do_not_fit(tiny: Path) -> None:
    path = locate(tiny, "tiny-imagenet").root / "val/val_annotations.txt"
    text = path.read_text()
    for content, *said in (
        (text + f"val_9.JPEG\t{TINY[0]}{BOXES}\n", "labels 'val_9'", "no such picture"),
        (text.replace(TINY[1], "n09999999", 1), "'val_1' is a 'n09999999'", "no such class"),
        (text.replace(TINY[1], TINY[0]), f"no picture of {TINY[1]!r}"),
        ("", "no label for 'val_0', 'val_1', 'val_2' and 1 more"),
    ):
        path.write_text(content)
        refusal(str(path), *said, call=lambda: locate(tiny, "tiny-imagenet"))
    path.unlink()
    refusal(str(path), "No such file", call=lambda: locate(tiny, "tiny-imagenet"))


# ImageNet

VAL = [f"ILSVRC2012_val_{number:08}" for number in range(1, 7)]
VAL_CLASSES = [WNIDS[index] for index in (2, 0, 1, 1, 0, 2)]
EXPECTED = [[VAL[i] for i, wnid in enumerate(VAL_CLASSES) if wnid == each] for each in WNIDS]
TRAIN = {wnid: [f"{wnid}_{number}.JPEG" for number in (10, 2, 33)] for wnid in WNIDS}


def devkit(order: Iterable[int] = (2, 3, 1)) -> bytes:
    """The development kit: ids that are not in the order of the names, and an inner node that has children."""
    ids = dict(zip([*WNIDS, "n00000000"], [*order, 4], strict=True))
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O"), ("children", "O")]
    rows = [(i, w, "words, of it", 2 if i == 4 else 0, np.array([1, 2] if i == 4 else [])) for w, i in ids.items()]
    meta = io.BytesIO()
    scipy.io.savemat(meta, {"synsets": np.array(sorted(rows, key=lambda row: row[0]), dtype=kinds).reshape(-1, 1)})
    truth = "".join(f"{ids[wnid]}\n" for wnid in VAL_CLASSES)
    folder = "ILSVRC2012_devkit_t12/data"
    files = {f"{folder}/meta.mat": meta.getvalue(), f"{folder}/ILSVRC2012_validation_ground_truth.txt": truth.encode()}
    return tar_of(files, "w:gz")


def train_tar() -> bytes:
    inner = {w: tar_of({name: f"train of {name}".encode() for name in TRAIN[w]}) for w in reversed(WNIDS)}
    return tar_of({f"{wnid}.tar": content for wnid, content in inner.items()})


@pytest.fixture
def official(tmp_path: Path, entry: Callable[..., None]) -> Path:
    """A root with the three official files."""
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(train_tar())
    val = {f"{name}.JPEG": f"val of {name}".encode() for name in reversed(VAL)}
    (tmp_path / "ILSVRC2012_img_val.tar").write_bytes(tar_of(val))
    (tmp_path / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(devkit())
    named = {
        archive.name: Archive(name=archive.name, size=(tmp_path / archive.name).stat().st_size)
        for archive in catalogue.known("imagenet-1k").archives
    }
    for source in ("imagenet-1k", "imagenette-in1k"):
        entry(source, archives=tuple(named.values()))
    return tmp_path


def test_official_tars_are_read_in_place(official: Path) -> None:
    before = sorted(official.iterdir())
    found = locate(official, "imagenet-1k")
    assert (found.classes, found.names[1]) == (WNIDS, "goldfish, Carassius auratus")
    outer = "ILSVRC2012_img_train.tar"
    assert names(found.train) == [[f"{outer}/{w}.tar/{name}" for name in sorted(TRAIN[w])] for w in WNIDS]
    assert read(found.train) == [[f"train of {name}" for name in sorted(TRAIN[w])] for w in WNIDS]
    assert names(found.val) == [[f"ILSVRC2012_img_val.tar/{name}.JPEG" for name in those] for those in EXPECTED]
    assert read(found.val) == [[f"val of {name}" for name in those] for those in EXPECTED]
    assert found.variant == "imagenet-1k: ILSVRC 2012, from official tar files"
    assert sorted(official.iterdir()) == before


def test_official_tars_are_read_by_many_threads(official: Path) -> None:
    classes = locate(official, "imagenet-1k").train
    wanted = [f"train of {name}".encode() for wnid in WNIDS for name in sorted(TRAIN[wnid])]
    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(files.read, index) for _ in range(50) for files in classes for index in range(3)]
        assert [job.result() for job in jobs] == wanted * 50


def test_a_subset_lists_its_own_classes_only(official: Path, tmp_path: Path, entry: Callable[..., None]) -> None:
    entry("imagenette-in1k", subset=(WNIDS[2], WNIDS[0]))
    path = official / "ILSVRC2012_img_train.tar"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(f"{WNIDS[1]}_10.JPEG".encode(), b"../../../damaged."))  # nobody looks there
    found = locate(official, "imagenette-in1k")
    assert found.classes == [WNIDS[0], WNIDS[2]]
    assert read(found.val) == [[f"val of {name}" for name in EXPECTED[index]] for index in (0, 2)]
    assert read(found.train)[1] == [f"train of {name}" for name in sorted(TRAIN[WNIDS[2]])]
    entry("imagenette-in1k", subset=(*WNIDS, "n03000684"))
    folders = write(tmp_path / "f", [f"{split}/{wnid}/0.JPEG" for split in ("train", "val") for wnid in WNIDS])
    for root in (official, folders):
        said = "lacks 'n03000684' of imagenette-in1k in train"
        refusal(str(root), said, call=lambda root=root: locate(root, "imagenette-in1k"))


def as_folders(root: Path, flat: bool) -> Path:
    write(root, [f"train/{wnid}/{name}" for wnid in WNIDS for name in TRAIN[wnid]])
    return write(root, [f"val/{'' if flat else f'{w}/'}{name}.JPEG" for name, w in zip(VAL, VAL_CLASSES, strict=True)])


def solution(root: Path, rows: Mapping[str, str] | None = None) -> Path:
    rows = dict(zip(VAL, VAL_CLASSES, strict=True)) if rows is None else rows
    lines = [f"{name},{wnid} 85 1 499 272 {wnid} 1 2 3 4" for name, wnid in reversed(list(rows.items()))]
    (root / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *lines, ""]))
    return root


@pytest.mark.parametrize("form", ["folders", "kaggle, above", "kaggle, itself", "list of labels"])
def test_forms_of_folders(tmp_path: Path, form: str) -> None:
    base = tmp_path / "ILSVRC/Data/CLS-LOC" if "kaggle" in form else tmp_path
    as_folders(base, flat=form != "folders")
    root = base if form == "kaggle, itself" else tmp_path
    if "kaggle" in form:
        solution(root)
    if form == "list of labels":
        (root / "imagenet_2012_validation_synset_labels.txt").write_text("\n".join(VAL_CLASSES) + "\n")
    found = locate(root, "imagenet-1k")
    assert (found.classes, found.root) == (WNIDS, base)
    assert names(found.train) == [[f"train/{w}/{name}" for name in sorted(TRAIN[w])] for w in WNIDS]
    assert [[Path(name).stem for name in those] for those in names(found.val)] == EXPECTED
    assert read(found.train) + read(found.val) == names(found.train) + names(found.val)
    what = "class folders" if form == "folders" else "class folders (train) and a flat folder (val)"
    suffix = " as Kaggle has them" if form == "kaggle, above" else ""
    assert found.variant == f"imagenet-1k: ILSVRC 2012, from {what}{suffix}"


def test_what_is_missing_is_told_with_its_place(tmp_path: Path) -> None:
    files = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz")
    places = ("train/", "LOC_val_solution.csv", str(tmp_path), "https://image-net.org/download.php", "data.root")
    refusal(*files, *places, call=lambda: locate(tmp_path, "imagenet-1k"))
    write(tmp_path, [f"train/{wnid}/0.JPEG" for wnid in WNIDS])
    refusal(str(tmp_path), "validation pictures", files[1], call=lambda: locate(tmp_path, "imagenet-1k"))
    as_folders(tmp_path, True)
    said = (str(tmp_path / "val"), "LOC_val_solution.csv", files[2], "image-net.org")
    refusal(*said, call=lambda: locate(tmp_path, "imagenet-1k"))
    path = tmp_path / "imagenet_2012_validation_synset_labels.txt"
    path.write_text("\n".join(VAL_CLASSES[:-1]))
    refusal(str(path), "5 labels", "6 pictures", call=lambda: locate(tmp_path, "imagenet-1k"))


def test_a_subset_of_which_only_train_was_unpacked(official: Path, entry: Callable[..., None]) -> None:
    entry("imagenette-in1k", subset=WNIDS[:2])
    write(official, [f"train/{wnid}/{name}" for wnid in WNIDS[:2] for name in TRAIN[wnid]])
    for _ in range(2):  # validation in its tar, then in a flat folder
        found = locate(official, "imagenette-in1k")
        assert [[Path(name).stem for name in those] for those in names(found.val)] == EXPECTED[:2]
        write(official, [f"val/{name}.JPEG" for name in VAL])


def test_kaggles_labels_that_do_not_fit(tmp_path: Path) -> None:
    write(solution(as_folders(tmp_path, True)), [f"val/{VAL[0]}.png"])
    refusal(str(tmp_path / "val"), "LOC_val_solution.csv", "ending", call=lambda: locate(tmp_path, "imagenet-1k"))
    (tmp_path / f"val/{VAL[0]}.png").unlink()
    solution(tmp_path, {VAL[0]: "n09999999"})
    said = ("LOC_val_solution.csv", f"{VAL[0]!r} is a 'n09999999'", "no such class")
    refusal(*said, call=lambda: locate(tmp_path, "imagenet-1k"))
    (tmp_path / "LOC_val_solution.csv").write_text(f"ImageId,PredictionString\n{VAL[0]},\n")
    refusal("ImageId,PredictionString", "every row", call=lambda: locate(tmp_path, "imagenet-1k"))


def test_a_tar_of_another_size_than_published(official: Path) -> None:
    for name in ("ILSVRC2012_devkit_t12.tar.gz", "ILSVRC2012_img_val.tar", "ILSVRC2012_img_train.tar"):
        path = official / name
        path.write_bytes(path.read_bytes()[:-512])
        refusal(str(path), "are published", call=lambda: locate(official, "imagenet-1k"))


@pytest.fixture
def unsized(official: Path, entry: Callable[..., None]) -> Path:
    entry("imagenet-1k", archives=tuple(Archive(name=a.name) for a in catalogue.known("imagenet-1k").archives))
    return official


@pytest.mark.parametrize("name", ["ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"])
def test_a_tar_that_is_cut_short(unsized: Path, name: str) -> None:
    found = locate(unsized, "imagenet-1k")
    path = unsized / name
    whole = path.read_bytes()
    for keep in (512 * 3, 512 * 4 + 100, 5000, -10240, -12000):
        path.write_bytes(whole[:keep])
        refusal(str(path), "is damaged", call=lambda: locate(unsized, "imagenet-1k"))
    path.write_bytes(b"")  # while it is read
    first = (found.train if "train" in name else found.val)[0]
    refusal(str(path), first.name(0), call=lambda: first.read(0))


def test_members_that_are_no_files_and_a_class_without_pictures(unsized: Path) -> None:
    path = unsized / "ILSVRC2012_img_train.tar"
    for kind, deep in product((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE), (True, False)):
        odd = tarfile.TarInfo("odd.JPEG" if deep else "n01440764.tar")
        odd.type, odd.linkname = kind, "/etc/passwd"
        inner = io.BytesIO()
        with tarfile.open(fileobj=inner, mode="w") as tar:
            tar.addfile(odd)
        path.write_bytes(tar_of({f"{wnid}.tar": inner.getvalue() for wnid in WNIDS}) if deep else inner.getvalue())
        refusal(str(path), odd.name, "neither a file nor a folder", call=lambda: locate(unsized, "imagenet-1k"))
    path.write_bytes(tar_of({f"{wnid}.tar": tar_of({"notes.txt": b"1"}) for wnid in WNIDS}))
    refusal(str(path), "n01440764.tar", "no pictures", call=lambda: locate(unsized, "imagenet-1k"))


def test_a_devkit_that_is_damaged(unsized: Path) -> None:
    path = unsized / "ILSVRC2012_devkit_t12.tar.gz"
    junk = tar_of({"x/data/meta.mat": b"junk", "x/data/ILSVRC2012_validation_ground_truth.txt": b"1"})
    unknown_id = devkit(order=(2, 3, 4))  # 4 has children: it is no class
    for content in (b"junk", b"", devkit()[:300], tar_of({"a": b"b"}), junk, unknown_id):
        path.write_bytes(content)
        refusal(str(path), "is damaged", call=lambda: locate(unsized, "imagenet-1k"))
