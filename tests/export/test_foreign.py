"""Sets in the exact form of their authors' scripts are read back to the same bits; anything else is one clear line."""

import io
import json
import re
import tarfile
import zipfile
from hashlib import sha256

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.export.test_export import exported, here  # noqa: F401
from wmdd.base.errors import WmddError
from wmdd.export.foreign import read
from wmdd.export.foreign_labels import kind_of
from wmdd.export.layout_writers import png
from wmdd.export.loading import load

C, K, R = 4, 3, 8
LABELS = torch.arange(C).repeat_interleave(K)


@pytest.fixture
def normalised():
    return torch.randn(C * K, 3, R, R, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (C * K, 3, R, R), dtype=np.uint8)


def refused(path, **options):
    """The one line that says why a set is not read."""
    with pytest.raises(WmddError) as error:
        read(path, **options)
    line = str(error.value)
    assert "\n" not in line
    assert "delete it and run again" not in line
    return line


def same(found, images, labels=LABELS):
    """Check images and labels, bit by bit."""
    images, labels = np.asarray(images), np.asarray(labels)
    assert found.images.dtype == images.dtype
    assert np.array_equal(found.images, images)
    assert np.array_equal(found.labels, labels)


# ---- files of torch


def test_dc_and_dm(tmp_path, normalised):
    """main_DM.py of DC saves a pair for each experiment, and accuracies that are numbers of NumPy."""
    path = tmp_path / "res_DM_CIFAR10_ConvNet_3ipc.pt"
    data = [[normalised + shift, LABELS] for shift in (0, 1)]
    torch.save({"data": data, "accs_all_exps": {"ConvNet": [np.float64(0.5)]}}, path)
    found = read(path)
    same(found, normalised)
    assert (found.layout, found.label_kind, found.space) == ("dc", "index", "normalised")
    assert found.notes == ["The file has 2 experiments; number 0 was taken."]
    assert found.sha256 == sha256(path.read_bytes()).hexdigest()
    same(read(path, experiment=1), normalised + 1)
    assert "2 experiments" in refused(path, experiment=2)


def test_a_file_that_numpy_1_wrote(tmp_path, normalised):
    torch.save({"data": [[normalised, LABELS]], "accs_all_exps": {"ConvNet": [np.float64(0.5)]}}, tmp_path / "2.pt")
    with zipfile.ZipFile(tmp_path / "2.pt") as new, zipfile.ZipFile(tmp_path / "1.pt", "w") as old:
        for member in new.infolist():
            old.writestr(member.filename, new.read(member).replace(b"numpy._core.", b"numpy.core."))
    assert b"numpy.core.multiarray" in (tmp_path / "1.pt").read_bytes()
    same(read(tmp_path / "1.pt"), normalised)


def test_mtt(tmp_path, normalised):
    """distill.py of MTT saves the best, and those of iterations; of whitened ones also the pixels with it undone."""
    for name, images in {
        "images_best": normalised,
        "images_500": normalised - 1,
        "images_zca_500": normalised + 1,
    }.items():
        torch.save(images, tmp_path / f"{name}.pt")
    for name in ("best", "500"):
        torch.save(LABELS, tmp_path / f"labels_{name}.pt")
    best = read(tmp_path)
    same(best, normalised)
    assert (best.layout, best.space, best.learned_rate) == ("mtt", None, None)
    assert best.sha256 == read(tmp_path / "images_best.pt").sha256
    same(read(tmp_path / "images_500.pt"), normalised - 1)
    undone = read(tmp_path / "images_zca_500.pt")
    same(undone, normalised + 1)
    assert undone.space == "unit"
    assert "undid the whitening" in undone.notes[0]
    (tmp_path / "labels_best.pt").unlink()
    for layout in ("mtt", "auto"):
        assert "labels_best.pt beside it is missing" in refused(tmp_path / "images_best.pt", layout=layout)


