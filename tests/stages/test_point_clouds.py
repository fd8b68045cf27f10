"""Points on disk: found in a file, and read a class at a time."""

import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from wmdd.artifacts.atomic_files import sha256_of
from wmdd.artifacts.hdf5_writer import save
from wmdd.base.errors import WmddError
from wmdd.stages import point_clouds
from wmdd.stages.point_clouds import Cloud, Confident, reading

N, D = 200, 3
VALUES = np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)
SORTED = np.arange(N) // 50
MIXED = np.random.default_rng(1).integers(0, 4, N)
MANIFEST = {"classes": list("abcd"), "names": list("ABCD"), "resolution": 8, "mean": [0.5], "std": [0.5]}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path, **datasets):
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            file[name.replace("__", "/")] = values
    return path


def kept(path, cloud_of=None, **chosen):
    """All that a file holds: the points of each class by name, and the meta data."""
    with reading(path, **chosen) as source:
        names = source.meta["classes"]
        found = {name: source.cloud.read(source.cloud.rows(c)).numpy() for c, name in enumerate(names)}
        return found, source.meta


# A class at a time


@pytest.mark.parametrize("labels", [SORTED.astype(np.uint8), MIXED], ids=["sorted", "mixed"])
@pytest.mark.parametrize("kind", ["array", "tensor", "hdf5"])
def test_a_class_is_its_rows_in_order(tmp_path, monkeypatch, labels, kind):
    monkeypatch.setattr(point_clouds, "PIECE", 7 * D * 4)
    monkeypatch.setattr(point_clouds, "GAP", 2)
    values = {"array": VALUES, "tensor": torch.from_numpy(VALUES)}.get(kind)
    with h5py.File(write(tmp_path / "x", x=VALUES)) as file:
        cloud = Cloud(file["x"] if values is None else values, labels)
        for label in range(4):
            found = cloud.read(cloud.rows(label))
            assert isinstance(cloud.rows(label), range) == (np.diff(np.flatnonzero(labels == label)) == 1).all()
            assert found.dtype == torch.float32
            np.testing.assert_array_equal(found.numpy(), VALUES[labels == label])


@pytest.mark.parametrize("piece", [1, 100, 10**9])
def test_the_variance_does_not_depend_on_the_pieces(monkeypatch, piece):
    monkeypatch.setattr(point_clouds, "PIECE", piece)
    cloud = Cloud(VALUES + 100, MIXED)
    for label in range(4):
        mine = (VALUES + 100)[label == MIXED].astype(np.float64)
        assert cloud.variance(cloud.rows(label)) == pytest.approx(mine.var(0).sum(), rel=1e-9)


