"""The stages quantize, distance and decay, and the tables of distances, on measures whose distances are known."""

import itertools
import re
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from wmdd.base.errors import WmddError
from wmdd.base.rng import generator
from wmdd.networks.context import quiet
from wmdd.networks.engine import plain
from wmdd.report import distances as build
from wmdd.settings.latent import DecaySettings, QuantizeSettings
from wmdd.stages.decay import chosen, decay
from wmdd.stages.distance import distances
from wmdd.stages.point_clouds import Cloud
from wmdd.stages.quantize import Latents, quantize

CONTEXT = quiet(plain())
NAMES = ["first", "second"]


@pytest.fixture
def cloud(tmp_path):
    """Two classes of latents in a file, as float16: 40 in four clumps of 4, 8, 12 and 16, and 30 of a normal distribution."""
    clumps = torch.tensor([[-8.0, 0, 0], [8, 0, 0], [0, 8, 0], [0, 0, 8]]).repeat_interleave(
        torch.tensor([4, 8, 12, 16]), 0
    )
    rest = torch.randn(30, 3, generator=generator("rest"))
    noise = 0.01 * torch.randn(40, 3, generator=generator("noise"))
    with h5py.File(tmp_path / "latents.h5", "w") as file:
        file["latents"] = torch.cat([clumps + noise, rest]).half().numpy()
        file["labels"] = np.repeat([0, 1], [40, 30])
    with h5py.File(tmp_path / "latents.h5") as file:
        yield Cloud(Latents(file["latents"]), file["labels"][()], NAMES)


def run(cloud, k, wanted=range(2), seed=0, **settings):
    return quantize(cloud, wanted, k, QuantizeSettings(**settings), seed, CONTEXT.progress)


# Quantize


def test_atoms_are_the_clumps_and_weights_their_masses(cloud):
    found = run(cloud, 4)[0]
    assert found.atoms.atoms.dtype == torch.float32, "half precision would round the atoms"
    order = found.atoms.weights.argsort()
    torch.testing.assert_close(found.atoms.weights[order], torch.tensor([0.1, 0.2, 0.3, 0.4]))
    expected = torch.tensor([[-8.0, 0, 0], [8, 0, 0], [0, 8, 0], [0, 0, 8]])
    torch.testing.assert_close(found.atoms.atoms[order], expected, atol=0.02, rtol=0)
    assert found.quality.cost < 1e-3


def test_equal_weights_cost_what_has_to_be_moved(cloud):
    """Of the masses .1 .2 .3 .4, .15 and .05 have to be moved to the first and second atom, from the fourth and third."""
    found = run(cloud, 4)[0]
    measured, _ = distances(found.atoms.atoms[None], found.atoms.weights[None], cloud, CONTEXT)
    assert measured["cost"][0] < 1e-3 < measured["uniform_cost"][0]
    assert found.uniform_cost == pytest.approx(0.15 * 128 + 0.05 * 128, rel=0.01)  # clumps are 16 or 8 sqrt(2) apart
    equal = run(cloud, 4, weights="uniform")[0]
    assert equal.uniform_cost == equal.quality.cost
    assert torch.equal(equal.atoms.weights, torch.full((4,), 0.25))
    assert found.quality.cost < equal.quality.cost < found.uniform_cost


def test_one_atom_is_the_mean(cloud):
    for label, found in enumerate(run(cloud, 1)):
        points = cloud.read(cloud.rows(label))
        torch.testing.assert_close(found.atoms.atoms[0], points.mean(0), atol=1e-5, rtol=1e-4)
        assert found.quality.cost == pytest.approx(cloud.variance(cloud.rows(label)), rel=1e-4)


def test_a_class_does_not_depend_on_its_block_but_on_the_seed(cloud):
    (alone,) = run(cloud, 5, range(1, 2))
    assert torch.equal(alone.atoms.atoms, run(cloud, 5)[1].atoms.atoms)
    assert not torch.equal(alone.atoms.atoms, run(cloud, 5, range(1, 2), seed=1)[0].atoms.atoms)


