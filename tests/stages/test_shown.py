"""Which images an epoch shows: each once before any twice, so many of each class, the same for everyone who asks."""

from collections import Counter

import torch
from hypothesis import given
from hypothesis import strategies as st

from wmdd.stages.shown import Shown

SETS = st.tuples(st.integers(1, 3), st.integers(1, 12)).flatmap(
    lambda size: st.builds(Shown, st.just(size[0]), st.just(size[1]), st.integers(1, size[1]))
)


def of_class(shown: Shown, epoch: int, label: int) -> list[int]:
    """The images of a class that an epoch shows, by their place in the class."""
    positions = shown.positions(epoch).view(shown.classes, shown.each)
    return (positions[label] - label * shown.held).tolist()


@given(SETS, st.integers(1, 8))
def test_every_image_is_shown_once_before_any_is_shown_twice(shown, epochs):
    for label in range(shown.classes):
        times = Counter(dict.fromkeys(range(shown.held), 0))
        for epoch in range(epochs):
            images = of_class(shown, epoch, label)
            assert len(images) == shown.each
            assert images == sorted(images)
            times.update(images)
            assert set(times) == set(range(shown.held)), "of its class"
            assert max(times.values()) - min(times.values()) <= 1


def test_the_first_epoch_shows_the_first_images_and_orders_differ_by_class_and_number():
    shown = Shown(2, 40, 10)
    assert of_class(shown, 0, 1) == list(range(10))
    later = [of_class(shown, epoch, label) for epoch in range(4, 16) for label in range(2)]
    assert len({tuple(images) for images in later}) == len(later)
    assert [of_class(Shown(2, 40, 10), epoch, 1) for epoch in (7, 4)] == [of_class(shown, epoch, 1) for epoch in (7, 4)]


def test_a_set_that_is_shown_whole_stays_as_it_is():
    shown, values = Shown(2, 3, 3), torch.arange(12).view(6, 2)
    assert shown.everything
    for epoch in range(3):
        assert shown.positions(epoch).tolist() == list(range(6))
        assert torch.equal(shown.part(values, epoch, values.device), values)
    assert Shown.all_of(values).count == 6


def test_the_steps_of_an_epoch_are_its_batches():
    assert [Shown(10, 5000, 10).steps(size) for size in (100, 99, 16, 1)] == [1, 2, 7, 100]
