"""The classes of ImageNet-1K."""

import pytest

from wmdd.datasets.imagenet_classes import indices, readable, wnids


def test_a_thousand_in_the_order_of_their_ids():
    assert len(wnids()) == 1000
    assert wnids() == sorted(set(wnids()))


@pytest.mark.parametrize(
    ("index", "name"),
    [(0, "tench"), (1, "goldfish"), (207, "golden retriever"), (388, "giant panda"), (999, "toilet tissue")],
)
def test_indices_are_those_of_pretrained_networks(index, name):
    assert readable(wnids()[index]).startswith(name)
    assert indices([wnids()[index]]) == [index]


def test_indices_follow_the_classes():
    assert indices([wnids()[7], wnids()[3]]) == [7, 3]
    assert indices(wnids()) == list(range(1000))


@pytest.mark.parametrize("other", ["cat", "n00000000", "n0144076", "n01440764x", ""])
def test_other_folders_have_none(other):
    assert indices([wnids()[0], other]) is None
    assert readable(other) == other


def test_names_of_what_is_not_among_the_thousand():
    assert "n01314388" not in wnids()
    assert readable("n01314388") == "pest"
