"""A set that others distilled in the form of images.h5: pixels, classes, numbers of images."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from wmdd.base.errors import WmddError
from wmdd.datasets import imagenet_classes
from wmdd.datasets.loader import Resident
from wmdd.networks.normalisation import Normalisation
from wmdd.stages.imported import as_set, most_images
from wmdd.stages.imported_classes import classes_of, in_probabilities, permutation
from wmdd.stages.imported_pixels import (
    authors_whitening,
    in_unit_scale,
    published_normalisation,
    resized,
    space_of,
    untiled,
)

OURS = Normalisation([0.5, 0.4, 0.3], [0.2, 0.3, 0.25])
CLASSES = ["n02", "n01", "n03"]
NAMES = ["grey fox, gray fox", "black_bear", "fox"]


def refusal(reason):
    return pytest.raises(WmddError, match=re.escape(reason))


def random_unit(*shape, seed=0):
    return np.random.default_rng(seed).random(shape, np.float32)


# ---- pixels


def test_normalisation_is_undone_with_the_numbers_of_the_authors():
    pixels = random_unit(5, 3, 4, 4)
    authors, sentence = published_normalisation("cifar100", OURS)
    assert authors.std == [0.2023, 0.1994, 0.2010]
    assert sentence.endswith("of DC's code.")
    stored = (torch.from_numpy(pixels) - torch.tensor(authors.mean)[:, None, None]) / torch.tensor(authors.std)[
        :, None, None
    ]
    unit, notes = in_unit_scale(stored.numpy(), "normalised", authors)
    assert np.abs(unit - pixels).max() < 1e-6
    assert notes == []
    assert published_normalisation("digits", OURS)[0] == OURS


def test_pixels_outside_of_black_and_white_are_kept_and_told():
    unit, notes = in_unit_scale(np.array([-0.5, 0.5, 1.5, 0.25], np.float32).reshape(1, 1, 2, 2), "unit", OURS)
    assert unit.ravel().tolist() == [-0.5, 0.5, 1.5, 0.25]
    assert notes[0].startswith("50.0 % of the pixels lie outside")
    assert "check space" in notes[1]


def test_bytes_stay_bytes():
    pixels = np.arange(12, dtype=np.uint8).reshape(1, 3, 2, 2)
    for images in (pixels, pixels.astype(np.float32)):
        unit, _ = in_unit_scale(images, "bytes", OURS)
        assert unit.dtype == np.uint8
        assert np.array_equal(unit, pixels)


def test_whitening_is_undone_as_the_authors_whiten():
    """kornia's ZCAWhitening(eps=0.1), written out (kornia/enhance/zca.py, zca_mean): pixels in [0, 1], unbiased covariance."""
    train = np.random.default_rng(1).integers(0, 256, (200, 3, 4, 4), dtype=np.uint8)
    x = torch.from_numpy(train).double().flatten(1) / 255
    mean = x.mean(0, keepdim=True)
    covariance = (x - mean).T @ (x - mean) / (len(x) - 1)
    u, s, _ = torch.linalg.svd(covariance)
    whitened = (x - mean) @ (u @ torch.diag(torch.rsqrt(s + 0.1)) @ u.T)
    whitening = authors_whitening(Resident(torch.from_numpy(train), torch.zeros(200)))
    stored = whitened.float().view(train.shape).numpy()
    unit, notes = in_unit_scale(stored, "zca", OURS, whitening)
    assert unit.dtype == np.float32
    assert np.abs(unit - train / 255).max() < 1e-5
    assert notes == [] or notes[0].startswith("0.")
    with refusal("which are not there; give the data set"):
        in_unit_scale(stored, "zca", OURS)
    with refusal("images are [2, 2] px and the training images have 48 numbers"):
        in_unit_scale(stored[:, :, :2, :2], "zca", OURS, whitening)


@pytest.mark.parametrize(
    ("low", "high", "stored", "layout", "side", "space"),
    [
        (0, 1, None, "arrays", 4, "unit"),
        (-2, 2, "normalised", "dc", 4, "normalised"),
        (-0.01, 1.01, "unit", "idc", 4, "unit"),
        (-2, 2, None, "mtt", 65, "normalised"),
    ],
)
def test_the_space_is_told_by_layout_and_values(low, high, stored, layout, side, space):
    images = np.linspace(low, high, 3 * side**2, dtype=np.float32).reshape(1, 3, side, side)
    found, sentence = space_of(images, "auto", stored, layout)
    assert found == space
    assert sentence.endswith(".")