def test_datm(tmp_path, normalised):
    """DATM.py saves learned logits, which still ask for a gradient, and the learned rate, below Normal."""
    folder = tmp_path / "Normal"
    folder.mkdir()
    logits = torch.randn(C * K, C, requires_grad=True)
    for name, tensor in {"images": normalised, "labels": logits, "lr": torch.tensor(0.25)}.items():
        torch.save(tensor, folder / f"{name}_best.pt")
    found = read(tmp_path)
    same(found, normalised, logits.detach())
    assert (found.layout, found.label_kind, found.learned_rate) == ("datm", "logits", 0.25)


def test_idc_and_ncfm(tmp_path, normalised):
    """IDC's condense.py saves a pair in [0, 1], and its options beside it; NCFM the pair alone."""
    unit = normalised.sigmoid()
    torch.save([unit, LABELS], tmp_path / "data.pt")
    found = read(tmp_path)
    same(found, unit)
    assert (found.layout, found.space, found.factor) == ("idc", "unit", None)
    assert "does not say how many; set tiles" in found.notes[0]
    (tmp_path / "args.txt").write_text(json.dumps({"factor": 2, "decode_type": "single"}))
    assert read(tmp_path).factor == 2
    assert read(tmp_path / "data.pt", layout="ncfm").layout == "ncfm"
    (tmp_path / "args.txt").write_text(json.dumps({"factor": 2, "decode_type": "multi"}))
    assert "formation 'multi', which is not undone" in refused(tmp_path)


def test_other_forms_of_torch(tmp_path, normalised):
    path = tmp_path / "set.pt"
    torch.save((normalised, LABELS, torch.tensor(0.5)), path)
    found = read(path)
    same(found, normalised)
    assert (found.layout, found.learned_rate, found.space) == ("tensors", 0.5, None)
    torch.save({"images": normalised.half(), "label": LABELS, "syn_lr": 0.125, "epoch": 3}, path)
    found = read(path)
    same(found, normalised.half().float())
    assert found.learned_rate == 0.125
    same(read(path, layout="tensors"), normalised.half().float())
    same(read(path.rename(tmp_path / "set.pth.tar")), normalised.half().float())
    torch.save(normalised.unflatten(0, (C, K)), path)  # sorted by class, as images.h5 is
    same(read(path), normalised)
    torch.save(normalised, path)
    assert "has images but no labels" in refused(path)
    torch.save({"epoch": torch.tensor(3)}, path)
    assert "no images [N, 3, H, W] (epoch [])" in refused(path)


# ---- arrays


@pytest.mark.parametrize("kind", ["npz", "npz of SciPy", "npy", "hdf5"])
def test_arrays(tmp_path, pixels, kind):
    labels = np.eye(C)[LABELS]
    if kind == "npy":
        path = tmp_path / "images.npy"
        np.save(path, pixels)
        np.save(tmp_path / "labels.npy", labels)
    elif kind == "hdf5":
        path = tmp_path / "set.hdf5"
        with h5py.File(path, "w") as file:
            file.create_dataset("train/images", data=pixels, compression="gzip")
            file["train/labels"], file["test/x"], file["test/pictures"] = labels, np.zeros(3), pixels[:1]
    else:
        path = tmp_path / "set.npz"
        save = np.savez if kind == "npz" else np.savez_compressed
        save(path, x_train=pixels.transpose(0, 2, 3, 1), y_train=labels, weight=np.full(C * K, 0.5))
    found = read(path)
    same(found, pixels, labels)
    assert found.label_kind == "one-hot"
    assert found.layout == ("hdf5" if kind == "hdf5" else "arrays")
    if kind == "hdf5":
        assert found.notes[0] == "The images are train/images; test/pictures may be images too: left out."
    if "npz" in kind:
        assert found.weights.tolist() == [0.5] * C * K
        assert "channels last" in found.notes[0]