def test_d4m_throws_the_masses_away(cloud):
    found = run(cloud, 4, solver="d4m", weights="uniform")
    assert all(torch.allclose(each.atoms.weights, torch.full((4,), 0.25)) for each in found)
    kept = run(cloud, 4, solver="d4m")
    for with_masses, without in zip(kept, found, strict=True):
        assert torch.equal(with_masses.atoms.atoms, without.atoms.atoms)
        assert with_masses.quality.cost <= without.quality.cost * (1 + 1e-9)
        assert without.quality.cost == pytest.approx(with_masses.uniform_cost, rel=1e-6)


def test_the_dimension_is_that_of_the_latents():
    line = torch.randn(500, 1, generator=generator("line")) @ torch.randn(1, 6, generator=generator("direction"))
    (found,) = run(Cloud(line, np.zeros(500, int), NAMES), 2, range(1))
    assert found.dimension == pytest.approx(1, abs=0.2)


def test_a_class_with_fewer_images_than_atoms_is_named(cloud):
    with pytest.raises(WmddError, match=r"class 1 .'second'.* has 30 training images, fewer than the 31 .* lower ipc"):
        run(cloud, 31)


# Distance


def test_a_set_that_is_the_data_has_no_distance(cloud):
    points = cloud.read(cloud.rows(1))
    twice = Cloud(points.repeat(2, 1), [0] * 30 + [1] * 30)
    found, nearest = distances(torch.stack([points, points.flip(0)]), torch.full((2, 30), 1 / 30), twice, CONTEXT)
    assert found["cost"] == pytest.approx([0, 0], abs=1e-6)
    assert nearest == [list(range(30)), list(range(59, 29, -1))], "the nearest image of a real one is itself"


def test_the_nearest_real_image_is_of_the_class_by_its_row_in_the_file():
    real = Cloud(torch.tensor([[0.0, 0], [1, 0], [5, 0], [9, 0], [9, 0]]), [0, 1, 0, 1, 1])
    _, nearest = distances(
        torch.tensor([[[1.0, 0.2], [4, 0]], [[4, 0], [8, 1]]]), torch.full((2, 2), 0.5), real, CONTEXT
    )
    assert nearest == [[0, 2], [1, 3]], "of two as near the first"


def test_one_image_is_as_far_as_the_law_of_the_variance_says(cloud):
    off = torch.tensor([1.0, 2, -2])
    centres = torch.stack([cloud.read(cloud.rows(label)).mean(0) + off for label in range(2)])
    found, _ = distances(centres[:, None], torch.ones(2, 1), cloud, CONTEXT)
    assert found["cost"] == pytest.approx([v + 9 for v in found["variance"]], rel=1e-4)
    assert found["uniform_cost"] == found["cost"]


# Decay


def test_the_rate_of_the_uniform_distribution_on_a_line():
    """W2^2 of K atoms is 1 / (12 K^2), so d = 1."""
    cloud = Cloud(((torch.arange(4096) + 0.5) / 4096)[:, None].double(), [0] * 4096)
    found = decay(cloud, 0, DecaySettings(most=16))
    assert found["atoms"] == [1, 2, 4, 8, 16]
    assert found["cost"] == pytest.approx([1 / (12 * k**2) for k in found["atoms"]], rel=0.01)
    assert found["fitted"] == pytest.approx(1, abs=0.02)
    assert found["mle"] == pytest.approx(1, abs=0.3)


def test_some_classes_from_first_to_last():
    for classes, most, expected in (3, 10, [0, 1, 2]), (100, 4, [0, 33, 66, 99]):
        assert chosen(classes, DecaySettings(classes=most)) == expected


# Tables

ROWS = {"atoms": [1, 2, 4], "cost": [8.0, 4.0, 2.0], "fitted": 2.0, "twonn": float("nan"), "mle": 4.0}
DECAY = Path("results/digits/latent/vae/seed0/decay.json")


def of(method, ipc, seed=0):
    return Path(f"results/digits/nano/{method}/ipc{ipc}/seed{seed}")