def test_bytes_are_told_by_type_or_values():
    assert space_of(np.zeros((1, 3, 2, 2), np.uint8))[0] == "bytes"
    assert space_of(np.arange(12, dtype=np.float32).reshape(1, 3, 2, 2))[0] == "bytes"


@pytest.mark.parametrize(
    ("images", "asked", "layout", "reason"),
    [
        ([-2.0, 2], "auto", "mtt", "may be normalised or whitened, which the layout does not say; say which by space"),
        ([0.0, 2.5], "auto", "arrays", "may be of any scale"),
        ([-2.0, 2], "bytes", "arrays", "no bytes"),
        ([-2.0, 2], "lab", "arrays", "no space 'lab'"),
    ],
)
def test_a_space_that_cannot_be_known_is_asked_for(images, asked, layout, reason):
    with refusal(reason):
        space_of(np.float32(images).reshape(1, 1, 1, 2), asked, None, layout)
    with refusal("so they are not unit"):
        space_of(np.zeros((1, 3, 2, 2), np.uint8), "unit")


@pytest.mark.parametrize(("side", "factor"), [(6, 2), (7, 2), (8, 3)])
def test_un_tiling_is_idcs_loop(side, factor):
    """Pad with 0.5 to a multiple, crop tile after tile, enlarge with nn.Upsample (IDC, test.py, decode_zoom)."""
    images, labels = random_unit(2, 3, side, side), np.array([4, 7])
    padded = torch.full((2, 3, math.ceil(side / factor) * factor, math.ceil(side / factor) * factor), 0.5)
    padded[:, :, :side, :side] = torch.from_numpy(images)
    tile, tiles = math.ceil(side / factor), []
    for row in range(factor):
        for column in range(factor):
            tiles.append(padded[:, :, row * tile : (row + 1) * tile, column * tile : (column + 1) * tile])
    expected = nn.Upsample(size=(side, side), mode="bilinear")(torch.cat(tiles))
    found, own = untiled(images, labels, factor)
    assert np.array_equal(found, expected.numpy())
    assert own.tolist() == [4, 7] * factor**2
    assert untiled(images, labels, 1)[0] is images
    with refusal("cannot be un-tiled by a factor of 0"):
        untiled(images, labels, 0)


@given(st.integers(1, 9), st.booleans())
def test_resizing_keeps_flat_images(side, as_bytes):
    images = np.full((1, 3, 5, 5), 200, np.uint8) if as_bytes else np.full((1, 3, 5, 5), 0.3, np.float32)
    small = resized(images, side)
    assert small.shape == (1, 3, side, side)
    assert small.dtype == images.dtype
    assert np.abs(small - images[0, 0, 0, 0]).max() < 1e-6


# ---- classes


@pytest.mark.parametrize(
    ("names", "mapping", "expected", "note"),
    [
        (None, None, [0, 1, 2], "0 is grey fox, gray fox, 2 is fox"),
        (["n02", "n01", "n03"], None, [0, 1, 2], "in the same order"),
        (["n01", "n02", "n03"], None, [1, 0, 2], "by their names"),
        (["Black bear", "Gray-Fox", "fox"], None, [1, 0, 2], "by their names"),
        (["new001", "new000", "new002"], None, [1, 0, 2], "numbers its classes"),
        (["00002", "00001", "00000"], None, [2, 1, 0], "numbers its classes"),
        (["x", "y", "z"], {"x": "fox", "y": "n01", "z": "0"}, [2, 1, 0], "mapping"),
        (None, ["n03", "n01", "n02"], [2, 1, 0], "mapping"),
    ],
)
def test_classes_come_from_names_numbers_or_a_mapping(names, mapping, expected, note):
    labels, notes = classes_of(np.array([0, 1, 2, 2]), names, CLASSES, NAMES, mapping)
    assert labels.tolist() == [*expected, expected[2]]
    assert note in notes[0]
    rows = np.eye(3, dtype=np.float32)
    columns, _ = classes_of(rows, names, CLASSES, NAMES, mapping)
    assert columns.argmax(1).tolist() == expected


