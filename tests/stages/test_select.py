"""Real images chosen as they are."""

import pytest
import torch
from torch import Tensor

from wmdd.base.errors import WmddError
from wmdd.base.rng import generator
from wmdd.networks import augment
from wmdd.networks.engine import plain
from wmdd.networks.models import build, normalise
from wmdd.networks.normalisation import Normalisation
from wmdd.settings.barycenter import BarycenterSettings
from wmdd.settings.network import NetworkSettings
from wmdd.settings.select import SelectSettings
from wmdd.stages.point_clouds import Cloud, Confident
from wmdd.stages.select import kmeans_medoid, margins, masses, mosaic, patches, quotas, random, select

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
@pytest.mark.parametrize("k", [1, 6])
def test_images_are_distinct_of_their_class_and_of_their_seed(strategy, k):
    positions, weights = chosen(strategy, k)
    assert positions.shape == weights.shape == (3, k)
    assert weights.dtype == torch.float32
    for label in range(3):
        assert len(positions[label].unique()) == k
        assert bool((LABELS[positions[label]] == label).all())
    torch.testing.assert_close(weights.sum(1), torch.ones(3))
    assert torch.equal(chosen(strategy, k)[0], positions)
    many = torch.cat([LABELS] * 20).sort().values
    assert not torch.equal(chosen(strategy, 4, 0, many)[0], chosen(strategy, 4, 1, many)[0])


def test_random_is_uniform_over_the_class():
    count = torch.zeros(9)
    for seed in range(900):
        positions, weights = random(9, 3, seed, 0)
        count[positions] += 1
        assert weights.tolist() == pytest.approx([1 / 3] * 3)
    assert not torch.equal(random(20, 5, 0, 0)[0], random(20, 5, 0, 1)[0])  # classes choose independently
    assert bool(((count - 300).abs() < 70).all())  # five standard deviations


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


@pytest.mark.parametrize("margin", [0, 0.5, 1])
def test_margins_take_from_each_cell_by_its_mass_the_central_and_the_doubtful(margin):
    sizes, wanted = (8, 4, 12), [4, 2, 6]
    parts = [100 * i + features(n, str(i)) for i, n in enumerate(sizes)]
    points, losses = torch.cat(parts), torch.rand(24, generator=generator("losses"))
    settings = SelectSettings(strategy="margins", cell_images=4, margin=margin)
    positions, weights = margins(points, losses, 12, settings, SOLVER, 0, 0)
    assert len(positions.unique()) == 12
    torch.testing.assert_close(weights, torch.full((12,), 1 / 12))
    start = 0
    for part, count in zip(parts, wanted, strict=True):
        cell, doubtful = range(start, start + len(part)), int(margin * count)
        off = (part - part.mean(0)).norm(dim=1)
        by_loss = sorted(cell, key=lambda i: -losses[i])
        by_distance = sorted(set(cell) - {*by_loss[:doubtful]}, key=lambda i, s=start, off=off: off[i - s])
        expected = {*by_loss[:doubtful], *by_distance[: count - doubtful]}
        assert {i for i in positions.tolist() if i in cell} == expected
        start += len(part)


def test_quotas_are_in_proportion_and_weights_make_up_for_what_they_round():
    assert quotas(torch.tensor([5, 3, 2]), 10) == [5, 3, 2]
    assert quotas(torch.tensor([50, 30, 20]), 4) == [2, 1, 1]
    assert quotas(torch.tensor([98, 1, 1]), 3) == [3, 0, 0]
    parts = [torch.zeros(6, 2), 100 + torch.zeros(3, 2)]
    points = torch.cat(parts) + 0.01 * features(9)[:, :2]
    settings = SelectSettings(strategy="margins", cell_images=2)
    positions, weights = margins(points, torch.arange(9.0), 4, settings, SOLVER, 0, 0)
    of_first = positions < 6
    assert int(of_first.sum()) == 3
    torch.testing.assert_close(weights[of_first].sum(), torch.tensor(2 / 3))