def test_numbers_of_other_types(tmp_path, pixels):
    path = tmp_path / "set.npz"
    np.savez(path, images=pixels.astype(np.int64), labels=LABELS.float())
    same(read(path), pixels)
    np.savez(path, images=pixels[:, :1].astype(np.float64) / 255, labels=LABELS)
    found = read(path)
    same(found, (pixels[:, :1] / 255).astype(np.float32).repeat(3, 1))
    assert found.notes == [
        "The images are grey; each got three equal channels.",
        "The pixels are float64; they were rounded to float32.",
    ]
    np.savez(path, images=pixels.astype(np.int64) - 1, labels=LABELS)
    assert "integers -1 to" in refused(path)


# ---- pictures


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("new{:03d}", "class{:03d}_id{:03d}.png"),
        ("train/{:05d}", "class{:05d}_id{:05d}.png"),
        ("n{:08d}", "n{:08d}_{}.png"),
    ],
    ids=["SRe2L", "RDED below train/", "torchvision"],
)
def test_folders_of_classes(tmp_path, pixels, folder, name):
    for index, image in enumerate(pixels):
        path = tmp_path / folder.format(index // K) / name.format(index // K, index % K)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(image))
    found = read(tmp_path)
    same(found, pixels)
    assert found.layout == "imagefolder"
    assert found.names == [folder.format(c).rpartition("/")[2] for c in range(C)]
    assert read(tmp_path, side=4).images.shape == (C * K, 3, 4, 4)
    (path.parent / path.name).write_bytes(png(pixels[0]))
    assert read(tmp_path).sha256 != found.sha256


def parquet(path, pixels, image="image", label="label", **columns):
    records = [{"bytes": png(p), "path": None} for p in pixels]
    table = pa.table({image: records, label: LABELS.tolist(), **columns})
    names = {"info": {"features": {label: {"names": ["d", "c", "b", "a"], "_type": "ClassLabel"}}}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(names)}), path)


def test_parquet_of_hugging_face(tmp_path, pixels):
    (tmp_path / "data").mkdir()
    parquet(tmp_path / "data/train-00000-of-00001.parquet", pixels, "img", "fine_label")
    parquet(tmp_path / "data/test-00000-of-00001.parquet", pixels[::-1], "img", "fine_label")
    found = read(tmp_path)
    same(found, pixels)
    assert (found.layout, found.names) == ("parquet", ["d", "c", "b", "a"])
    soft = np.full((C * K, C), 0.25, np.float32)
    parquet(tmp_path / "one.parquet", pixels, soft_label=soft.tolist(), weight=[0.5] * (C * K))
    found = read(tmp_path / "one.parquet")
    same(found, pixels, soft)
    assert found.label_kind == "probabilities"
    assert np.array_equal(found.hard_labels, LABELS)
    assert found.weights.tolist() == [0.5] * C * K


def tar(path, samples):
    with tarfile.open(path, "w") as file:
        for name, data in samples.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))


def test_webdataset(tmp_path, pixels):
    samples = {}
    for index, (image, label) in enumerate(zip(pixels, LABELS.tolist(), strict=True)):
        samples |= {f"train/{index:04d}.png": png(image), f"train/{index:04d}.cls": b"%d" % label}
    tar(tmp_path / "train-0000.tar", samples)
    found = read(tmp_path)
    same(found, pixels)
    assert found.layout == "webdataset"
    named = {
        name: b"dcba"[int(data) : int(data) + 1] if name.endswith("cls") else data for name, data in samples.items()
    }
    tar(tmp_path / "train-0000.tar", named)
    found = read(tmp_path / "train-0000.tar")
    assert found.names == ["a", "b", "c", "d"]
    assert np.array_equal(found.labels, C - 1 - LABELS.numpy())
    del named["train/0003.cls"]
    tar(tmp_path / "train-0000.tar", named)
    assert "11 of 12 samples" in refused(tmp_path)


# ---- our own


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("layout", ["imagefolder", "hdf5", "webdataset", "parquet"])
def test_our_own_exports(run, layout):
    folder = exported(run, layout)
    known, found = load(folder), read(folder)
    same(found, known.images, known.labels if known.soft_labels is None else known.soft_labels)
    assert np.array_equal(found.weights, known.weights)
    assert (found.layout, found.names, found.readable_names) == ("wmdd", known.classes, known.names)


