"""Each layout is read by the tool that it is for, in our order of classes; the card and the example are true."""

import json
import os
import runpy
from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
import timm.data
import torch
import webdataset
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torchvision.datasets import ImageFolder

import wmdd
from wmdd.artifacts import atomic_files
from wmdd.artifacts.atomic_files import write_json
from wmdd.artifacts.hdf5 import load, load_meta
from wmdd.artifacts.hdf5_writer import save
from wmdd.export import layout_writers
from wmdd.export.manifest import folder_names
from wmdd.settings.student import RelabelSettings
from wmdd.stages import labels as stored_labels
from wmdd.stages.labels import rows_of

SIDE, IPC, EPOCHS = 8, 2, 3
CLASSES = ["n02", "n01", "a/../b"]  # neither sorted nor safe
NAMES = ["crane", "crane", "<b>|bee"]
LAYOUTS = ["imagefolder", "hdf5", "webdataset", "parquet"]
HERE = "results/digits/base/wmdd/ipc2/seed3"


def write_images(path, classes=CLASSES, names=NAMES, ipc=IPC):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (len(classes), ipc, 3, SIDE, SIDE), dtype=np.uint8)
    weights = rng.dirichlet(np.ones(ipc), len(classes)).astype(np.float32)
    meta = {
        "classes": classes, "names": names, "resolution": SIDE, "mean": [0.5, 0.4, 0.3], "std": [0.25, 0.2, 0.3],
        "stage": "images", "inputs": {"0": "abc"}, "settings": {}, "identity": {}, "code": "", "revision": "deadbeef",
        "versions": {"torch": "2"}, "recover": {"settings": {"lr": 0.25}, "identity": {}, "code": ""},
    }  # fmt: skip
    save(path, {"images": images, "weights": weights, "labels": np.arange(len(classes))}, meta, chunked=("images",))


def make_float():
    """Let the set have float pixels, one of them below 0, two above 1 and three in between that are no byte; return them."""
    arrays, meta = load(f"{HERE}/images.h5")
    images = arrays["images"].astype(np.float32) / 255
    images[1, 0].flat[:6] = -0.5, 1.25, 7, 0.1, 0.25, 0.501
    save(f"{HERE}/images.h5", arrays | {"images": images}, meta, chunked=("images",))
    write_labels(f"{HERE}/labels.h5", f"{HERE}/images.h5")
    return images.reshape(-1, 3, SIDE, SIDE)


def write_labels(path, images, classes=CLASSES, ipc=IPC, **changes):
    """Labels of the relabel stage, made of noise; return the logits that were written."""
    settings = RelabelSettings(epochs=EPOCHS, **changes)
    draws = torch.Generator().manual_seed(1)
    logits = 4 * torch.randn(settings.labelled, len(classes) * ipc, len(classes), generator=draws)
    rows = [rows_of(epoch, settings) for epoch in logits]
    arrays = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    known = load_meta(images)
    meta = {name: known[name] for name in ("classes", "names", "resolution", "mean", "std")}
    meta |= {"settings": settings.model_dump(mode="json"), "teacher_accuracy": {"top1": 0.9, "top5": 1.0}}
    meta |= {"inputs": {"images": known["digest"], "teacher": "0123"}, "stage": "relabel"}
    save(path, arrays | {"seeds": np.arange(settings.labelled)}, meta)
    return logits.half().float()