def test_medoids_stay_distinct_where_atoms_share_their_nearest_image():
    # Four pictures coincide, and with them three of the four atoms.
    points = torch.tensor([[0.0], [0.0], [0.0], [0.0], [9.0]])
    positions, weights = kmeans_medoid(points, 4, SOLVER, 0, 0)
    assert len(positions.unique()) == 4
    assert 4 in positions.tolist()
    assert float(weights.sum()) == pytest.approx(1)


@STRATEGIES
def test_a_class_with_too_few_images_is_named_with_both_counts(strategy):
    with pytest.raises(WmddError, match=r"'bee' has 6 training images.* 7 images"):
        chosen(strategy, 7)
    with pytest.raises(WmddError, match=r"'cat' has 0"):
        chosen(strategy, 1, labels=LABELS[:15])


def test_the_whole_training_set_has_as_many_of_each_class_as_the_smallest_and_begins_with_random_ones():
    positions, weights = chosen("whole", 2)
    assert positions.shape == (3, 6)
    assert sorted(positions[1].tolist()) == list(range(9, 15))
    assert weights.unique().tolist() == pytest.approx([1 / 6])
    assert torch.equal(positions[:, :2], chosen("random", 2)[0])
    assert SelectSettings(strategy="whole", tiles=3).tiles == 1, "it has no use for them"
    with pytest.raises(WmddError, match=r"'bee' has 6 training images.* 7 images"):
        chosen("whole", 7)


@STRATEGIES
def test_mosaics_take_four_times_as_many_and_their_classes_must_have_them(strategy):
    settings, cloud = SelectSettings(strategy=strategy, tiles=2), Cloud(features(), LABELS)
    positions, weights = select(LABELS, NAMES, 1, cloud, settings, SOLVER, 0)
    assert positions.shape == (3, 4)
    assert all(len(mine.unique()) == 4 for mine in positions)
    torch.testing.assert_close(masses(weights, 2), torch.ones(3, 1))
    too_few = r"'bee' has 6 .* 2 images per class of 2 x 2 tiles to select; lower ipc to 1"
    with pytest.raises(WmddError, match=too_few):
        select(LABELS, NAMES, 2, cloud, settings, SOLVER, 0)


def test_a_mosaic_shows_its_pictures_row_by_row():
    pictures = torch.arange(8, dtype=torch.uint8).view(8, 1, 1, 1).expand(8, 3, 6, 6)
    found = mosaic(pictures, 2)
    assert found.shape == (2, 3, 6, 6)
    for image in range(2):
        for place, (top, left) in enumerate([(0, 0), (0, 3), (3, 0), (3, 3)]):
            assert found[image, :, top : top + 3, left : left + 3].unique().tolist() == [2 * place + image]


def test_a_mosaic_covers_a_side_that_its_tiles_do_not_divide():
    pictures = torch.full((9, 3, 8, 8), 200, dtype=torch.uint8)
    assert mosaic(pictures, 3).unique().tolist() == [200]
    assert mosaic(pictures, 1) is pictures


def test_masses_of_mosaics_are_the_sums_of_their_pictures():
    weights = torch.tensor([[0.1, 0.2, 0.05, 0.15, 0.1, 0.1, 0.2, 0.1]])
    torch.testing.assert_close(masses(weights, 2), torch.tensor([[0.45, 0.55]]))  # 0, 2, 4, 6 and 1, 3, 5, 7


CROPS = SelectSettings(strategy="patches", tiles=2, candidates=12, crops=3, crop_scale=(0.3, 1.0))
NORMALISATION = Normalisation([0.5, 0.4, 0.3], [0.2, 0.3, 0.25])


def cropped(seed: int = 0, count: int = 12, settings: SelectSettings = CROPS):
    network = build(NetworkSettings(width=4), 3, 16, generator("select network")).eval()
    images = torch.randint(0, 256, (12, 3, 16, 16), generator=generator("candidates"), dtype=torch.uint8)
    return network, images, patches(network, images, 1, count, NORMALISATION, settings, seed, plain())