# ---- labels


ROWS = st.integers(3, 6).flatmap(
    lambda c: hnp.arrays(np.float32, st.tuples(st.integers(1, 9), st.just(c)), elements=st.floats(-8, 8, width=32))
)


@given(ROWS)
def test_labels_are_told_apart(rows):
    path = "set.pt"
    classes = rows.argmax(1)
    one_hot = np.eye(rows.shape[1], dtype=np.float32)[classes]
    soft = np.exp(rows - rows.max(1, keepdims=True))
    soft /= soft.sum(1, keepdims=True)
    logits = rows - rows.mean(1, keepdims=True) + np.linspace(-1, -0.5, rows.shape[1], dtype=np.float32)
    assert kind_of(classes, path)[1] == kind_of(classes[:, None].astype(float), path)[1] == "index"
    assert kind_of(one_hot, path)[1] == "one-hot"
    assert kind_of(soft, path)[1] in ("probabilities", "one-hot")  # where float32 has no room between
    assert kind_of(np.log(soft + 1e-9) - 1e-3 * np.arange(rows.shape[1]), path)[1] == "logits"
    if len(np.unique(logits[0])) > 2:
        assert kind_of(logits, path)[1] == "logits"


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([[3.0, 1, 2]], "rows sum to 6 to 6: they may be one-hot, probabilities or logits"),
        ([[0.9, -0.1, -0.1]], "they may be"),  # centred one-hot of KIP and FRePo
        ([[1.0, 1, 0]], "they may be"),
        ([[np.nan, 1, 0]], "NaN"),
        ([0.5], "not whole ones"),
        ([-1], "go down to -1"),
        (["a"], "must be [N] or [N, C] numbers"),
    ],
)
def test_ambiguous_labels_are_asked_for(rows, reason):
    with pytest.raises(WmddError, match=re.escape(reason)):
        kind_of(np.array(rows), "set.pt")


def test_the_kind_of_labels_can_be_said():
    rows = np.array([[0.9, -0.1, -0.1], [-0.1, -0.1, 0.9]])
    assert kind_of(rows, "set.pt", "logits")[1] == "logits"
    labels, kind, _ = kind_of(rows, "set.pt", "one-hot")
    assert kind == "one-hot"
    assert labels.tolist() == [[1, 0, 0], [0, 0, 1]]
    with pytest.raises(WmddError, match="are no probabilities"):
        kind_of(rows, "set.pt", "probabilities")
    with pytest.raises(WmddError, match="name one of auto, index"):
        kind_of(rows, "set.pt", "soft")


# ---- bad input


class Code:
    """What must not be run."""

    def __reduce__(self):
        return print, ("run",)


def test_a_file_that_needs_code_is_not_unpickled(tmp_path, normalised, capsys):
    torch.save({"images": normalised, "labels": LABELS, "options": Code()}, tmp_path / "set.pt")
    assert "holds more than tensors" in refused(tmp_path / "set.pt")
    np.savez(tmp_path / "set.npz", images=np.array([Code()] * 2, dtype=object))
    assert "Python objects" in refused(tmp_path / "set.npz")
    assert capsys.readouterr().out == ""


def test_claims_are_not_believed(tmp_path):
    torch.save([torch.zeros(1).expand(10**6, 3, 32, 32), LABELS], tmp_path / "set.pt")
    assert "claims" in refused(tmp_path / "set.pt")
    with h5py.File(tmp_path / "set.h5", "w") as file:
        file.create_dataset("images", (10**6, 3, 32, 32), "u1", chunks=(1, 3, 32, 32))
    assert "claims" in refused(tmp_path / "set.h5")
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive, archive.open("images.npy", "w") as member:
        np.lib.format.write_array_header_1_0(
            member, {"descr": "|u1", "fortran_order": False, "shape": (10**6, 3, 32, 32)}
        )
    assert "claims" in refused(tmp_path / "set.npz")
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", bytes(2**25))
    assert "set.pt" not in refused(tmp_path / "bomb.pt")