def write_student(path, images, top1, **settings):
    about = {"architecture": "resnet18", "width": 16, "labels": "soft", "epochs": 300} | settings
    inputs = {"images": load_meta(images)["digest"]}
    write_json(path, {"settings": about, "inputs": inputs, "result": {"top1": top1, "top5": 1.0}})


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a set, its labels and two students."""
    monkeypatch.chdir(tmp_path)
    folder = Path(HERE)
    folder.mkdir(parents=True)
    write_images(folder / "images.h5")
    write_labels(folder / "labels.h5", folder / "images.h5")
    for run, top1 in enumerate((0.5, 0.52)):
        write_student(folder / f"run{run}.json", folder / "images.h5", top1)
    return tmp_path


def line(layout, output="out", more=f"--labels {HERE}/labels.h5 --temperature 4"):
    return f"export --images {HERE}/images.h5 --to {layout} --output {output} {more}"


def exported(run, layout, **arguments):
    code, _, err = run(line(layout, **arguments))
    assert code == 0, err
    return Path(arguments.get("output", "out"))


def learn_labels():
    """Let the set have labels that its method learned."""
    arrays, meta = load(f"{HERE}/images.h5")
    learned = np.random.default_rng(1).dirichlet(np.ones(3), (3, IPC)).astype(np.float32)
    save(f"{HERE}/images.h5", arrays | {"labels_learned": learned}, meta, chunked=("images",))
    write_labels(f"{HERE}/labels.h5", f"{HERE}/images.h5")
    return learned.reshape(-1, 3)


def read_set():
    with h5py.File(f"{HERE}/images.h5") as file:
        return file["images"][()].reshape(-1, 3, SIDE, SIDE), file["weights"][()].flatten()


# ---- what others read


def test_image_folder_has_our_classes_in_our_order(here, run):
    out = exported(run, "imagefolder")
    found = ImageFolder(out / "train")
    manifest = json.loads((out / "manifest.json").read_text())
    assert found.classes == [each["folder"] for each in manifest["classes"]] == ["0-n02", "1-n01", "2-a_.._b"]
    images, weights = read_set()
    for (picture, label), pixels, own in zip(found, images, np.arange(3).repeat(IPC), strict=True):
        assert label == own
        assert np.array_equal(np.asarray(picture).transpose(2, 0, 1), pixels)
    rows = [json.loads(row) for row in (out / "train/metadata.jsonl").open()]
    assert [str(out / "train" / row["file_name"]) for row in rows] == [path for path, _ in found.samples]
    assert np.array_equal(np.array([row["weight"] for row in rows], np.float32), weights)


def test_timm_has_our_classes_in_our_order(here, run):
    classes = ["class10", "class9", "Beetle"]  # sorted as letters or as numbers, with or without capitals: three orders
    write_images(f"{HERE}/images.h5", classes, classes)
    dataset = timm.data.create_dataset("", root=exported(run, "imagefolder", more="") / "train")
    options = {"input_size": (3, SIDE, SIDE), "mean": (0, 0, 0), "std": (1, 1, 1), "interpolation": "nearest"}
    loader = timm.data.create_loader(dataset, batch_size=6, use_prefetcher=False, num_workers=0, crop_pct=1, **options)
    batch, labels = next(iter(loader))
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert np.array_equal((batch * 255).round().numpy(), read_set()[0])


def test_web_dataset(here, run):
    out = exported(run, "webdataset")
    tars = sorted(map(str, out.glob("*.tar")))
    samples = list(webdataset.WebDataset(tars, shardshuffle=False).decode("rgb8"))
    images, weights = read_set()
    assert [sample["cls"] for sample in samples] == [0, 0, 1, 1, 2, 2]
    assert all(
        np.array_equal(sample["png"].transpose(2, 0, 1), pixels) for sample, pixels in zip(samples, images, strict=True)
    )
    assert [np.float32(sample["json"]["weight"]) for sample in samples] == weights.tolist()
    assert all(sample["npy"].shape == sample["logits.npy"].shape == (3,) for sample in samples)


def test_parquet_carries_the_types_of_the_hub(here, run):
    out = exported(run, "parquet")
    table = pq.read_table(out / "data/train-00000-of-00001.parquet")
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"}
    assert features["label"] == {"_type": "ClassLabel", "names": ["crane (n02)", "crane (n01)", "<b>|bee"]}
    assert features["soft_label"]["length"] == table.schema.field("soft_label").type.list_size == 3
    assert table.schema.names == list(features)
    assert table["label"].to_pylist() == [0, 0, 1, 1, 2, 2]
    _, front, _ = (out / "README.md").read_text().split("---\n", 2)
    (files,) = yaml.safe_load(front)["configs"][0]["data_files"]
    assert [path.name for pattern in files["path"] for path in out.glob(pattern)] == ["train-00000-of-00001.parquet"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_croissant_names_the_files_and_the_columns_of_tables(here, run, layout):
    out = exported(run, layout)
    content = json.loads((out / "croissant.json").read_text())
    named = {str(path.relative_to(out)) for each in content["distribution"] for path in out.glob(each["includes"])}
    ours = ["README.md", "croissant.json", "example.py", "manifest.json"]
    assert named == {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()} - {*ours}
    columns = {
        "imagefolder": lambda: json.loads((out / "train/metadata.jsonl").open().readline()),
        "parquet": lambda: pq.read_schema(next(out.rglob("*.parquet"))).names,
    }
    fields = [field["source"]["extract"]["column"] for each in content.get("recordSet", []) for field in each["field"]]
    assert fields == [*columns.get(layout, list)()]


@pytest.mark.parametrize(
    ("layout", "soft", "floats"), [*((layout, True, False) for layout in LAYOUTS), ("hdf5", False, True)]
)
def test_the_example_runs(here, run, layout, soft, floats, monkeypatch, capfd):
    if floats:
        make_float()
    out = exported(run, layout, **({} if soft else {"more": ""})).rename("elsewhere")
    script = out / "example.py"
    assert ("soft_label" in script.read_text()) == soft
    assert len(script.read_text().splitlines()) < 25
    monkeypatch.chdir("/")
    runpy.run_path(str(here / script))
    assert "6 images; the first: (3, 8, 8) crane of weight" in capfd.readouterr().out


@pytest.mark.parametrize("layout", ["webdataset", "parquet"])
def test_large_sets_are_cut_into_files(here, run, layout, monkeypatch):
    monkeypatch.setattr(layout_writers, "SHARD", 4)
    assert len(list(exported(run, layout).rglob("train-*"))) == 2
    assert np.array_equal(wmdd.load("out").images, wmdd.load(f"{HERE}/images.h5").images)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_equal_sets_are_equal_bytes(here, run, layout):
    first, second = (exported(run, layout, output=name) for name in ("one", "two"))
    files = [path.relative_to(first) for path in sorted(first.rglob("*")) if path.is_file()]
    assert len(files) > 3
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in files)


# ---- folders of classes


@given(st.lists(st.text(max_size=12), min_size=1, max_size=30, unique=True))
def test_folders_sort_as_the_classes_and_are_safe(classes):
    folders = folder_names(classes)
    assert folders == sorted(folders)
    assert len({name.casefold() for name in folders}) == len(classes)
    assert all(name == Path(name).name not in ("", "..") and not name.startswith(".") for name in folders)


def test_folders_keep_names_that_sort_right_and_are_numbered_else():
    for classes in (["n01440764", "n02102040"], ["airplane", "automobile", "bird"], list("0123")):
        assert folder_names(classes) == classes
    assert folder_names([str(i) for i in range(11)]) == [
        f"{i:02d}-{i}" for i in range(11)
    ]  # "10" would come before "2"
    assert folder_names(["Bee", "bee"]) == ["0-Bee", "1-bee"]
    assert folder_names(["a10", "a9"]) == ["0-a10", "1-a9"]  # timm would put a9 first


# ---- soft labels


@pytest.mark.parametrize("changes", [{}, {"store": "pruned", "keep_epochs": 0.5, "top_k": 2, "temperature": 4}])
def test_soft_labels_are_the_mean_over_epochs(here, run, changes):
    write_labels(Path(f"{HERE}/labels.h5"), Path(f"{HERE}/images.h5"), **changes)
    with stored_labels.opened(Path(f"{HERE}/labels.h5")) as (found, _):
        logits = torch.stack([found.logits(epoch) for epoch in range(2 if changes else EPOCHS)])
    expected = (logits.double() / 4).softmax(-1).mean(0)
    with h5py.File(exported(run, "hdf5") / "distilled.h5") as file:
        np.testing.assert_allclose(file["soft_labels"], expected, rtol=1e-6)
        np.testing.assert_allclose(file["soft_labels"][()].sum(1), 1, rtol=1e-6)


def test_learned_labels_are_the_soft_labels_unless_a_teacher_s_are_given(here, run):
    learned = learn_labels()
    exported(run, "hdf5", output="own", more="")
    assert np.array_equal(wmdd.load("own").soft_labels, learned)
    code, _, err = run(line("hdf5"))
    assert (code, f"{HERE}/labels.h5 takes the place of the labels that {HERE}/images.h5 learned" in err) == (0, True)
    assert not np.allclose(wmdd.load("out").soft_labels, learned)


@pytest.mark.parametrize("changes", [{}, {"store": "pruned", "keep_epochs": 0.5, "top_k": 2, "temperature": 4}])
def test_soft_logits_through_a_softmax_of_their_temperature_are_the_soft_labels(here, run, changes):
    """What DD-Ranking's losses do with the labels that they are given (ddranking 0.2.0, loss/kl.py and sce.py)."""
    write_labels(Path(f"{HERE}/labels.h5"), Path(f"{HERE}/images.h5"), **changes)
    found = wmdd.load(exported(run, "parquet"))
    assert torch.isfinite(found.soft_logits).all()
    torch.testing.assert_close((found.soft_logits / 4).softmax(1), found.soft_labels, rtol=1e-5, atol=1e-7)


