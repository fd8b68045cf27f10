"""Real images chosen as they are."""

import pytest
import torch
from torch import Tensor

from wmdd.errors import WmddError
from wmdd.points import Cloud
from wmdd.rng import generator
from wmdd.select import kmeans_medoid, random, select
from wmdd.settings import BarycenterSettings, SelectSettings

NAMES = ["ant", "bee", "cat"]
LABELS = torch.tensor([0] * 9 + [1] * 6 + [2] * 14)
SOLVER = BarycenterSettings(restarts=5)
STRATEGIES = pytest.mark.parametrize("strategy", ["random", "kmeans-medoid"])


def features(count: int = len(LABELS), key: str = "") -> Tensor:
    return torch.randn(count, 4, generator=generator("select test", key, count))


def chosen(strategy: str, k: int, seed: int = 0, labels: Tensor = LABELS) -> tuple[Tensor, Tensor]:
    return select(
        labels, NAMES, k, Cloud(features(len(labels)), labels), SelectSettings(strategy=strategy), SOLVER, seed
    )


@STRATEGIES
@pytest.mark.parametrize("k", [1, 3, 6])
def test_images_are_distinct_and_of_their_class(strategy, k):
    positions, weights = chosen(strategy, k)
    assert positions.shape == weights.shape == (3, k)
    assert weights.dtype == torch.float32
    for label in range(3):
        assert len(positions[label].unique()) == k
        assert bool((LABELS[positions[label]] == label).all())
    torch.testing.assert_close(weights.sum(1), torch.ones(3))


@STRATEGIES
def test_a_choice_is_that_of_its_seed(strategy):
    assert torch.equal(chosen(strategy, 3)[0], chosen(strategy, 3)[0])
    many = torch.cat([LABELS] * 20).sort().values
    assert not torch.equal(chosen(strategy, 4, 0, many)[0], chosen(strategy, 4, 1, many)[0])


def test_random_is_uniform_over_the_class():
    count = torch.zeros(9)
    for seed in range(900):
        positions, weights = random(9, 3, seed, 0)
        count[positions] += 1
        assert weights.tolist() == pytest.approx([1 / 3] * 3)
    assert bool(((count - 300).abs() < 70).all())  # five standard deviations


def test_random_asks_for_no_features():
    select(LABELS, NAMES, 2, None, SelectSettings(strategy="random"), SOLVER, 0)


def test_classes_are_chosen_independently():
    assert not torch.equal(random(20, 5, 0, 0)[0], random(20, 5, 0, 1)[0])


def test_one_medoid_is_the_image_nearest_the_mean():
    positions, weights = chosen("kmeans-medoid", 1)
    for label in range(3):
        mine = features()[label == LABELS]
        nearest = (mine - mine.mean(0)).norm(dim=1).argmin() + (label > LABELS).sum()
        assert positions[label].tolist() == [int(nearest)]
    assert weights.tolist() == [[1.0]] * 3


def test_medoids_of_separated_clusters_with_their_masses():
    parts = [100 * i + features(n, str(i)) for i, n in enumerate((8, 3, 5))]
    nearest, start = {}, 0
    for part in parts:
        index = start + int((part - part.mean(0)).norm(dim=1).argmin())
        nearest[index] = len(part) / 16
        start += len(part)
    positions, weights = kmeans_medoid(torch.cat(parts), 3, SOLVER, 0, 0)
    assert dict(zip(positions.tolist(), weights.tolist(), strict=True)) == pytest.approx(nearest)


def test_medoids_stay_distinct_where_atoms_share_their_nearest_image():
    # Four pictures coincide, and with them three of the four atoms.
    points = torch.tensor([[0.0], [0.0], [0.0], [0.0], [9.0]])
    positions, weights = kmeans_medoid(points, 4, SOLVER, 0, 0)
    assert len(positions.unique()) == 4
    assert 4 in positions.tolist()
    assert float(weights.sum()) == pytest.approx(1)


def test_all_images_of_a_class_can_be_chosen():
    positions, weights = chosen("kmeans-medoid", 6)
    assert sorted(positions[1].tolist()) == list(range(9, 15))
    assert weights[1].tolist() == pytest.approx([1 / 6] * 6)


@STRATEGIES
def test_a_class_with_too_few_images_is_named_with_both_counts(strategy):
    with pytest.raises(WmddError, match=r"'bee' has 6 training images.* 7 images") as error:
        chosen(strategy, 7)
    assert "\n" not in str(error.value)


def test_a_class_without_images_is_named():
    with pytest.raises(WmddError, match=r"'cat' has 0"):
        chosen("random", 1, labels=LABELS[:15])