@pytest.fixture
def table():
    measured = []
    for method, ipc, seed, c in (("random", 1, 0, 10), ("random", 1, 1, 12), ("ddoq", 1, 0, 8), ("ddoq", 10, 0, 4)):
        found = {"cost": [c, c + 2], "uniform_cost": [c + 1, c + 3], "variance": [20, 20]}
        measured.append((of(method, ipc, seed) / "distance.json", {"distance": found}))
    atoms = []
    for ipc, c in itertools.product((1, 10), (0, 1)):
        found = {"cost": np.array([3.0]), "uniform_cost": np.array([4.0]), "dimension": np.array([7.0 + c])}
        atoms.append((of("ddoq", ipc) / f"quantize/classes{c}-{c}.h5", found))
    return build.summary(measured, atoms)


def test_a_row_is_the_mean_over_classes_and_seeds(table):
    assert list(zip(table["method"], table["ipc"], strict=True)) == [("ddoq", 1), ("ddoq", 10), ("random", 1)]
    assert table["features W2^2"].tolist() == [9, 5, 12]
    assert table["features W2^2, equal"].tolist() == [10, 6, 13]
    assert table["explained"].tolist() == pytest.approx([0.55, 0.75, 0.4])
    assert table["saved"].tolist()[:2] == [25, 25]
    assert table["dimension"].tolist()[:2] == [7.5, 7.5]
    assert table["saved"].isna().tolist() == [False, False, True]


def test_the_text_says_what_the_numbers_are_and_leaves_out_what_there_is_not(table):
    text = build.markdown(table, build.decays([]))
    assert re.search(r"\| digits +\| nano +\| random +\| 1 +\|", text)
    assert "Decay" not in text
    alone = table[table["method"] == "random"]
    assert "latents W2^2" not in build.markdown(alone, build.decays([])).split("\n\n")[-1]
    rows = ROWS | {"twonn": 3.0}
    text = build.markdown(table, build.decays([(DECAY, {"decay": [rows, rows | {"cost": [10.0, 6.0, 4.0]}]})]))
    assert re.search(r"\| 9 +\| 5 +\| 3 +\| 2 +\| 3 +\| 4 +\|", text)


@pytest.mark.parametrize("falling", [False, True])
def test_the_picture_is_drawn(table, tmp_path, falling):
    found = build.decays([(DECAY, {"decay": [ROWS]})] if falling else [])
    for name in ("a", "b"):
        build.draw(table, found, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with Image.open(tmp_path / "a") as picture:
        assert picture.width > (1500 if falling else 500)
        assert len(picture.convert("RGB").getcolors(2**20)) > 50


def legends(chart):
    """The names in the legend of each panel."""
    layers = [layer for panel in chart.to_dict()["hconcat"] for layer in panel["layer"][:1]]
    return [layer["encoding"]["color"]["scale"]["domain"] for layer in layers]


def test_a_line_is_of_one_teacher(table):
    decays = build.decays(
        [(DECAY, {"decay": [ROWS]}), (Path("results/cifar10/latent/vae/seed0/decay.json"), {"decay": [ROWS]})]
    )
    both = pd.concat([table, table.assign(teacher="other")])
    assert legends(build.figure(table, decays.head(0))) == [["ddoq", "random"]]
    first, second, third = legends(build.figure(both, decays))
    assert first == ["nano ddoq", "nano random", "other ddoq", "other random"]
    assert second == ["cifar10, vae", "K^(-1/2), fitted, cifar10, vae", "digits, vae", "K^(-1/2), fitted, digits, vae"]
    assert third == ["nano ddoq", "other ddoq"]


def test_a_rate_goes_through_the_middle_of_its_decay():
    chart = build._decay(build.decays([(DECAY, {"decay": [ROWS | {"fitted": 4.0}]})]))
    (values,) = chart.to_dict()["datasets"].values()
    rate = [row["distance"] for row in values if row["line"].startswith("K^(-1/4)")]
    assert rate == pytest.approx([2 * 2**0.25, 2, 2 / 2**0.25])


def test_a_file_that_is_elsewhere_is_refused():
    with pytest.raises(WmddError, match=r"elsewhere.json is not where the workflow puts a file; keep the folders"):
        build.summary([(Path("elsewhere.json"), {"distance": {"cost": [], "uniform_cost": [], "variance": []}})], [])