# ---- float images


@pytest.mark.parametrize("layout", LAYOUTS)
def test_float_images_are_kept_or_what_is_lost_is_said(here, run, layout):
    images = make_float()
    out = exported(run, layout)
    found, manifest = wmdd.load(out), json.loads((out / "manifest.json").read_text())
    card = (out / "README.md").read_text()
    if layout == "hdf5":
        assert np.array_equal(found.images, images)
        assert (manifest["pixels"], manifest["lost"]) == ("float32", None)
        assert "float32: black 0, white 1" in card
    else:
        assert np.array_equal(found.images, (images.clip(0, 1) * 255).round())
        assert (manifest["pixels"], manifest["lost"]) == ("uint8", {"clipped": 3, "rounded": 3})
        assert "of 1,152 values 3 lay outside black and white and were clipped, 3 were rounded" in card


def test_bytes_as_floats_lose_nothing(here, run):
    before, _ = read_set()
    arrays, meta = load(f"{HERE}/images.h5")
    save(f"{HERE}/images.h5", arrays | {"images": arrays["images"].astype(np.float32) / 255}, meta)
    found = wmdd.load(exported(run, "parquet", more=""))
    assert np.array_equal(found.images, before)
    assert json.loads(Path("out/manifest.json").read_text())["lost"] == {"clipped": 0, "rounded": 0}