def test_numbers_of_imagenet():
    classes = imagenet_classes.wnids()[200:203]
    labels, notes = classes_of(np.array([202, 200, 201, 200]), None, classes, classes)
    assert labels.tolist() == [2, 0, 1, 0]
    assert "out of 1,000" in notes[0]


def test_mtts_own_order_of_imagewoof():
    """MTT's list begins with the Australian and the Border terrier (193, 182); sorted, the Shih-Tzu (155) is first."""
    listed = [193, 182, 258, 162, 155, 167, 159, 273, 207, 229]
    wnids = imagenet_classes.wnids()
    classes = [wnids[index] for index in sorted(listed)]
    labels, notes = classes_of(np.arange(10), None, classes, classes, layout="mtt")
    assert [classes[label] for label in labels] == [wnids[index] for index in listed]
    assert "MTT's list" in notes[0]
    labels, notes = classes_of(np.arange(10), None, classes, classes, layout="arrays")
    assert labels.tolist() == list(range(10))
    assert notes[0].endswith("Other code lists the classes of such a subset in another order.")


@pytest.mark.parametrize(
    ("labels", "names", "mapping", "reason"),
    [
        ([0, 1, 2, 3], None, None, "the set has 4 classes and the data 3"),
        ([1, 2, 3], None, None, "numbers its classes 1 to 3 and the data has 3, counted from 0"),
        (np.eye(2), None, None, "the set has 2 classes and the data 3"),
        ([0, 1, 2], ["fox", "cat", "n01"], None, "'cat' of the set is no class of the data"),
        ([0, 1, 2], ["fox", "7", "n01"], None, "'7' of the set is no class of the data"),
        ([0, 1, 2], ["fox", "n03", "n01"], None, "classes fox and n03 of the set are both 'n03'"),
        ([0, 1, 3], ["fox", "n02", "n01"], None, "the set names 3 classes and its labels go up to 3"),
        ([0, 1, 2], ["a", "b", "c"], {"a": "fox"}, "the mapping lacks the class b"),
        ([0, 1, 2], ["a", "b", "c"], {"a": "cat"}, "gives a the class 'cat', which the data has not"),
    ],
)
def test_other_classes_are_refused(labels, names, mapping, reason):
    with refusal(reason):
        classes_of(np.array(labels), names, CLASSES, NAMES, mapping)


def test_a_name_of_two_classes_is_refused():
    with refusal("'crane' of the set names several classes of the data"):
        classes_of(np.array([0]), ["crane"], ["n1", "n2"], ["crane, bird", "crane, machine"])


def test_labels_become_probabilities():
    rows = np.array([[2.0, 0, -1], [100, 0, 0]], np.float32)
    expected = torch.from_numpy(rows).softmax(1).numpy()
    assert np.allclose(in_probabilities(rows, "logits"), expected, atol=1e-7)
    assert in_probabilities(rows, "one-hot").tolist() == [0, 0]
    assert in_probabilities(rows, "probabilities").tolist() == rows.tolist()


@given(st.permutations(range(6)), st.floats(0.5, 0.95))
def test_the_teacher_names_the_order(order, confidence):
    """A teacher with that much confidence in one class, and the rest shared equally."""
    rest = (1 - confidence) / 5
    seen = np.full((6, 6), rest)
    seen[np.arange(6), order] = confidence
    found, sentence = permutation(seen)
    if list(order) == list(range(6)):
        assert found is None
        assert sentence == ""
    else:
        assert found == list(order)
        assert f"sees {sum(i != p for i, p in enumerate(order))} of 6 classes as others" in sentence


def test_an_unsure_teacher_names_no_order():
    rows = np.random.default_rng(0).dirichlet(np.ones(10), 10)
    confused = 0.5 * np.eye(10) + 0.5 * rows
    confused[[0, 1], [1, 0]] += 0.2  # two classes that look alike
    assert permutation(confused / confused.sum(1, keepdims=True)) == (None, "")
    assert permutation(np.full((10, 10), 0.1))[0] is None


def test_two_swapped_classes_of_a_thousand_are_named():
    seen = 0.9 * np.eye(1000)
    seen[[3, 7]] = seen[[7, 3]]
    order, _ = permutation(seen)
    assert [index for index in range(1000) if order[index] != index] == [3, 7]