def test_only_the_rows_of_a_class_are_in_memory(tmp_path):
    many = np.zeros((40_000, 64), np.float32)  # 10 MB
    with h5py.File(write(tmp_path / "x", x=many)) as file:
        cloud = Cloud(file["x"], np.arange(len(many)) // 400)
        tracemalloc.start()
        for label in range(100):
            cloud.read(cloud.rows(label))
            cloud.variance(cloud.rows(label))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 10 * 400 * 64 * 4


@pytest.mark.parametrize(("share", "count"), [(1.0, 50), (0.3, 15), (0.31, 16), (1e-6, 1)])
def test_the_confident_rows_are_those_of_least_loss(share, count):
    head, labels = torch.nn.Linear(D, 4), np.arange(N) % 4
    cloud = Confident(Cloud(VALUES, labels, list("ABCD")), head.weight.detach(), head.bias.detach(), share)
    for label in range(4):
        rows = np.asarray(cloud.rows(label))
        assert len(rows) == count
        assert (np.diff(rows) > 0).all()
        assert (labels[rows] == label).all()
        losses = -head(torch.from_numpy(VALUES)).log_softmax(1)[:, label].detach().numpy()
        others = np.setdiff1d(np.flatnonzero(labels == label), rows)
        assert not len(others) or losses[rows].max() <= losses[others].min()
        np.testing.assert_array_equal(cloud.read(rows), VALUES[rows])


def test_a_class_without_points_is_named():
    cloud = Cloud(VALUES[:4], [0, 0, 2, 2], ["ant", "bee", "cat"])
    with pytest.raises(WmddError, match=r"^class 1 \('bee'\) has no features"):
        cloud.rows(1)
    assert Cloud(VALUES[:2], [0, 1]).title(1) == "class 1"
    assert Cloud(VALUES, None, ["x.npy"]).title(0) == "x.npy"


@pytest.mark.parametrize(
    ("kind", "read"),
    [("<f4", "float32"), (">f4", "float32"), (">f8", "float64"), ("f2", "float16"), (">i2", "float64"), ("u1", "float64")],
)  # fmt: skip
def test_numbers_of_any_kind(here, kind, read):
    values = np.abs(10 * VALUES).round().astype(kind)
    np.save("x.npy", values)
    for path in write(here / "x.h5", x=values), here / "x.npy":
        (found,) = kept(path)[0].values()
        assert found.dtype == read
        np.testing.assert_array_equal(found, values.astype(found.dtype))


# Files


def test_the_features_of_an_artifact(here):
    save(here / "f.h5", {"features": VALUES, "labels": SORTED}, MANIFEST)
    found, meta = kept(here / "f.h5")
    assert list(found) == list("abcd")
    np.testing.assert_array_equal(found["c"], VALUES[100:150])
    with reading(here / "f.h5") as source:
        assert source.input() == meta
        assert source.cloud.title(2) == "class 2 ('C')"


def test_an_array_is_one_measure_and_is_not_read_whole(here):
    np.save("x.npy", np.asarray(VALUES, order="F"))
    found, meta = kept(here / "x.npy")
    assert meta == {"classes": ["x.npy"], "names": ["x.npy"]}
    np.testing.assert_array_equal(found["x.npy"], VALUES)
    with reading(here / "x.npy") as source:
        assert isinstance(source.cloud.points, np.memmap)
        assert source.input() == sha256_of(here / "x.npy")


@pytest.mark.parametrize(
    "kinds",
    [[7, -2, 300], [b"7", b"-2", b"300"], np.array(["7", "-2", "300"], object)],
    ids=["numbers", "bytes", "text"],
)
@pytest.mark.parametrize("chosen", [{}, {"labels": "labels"}, {"dataset": "features"}])
def test_labels_of_any_kind_name_the_classes(here, kinds, chosen):
    labels = np.asarray(kinds)[MIXED % 3]
    found, meta = kept(write(here / "x.h5", features=VALUES, labels=labels), **chosen)
    assert set(found) == {"7", "-2", "300"}
    assert meta["names"] == meta["classes"] == list(found)
    for i, name in enumerate(("7", "-2", "300")):
        np.testing.assert_array_equal(found[name], VALUES[i == MIXED % 3])


@pytest.mark.parametrize(
    ("datasets", "chosen", "wanted"),
    [
        ({"x": VALUES, "y": VALUES[:, 0], "z": np.zeros((2, 2, 2))}, {}, 1),
        ({"features": VALUES, "other": VALUES}, {}, 1),
        ({"a": VALUES, "other": VALUES}, {"dataset": "a"}, 1),
        ({"train__x": VALUES, "train__labels": MIXED}, {}, 4),  # beside the points
        ({"train__x": VALUES, "labels": MIXED}, {}, 1),
        ({"train__x": VALUES, "labels": MIXED}, {"labels": "labels"}, 4),
        ({"x": VALUES, "labels": MIXED[:-1]}, {}, 1),  # of something else
        ({"x": VALUES, "labels": VALUES[:, 0]}, {}, 1),
    ],
)
def test_what_is_meant_in_a_file(here, datasets, chosen, wanted):
    found, _ = kept(write(here / "x.h5", **datasets), **chosen)
    assert len(found) == wanted
    assert sum(len(part) for part in found.values()) == N


def test_an_artifact_is_a_file_like_any_other_for_who_names_a_dataset(here):
    save(here / "f.h5", {"features": VALUES, "labels": SORTED[:-1]}, MANIFEST)
    with pytest.raises(WmddError, match=r"f.h5 has 200 features but labels \(199,\)"):
        kept(here / "f.h5")
    save(here / "f.h5", {"atoms": VALUES}, MANIFEST)
    with pytest.raises(WmddError, match=r"f.h5 lacks features, labels; give the features.h5"):
        kept(here / "f.h5")
    assert list(kept(here / "f.h5", dataset="atoms")[0]) == ["f.h5"]


@pytest.mark.parametrize(
    ("datasets", "chosen", "says"),
    [
        ({"a": VALUES, "g__b": VALUES}, {}, "x.h5 has several 2-D datasets: a, g/b; choose one with --dataset NAME"),
        ({"a": VALUES[0]}, {}, "x.h5 has no 2-D dataset of numbers"),
        ({"features": np.zeros((2, 2, 2))}, {}, "x.h5 has no 2-D dataset of numbers"),
        ({"a": VALUES.astype(complex)}, {"dataset": "a"}, "a of x.h5 holds complex128, not real numbers"),
        ({"a": VALUES}, {"dataset": "b"}, "x.h5 has no dataset 'b'; it has: a"),
        ({"g__a": VALUES}, {"dataset": "g"}, "x.h5 has no dataset 'g'; it has: g/a"),
        ({"a": VALUES[0]}, {"dataset": "a"}, r"a of x.h5 has the shape \(3,\); points \[N, D\]"),
        ({"features": VALUES[:0]}, {}, r"features of x.h5 has the shape \(0, 3\)"),
        ({"a": VALUES}, {"labels": "b"}, "x.h5 has no dataset 'b'; it has: a"),
        ({"a": VALUES, "b": MIXED[:9]}, {"labels": "b"}, r"labels b of x.h5 are int64 of shape \(9,\), but 200"),
        ({"a": VALUES, "b": VALUES[:, 0]}, {"labels": "b"}, "labels b of x.h5 are float32 of shape"),
    ],
)
def test_what_is_not_clear_in_a_file(here, datasets, chosen, says):
    write(here / "x.h5", **datasets)
    with pytest.raises(WmddError, match=f"^{says}") as error:
        kept(Path("x.h5"), **chosen)
    assert "\n" not in str(error.value)


def saved(values, **options):
    np.save("x", values, **options)
    return Path("x.npy").read_bytes()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "x does not exist; run the stage that makes it first"),
        (lambda: b"", "x is neither an HDF5 file nor an array"),
        (lambda: b"1,2,3\n", "x is neither an HDF5 file nor an array"),
        (lambda: b"PK\3\4 and more", "x is an archive"),
        (lambda: saved(VALUES)[:500], "x is not a whole .npy file"),
        (lambda: saved(VALUES)[:20], "x is not a whole .npy file"),
        (lambda: saved(np.array([{}]), allow_pickle=True), "x holds Python objects, which are not loaded"),
        (lambda: saved(VALUES[0]), r"x has the shape \(3,\)"),
        (lambda: saved(VALUES[:0]), r"x has the shape \(0, 3\)"),
        (lambda: saved(VALUES.astype(str)), "x holds <U"),
        (lambda: Path(write("y", a=VALUES)).read_bytes()[:1000], "x is not a whole HDF5 file"),
    ],
)
def test_files_that_hold_no_points(here, content, says):
    if content is not None:
        (here / "x").write_bytes(content())
    with pytest.raises(WmddError, match=f"^{says}") as error:
        kept(Path("x"))
    assert "\n" not in str(error.value)


def test_a_folder_and_flags_that_do_not_belong(here):
    with pytest.raises(WmddError, match="is a folder; name a file"):
        kept(here)
    np.save("x.npy", VALUES)
    with pytest.raises(WmddError, match="has one array; --dataset and --labels are for HDF5"):
        kept(here / "x.npy", labels="labels")