# ---- the card


def test_the_card_says_how_it_was_made(here, run):
    card = (exported(run, "hdf5") / "README.md").read_text()
    for part in ("T = 4", "here 3", '"temperature": 4', "CutMix", "top-1 90.00 %", "0123", "&lt;b>\\|bee"):
        assert part in card
    images = Path(f"{HERE}/images.h5")
    write_images(images, list("abcdefghij"), list("abcdefghij"))
    for n, top1 in enumerate((0.5, 0.52)):
        write_student(Path(f"{HERE}/run{n}.json"), images, top1)
    students = f" --student {HERE}/run0.json {HERE}/run1.json --source cifar10 --overwrite"
    card = (exported(run, "parquet", more=students) / "README.md").read_text()
    said = ("51.0 ± 1.4 (2)", "wmdd", "base", "deadbeef", "torch 2", "lr: 0.25", load_meta(images)["digest"])
    for part in (*said, "Krizhevsky", "no soft labels", "| 9 | j | j |"):
        assert part in card


@pytest.mark.parametrize(
    ("count", "more", "expected"),
    [
        (10, "", "cc-by-4.0"),  # by the folder `digits`
        (102, "", "unknown"),  # something else that is called digits
        (10, "--source imagefolder", "unknown"),
        (10, "--source imagewoof", "other"),
    ],
)
def test_the_licence_and_the_first_hundred_classes(here, run, count, more, expected):
    names = [f"n{i:03d}" for i in range(count)]
    write_images(Path(f"{HERE}/images.h5"), names, names, ipc=1)
    card = (exported(run, "hdf5", more=more) / "README.md").read_text()
    assert yaml.safe_load(card.split("---\n")[1])["license"] == expected
    assert ("fill them in here" in card) == (expected == "unknown")
    assert ("| 99 | n099 | n099 |\n\n… and 2 more, in `manifest.json`." in card) == (count == 102)


# ---- where it is written