# ---- the set


def test_a_set_is_sorted_by_class():
    images = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1).repeat(3, 1)
    found = as_set(images, np.array([2, 0, 1, 0, 2, 1]), CLASSES, 2, weights=np.float32([3, 1, 1, 1, 1, 1]))
    assert found.images[:, :, 0, 0, 0].tolist() == [[1, 3], [2, 5], [0, 4]]
    assert found.weights.tolist() == [[0.5, 0.5], [0.5, 0.5], [0.75, 0.25]]
    assert found.labels is None
    assert found.notes == []


@given(st.lists(st.integers(1, 7), min_size=3, max_size=3), st.randoms(use_true_random=False))
def test_repeated_images_keep_the_mass_of_each(counts, random):
    """The weighted mean over a class's K images is that over the images that it has."""
    labels = [c for c, count in enumerate(counts) for _ in range(count)]
    random.shuffle(labels)
    values = np.random.default_rng(len(labels)).random(len(labels)).astype(np.float32)
    weights = values[::-1] + 0.1
    images = values.reshape(-1, 1, 1, 1).repeat(3, 1)
    soft = np.eye(3, dtype=np.float32)[labels]
    found = as_set(images, soft, CLASSES, hard_labels=np.array(labels), weights=weights)
    k = max(counts)
    assert found.images.shape == (3, k, 3, 1, 1)
    assert np.allclose(found.weights.sum(1), 1, atol=1e-6)
    for c in range(3):
        own = np.array(labels) == c
        mean = (values[own] * weights[own]).sum() / weights[own].sum()
        assert math.isclose((found.images[c, :, 0, 0, 0] * found.weights[c]).sum(), mean, rel_tol=1e-5)
        assert (found.labels[c].argmax(1) == c).all()
    assert bool(found.notes) == (min(counts) < k)


def test_the_class_of_a_learned_label():
    rows = np.eye(3, dtype=np.float32)[[1, 1, 1, 0, 0, 0, 2, 2, 2]]
    rows[2] = [0.6, 0.4, 0]  # made for class 1, learned to be class 0
    found = as_set(random_unit(9, 3, 2, 2), rows, CLASSES, 3)
    assert found.labels[1, 2].tolist() == rows[2].tolist()
    assert found.notes == [
        "Of the soft labels, 1 are largest at another class than their place says; the place was taken."
    ]
    found = as_set(random_unit(9, 3, 2, 2), rows[::-1][[0, 3, 6, 1, 4, 7, 2, 5, 8]], CLASSES)
    assert found.notes[0] == "The class of an image is the largest entry of its soft label."


@pytest.mark.parametrize(
    ("labels", "options", "reason"),
    [
        ([0, 1, 2, 2], {"ipc": 1}, "the set has 2 images of its largest class (n03), and not ipc 1; set ipc: 2"),
        ([0, 1, 2, 2], {"ipc": 5}, "set ipc: 2"),
        ([0, 1, 1, 1], {}, "the set has no image of n03"),
        ([0, 1, 2, 3], {}, "labels go up to 3 and the data has 3 classes"),
        ([0, 1], {}, "4 images and 2 labels"),
        (np.eye(4), {}, "labels have 4 classes and the data 3"),
        ([0, 1, 2, 2], {"side": 4}, "images are 2 x 2 px and the data's 4 px; set resize"),
        ([0, 1, 2, 2], {"weights": np.float32([0, 1, 1, 1])}, "all weights of the class n02 are 0"),
    ],
)
def test_sets_that_do_not_fit_are_refused(labels, options, reason):
    with refusal(reason):
        as_set(random_unit(4, 3, 2, 2), np.array(labels), CLASSES, **options)


def test_a_whole_training_set_and_nan_are_refused():
    labels = np.arange(93) % 3
    assert most_images(3, 3) == 90
    with refusal("93 images, where 3 classes of 3 make 9: is it a whole training set?"):
        as_set(random_unit(93, 3, 1, 1), labels, CLASSES, 3)
    with refusal("NaN"):
        as_set(np.full((3, 3, 1, 1), np.nan, np.float32), labels[:3], CLASSES)