@pytest.mark.parametrize("content", [b"", b"no set", b"PK\x03\x04 cut short"])
@pytest.mark.parametrize("name", ["set.pt", "set.npz", "images.npy", "set.h5", "set.parquet", "set.tar"])
def test_damaged_files_are_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert str(tmp_path / name) in refused(tmp_path / name)


def folders(root, pictures):
    for name, data in pictures.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


def test_bad_folders(tmp_path, pixels):
    (tmp_path / "empty").mkdir()
    assert "holds nothing, which is no known layout" in refused(tmp_path / "empty")
    folders(tmp_path / "sizes", {"a/1.png": png(pixels[0]), "b/1.png": png(pixels[0][:, :4, :4])})
    assert "is 8 x 8 px and" in refused(tmp_path / "sizes")
    folders(tmp_path / "damaged", {"a/1.png": b"no picture"})
    assert "cannot be read as a picture" in refused(tmp_path / "damaged")
    folders(tmp_path / "gap", {"a/1.png": png(pixels[0]), "b/read.me": b""})
    assert "b has no pictures" in refused(tmp_path / "gap")
    folders(tmp_path / "link", {"a/1.png": png(pixels[0])})
    (tmp_path / "link/a/2.png").symlink_to(tmp_path / "sizes/a/1.png")
    assert "links to" in refused(tmp_path / "link")


def test_a_whole_training_set_is_refused_before_it_is_decoded(tmp_path):
    folders(tmp_path / "train", {f"{c}/{k}.png": b"never decoded" for c in range(2) for k in range(5)})
    assert "has 10 images, where at most 9 were expected: is it a whole training set?" in refused(tmp_path, most=9)


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("nowhere.pt", {}, "does not exist"),
        ("set.zip", {}, "unpack it"),
        ("set.pkl", {}, "no known layout by its ending"),
        ("set.npz", {"layout": "table"}, "no layout 'table'"),
        ("set.npz", {"layout": "imagefolder"}, "give the folder whose folders are the classes"),
        ("set.npz", {}, "1 of 2 images of"),
        ("few.npz", {}, "2 images and 1 labels"),
        ("flat.npz", {}, "images [N, 3, H, W] are needed"),
        (
            "pair.pt",
            {"layout": "dc"},
            "layout dc (a mapping whose data is [[images, labels], ...]): it holds a list",
        ),
    ],
)
def test_refused(tmp_path, name, options, reason):
    images = np.zeros((2, 3, 4, 4), np.float32)
    (tmp_path / "set.zip").touch()
    (tmp_path / "set.pkl").touch()
    np.savez(tmp_path / "few.npz", images=images, labels=[0])
    np.savez(tmp_path / "flat.npz", images=images[:, :2], labels=[0, 1])
    torch.save([torch.zeros(2, 3, 4, 4), torch.arange(2)], tmp_path / "pair.pt")
    images[1, 0, 0, 0] = np.nan
    np.savez(tmp_path / "set.npz", images=images, labels=[0, 1])
    assert reason in refused(tmp_path / name, **options)


def test_an_experiment_in_a_folder_of_its_own_is_found(tmp_path, pixels):
    """SRe2L saves into syn_data/EXPERIMENT/new000; the folder above names the same set."""
    folders(tmp_path / "syn_data/experiment", {f"new00{c}/{c}.png": png(pixels[c]) for c in range(2)})
    folders(tmp_path / "syn_data", {"experiment/new000/._0.png": b"of macOS", "experiment/new001/a.heic": b""})
    found = read(tmp_path / "syn_data")
    assert found.names == ["new000", "new001"]
    assert found.notes == [
        f"The classes are the folders in {tmp_path / 'syn_data/experiment'}.",
        "1 pictures are in formats that are not read (a.heic) and were passed over.",
    ]
    folders(tmp_path / "nested", {f"n0{c}/images/{c}.png": png(pixels[c]) for c in range(2)})
    assert read(tmp_path / "nested").names == ["n00", "n01"]