def test_an_export_is_only_overwritten_when_asked(here, run, mistake):
    Path("out").mkdir()  # an empty folder is taken
    exported(run, "imagefolder")
    assert "add --overwrite" in mistake(line("hdf5"))
    assert Path("out/train").exists()
    exported(run, "hdf5", more="--overwrite")
    assert not Path("out/train").exists()
    Path("out/mine.txt").touch()
    assert "'mine.txt'" in mistake(line("hdf5", more="--overwrite"))
    assert Path("out/mine.txt").exists()
    Path("a").write_text("")
    for overwrite in ("", "--overwrite"):
        assert "no export of wmdd" in mistake(line("hdf5", output=HERE, more=overwrite))
        assert "is a file" in mistake(line("hdf5", output="a", more=overwrite))


def test_a_failure_leaves_what_was(here, run, monkeypatch):
    exported(run, "hdf5")
    before = {path: path.read_bytes() for path in Path("out").iterdir()}

    def broken(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(layout_writers.WRITERS, "parquet", broken)
    code, _, err = run(line("parquet", more="--overwrite"))
    assert code == 1
    assert "disk full" in err
    assert {path: path.read_bytes() for path in Path("out").iterdir()} == before
    assert sorted(path.name for path in Path().iterdir()) == ["out", "results"]


# ---- mistakes


def test_mistakes(here, mistake):
    own, other = Path(f"{HERE}/images.h5"), Path("images.h5")
    write_images(other, CLASSES, ["x", "y", "z"], ipc=3)
    write_labels(Path(f"{HERE}/other.h5"), other, ipc=3)
    write_labels(Path(f"{HERE}/pruned.h5"), own, store="pruned", top_k=1)
    write_student(Path(f"{HERE}/other.json"), other, 0.5)
    for more, expected in (
        (f"--labels {HERE}/other.h5", "labels other images than those given"),
        (f"--labels {HERE}/pruned.h5", "add --temperature 20"),
        (f"--student {HERE}/other.json", "is of a student of another set"),
        (f"--student {HERE}/images.h5", "is not a whole JSON file"),
        ("--source cifar10", "cifar10 has 10 classes, the set has 3"),
        ("--source cifar100x", "did you mean 'cifar100'"),
    ):
        assert expected in mistake(line("hdf5", more=more))
    arrays, meta = load(own)
    save(own, arrays, meta | {"images_per_epoch": 1}, chunked=("images",))
    write_labels(Path(f"{HERE}/part.h5"), own, ipc=1)
    assert "labels other images in each epoch" in mistake(line("hdf5", more=f"--labels {HERE}/part.h5"))
    Path("x.h5").write_text("no")
    for name, expected in (("x", "is no whole HDF5 file"), ("y", "does not exist")):
        assert expected in mistake(f"export --images {name}.h5 --to hdf5 --output out")
    arrays, meta = load(own)
    save(own, arrays | {"images": np.full((3, IPC, 3, SIDE, SIDE), np.nan, np.float32)}, meta)
    assert "'crane' has pixels that are no numbers" in mistake(line("hdf5", more=""), begun=True)
    assert "is no distilled set" in mistake(f"export --images {HERE}/labels.h5 --to hdf5 --output out")
    assert not Path("out").exists()


@pytest.mark.parametrize("can", [True, False])
@pytest.mark.usefixtures("here")
def test_at_no_moment_of_a_replacement_neither_export_is_there(run, monkeypatch, can):
    """Killed at any of its renames, an export leaves the old one or the new one, under its name or once the next begins."""
    exported(run, "hdf5")
    output, before = Path("out"), {path.name for path in Path("out").iterdir()}
    if not can:
        monkeypatch.setattr(atomic_files, "exchanged", lambda *paths: False)
    renames = []
    rename = Path.rename

    def killed(self, target):
        renames.append(self.name)
        rename(self, target)
        if len(renames) == 1:
            os._exit(9)

    if not (child := os.fork()):
        monkeypatch.setattr(Path, "rename", killed)
        run(line("hdf5") + " --overwrite")
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert (status, output.exists()) == ((0, True) if can else (9, False))
    assert "out already holds an export; add --overwrite" in run(line("hdf5"))[2]
    assert {path.name for path in output.iterdir()} == before
    assert not [path.name for path in Path().glob(".out*")]
