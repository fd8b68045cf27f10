"""As many images as fit, in files, into the bytes of raw ones."""

import numpy as np
import pytest
import torch

from wmdd.base.rng import generator
from wmdd.datasets.decode import decode
from wmdd.datasets.loader import Resident
from wmdd.settings.select import SelectSettings
from wmdd.stages.coded import coded, encoded, expected, fitting

SIDE, CLASSES, HELD = 32, 2, 40


def pictures() -> torch.Tensor:
    """Smooth pictures [C N, 3, R, R], as photographs are more than noise is."""
    coarse = torch.rand(CLASSES * HELD, 3, 4, 4, generator=generator("coded test"))
    smooth = torch.nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bicubic").clamp(0, 1)
    return (255 * smooth).round().to(torch.uint8)


@pytest.mark.parametrize("quality", [0, 50, 90])
def test_a_set_holds_what_its_files_show_and_no_more_would_fit(quality):
    images = pictures().unflatten(0, (CLASSES, HELD))
    pixels, files = coded(images, 3, quality)
    budget, held = CLASSES * 3 * 3 * SIDE**2, pixels.shape[1]
    assert pixels.shape == (CLASSES, held, 3, SIDE, SIDE)
    assert pixels.dtype == torch.uint8
    assert [len(of_class) for of_class in files] == [held] * CLASSES
    for of_class, shown, begun in zip(files, pixels, images, strict=True):
        for file, image, picture in zip(of_class, shown, begun[:held], strict=True):
            assert np.array_equal(decode(file, SIDE).pixels, image.numpy())
            assert file == encoded(picture, quality)
    sizes = [[len(encoded(image, quality)) for image in of_class] for of_class in images]
    assert sum(map(len, (file for of_class in files for file in of_class))) <= budget
    if held < HELD:
        assert sum(sum(of_class[: held + 1]) for of_class in sizes) > budget


def test_better_files_are_nearer_and_fewer():
    images = pictures().unflatten(0, (CLASSES, HELD))
    low, high = (coded(images, 2, quality)[0] for quality in (5, 95))
    assert low.shape[1] > high.shape[1] > 2
    off = [(part.float() - images[:, : part.shape[1]].float()).square().mean() for part in (low, high)]
    assert off[1] < off[0] / 2


def test_more_are_chosen_than_fit_and_the_probe_is_of_the_seed():
    labels = torch.arange(CLASSES).repeat_interleave(HELD)
    count = expected(Resident(pictures(), labels), 2, 75, 0)
    held = coded(pictures().repeat(5, 1, 1, 1).unflatten(0, (CLASSES, 5 * HELD)), 2, 75)[0].shape[1]
    assert held <= count <= 1.2 * held
    assert count == expected(Resident(pictures(), labels), 2, 75, 0)


def test_the_largest_number_that_fits_by_hand():
    sizes = np.array([[3, 1, 5], [2, 2, 2]])
    assert [fitting(sizes, budget) for budget in (4, 5, 7, 8, 14, 15, 99)] == [0, 1, 1, 2, 2, 3, 3]


def test_files_are_of_chosen_images_alone():
    coded_settings = SelectSettings(codec="webp", quality=20, tiles=3)
    assert (coded_settings.quality, coded_settings.tiles, coded_settings.holds_more) == (20, 1, True)
    for strategy in "whole", "patches":
        assert SelectSettings(strategy=strategy, codec="webp", quality=20).codec == "none"
    assert SelectSettings(quality=20).quality == 50, "without files their quality changes nothing"