def test_patches_are_the_crops_that_the_teacher_is_surest_of():
    network, images, found = cropped()
    assert sorted(found.images.tolist()) == list(range(12)), "of each image one"
    boxes = augment.resized_crop(generator("select", "crops", 0, 1), 36, CROPS.crop_scale, (1.0, 1.0)).view(12, 3, 4)

    def loss(image: int, box: Tensor) -> float:
        view = augment.identity(1)
        view.crop.copy_(box)
        seen = augment.apply(normalise(images[image : image + 1], NORMALISATION), view, torch.tensor([0]))
        return float(-network(seen).log_softmax(1)[0, 1].detach())

    kept = [loss(i, box) for i, box in zip(found.images.tolist(), found.boxes, strict=True)]
    assert kept == sorted(kept)
    for i, mine in zip(found.images.tolist(), kept, strict=True):
        assert mine == pytest.approx(min(loss(i, box) for box in boxes[i]), abs=1e-5)
    _, _, fewer = cropped(count=4)
    assert fewer.images.tolist() == found.images[:4].tolist()
    assert torch.equal(fewer.pixels, found.pixels[:4])


def test_patches_are_squares_of_the_size_asked_for_and_depend_on_the_seed():
    _, images, found = cropped()
    _, _, height, width = found.boxes.unbind(1)
    torch.testing.assert_close(height, width)
    assert 0.3 <= float((height * width).min()) <= float((height * width).max()) <= 1
    assert (found.pixels.dtype, found.pixels.shape) == (torch.uint8, images.shape)
    assert torch.equal(found.pixels, cropped()[2].pixels)
    assert not torch.equal(found.boxes, cropped(seed=1)[2].boxes)
    _, _, whole = cropped(settings=SelectSettings(strategy="patches", crop_scale=(1.0, 1.0)))
    assert torch.equal(whole.pixels, images[whole.images])


def test_margins_know_what_the_teacher_is_sure_of():
    points, weight = features(), torch.randn(3, 4, generator=generator("head"))
    sure = Confident(Cloud(points, LABELS), weight, torch.zeros(3), 0.7)
    settings = SelectSettings(strategy="margins", margin=1, cell_images=4)
    positions, _ = select(LABELS, NAMES, 4, sure, settings, BarycenterSettings(confident=0.7), 0)
    losses = torch.nn.functional.cross_entropy(points @ weight.T, LABELS, reduction="none")
    for label, mine in enumerate(positions):
        counted = (label == LABELS).nonzero()[:, 0]
        counted = counted[losses[counted].argsort()][: -(-7 * len(counted) // 10)]
        assert {*mine.tolist()} == {*counted[-4:].tolist()}, "the least sure, of those that count"


def test_candidates_of_patches():
    settings = SelectSettings(strategy="patches", tiles=1, candidates=5)
    assert select(LABELS, NAMES, 3, None, settings, SOLVER, 0)[0].shape == (3, 5)
    assert select(LABELS, NAMES, 3, None, settings.model_copy(update={"candidates": 99}), SOLVER, 0)[0].shape == (3, 6)
    with pytest.raises(WmddError, match=r"select.candidates 5 is fewer than the 6 patches of a class; raise it"):
        select(LABELS, NAMES, 6, None, settings, SOLVER, 0)


@STRATEGIES
def test_only_the_images_that_count_are_chosen(strategy):
    """The positions are those in the training set, not those among what counts."""
    head = torch.nn.Linear(4, 3)
    everything = Cloud(features(), LABELS, NAMES)
    sure = Confident(everything, head.weight.detach(), head.bias.detach(), 0.5)
    settings, solver = SelectSettings(strategy=strategy), BarycenterSettings(confident=0.5)
    positions, _ = select(LABELS, NAMES, 3, sure, settings, solver, 0)
    for label in range(3):
        losses = -head(features()).log_softmax(1)[:, label]
        mine = (label == LABELS).nonzero()[:, 0]
        best = mine[losses[mine].argsort()[: -(-len(mine) // 2)]]
        assert set(positions[label].tolist()) <= set(best.tolist())
    with pytest.raises(WmddError, match=r"'bee' has 3 training images that count \(barycenter.confident 0.5\), fewer"):
        select(LABELS, NAMES, 4, sure, settings, solver, 0)
