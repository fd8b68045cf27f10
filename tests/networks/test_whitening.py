"""Whitening: what is whitened has the covariance that it should have, and comes back."""

import pytest
import torch

from wmdd.base.errors import WmddError
from wmdd.base.rng import generator
from wmdd.datasets.loader import Resident
from wmdd.networks import whitening
from wmdd.networks.models import normalise
from wmdd.networks.normalisation import Normalisation
from wmdd.workflow import checks

NORMALISATION = Normalisation([0.5, 0.4, 0.6], [0.2, 0.3, 0.25])


def pictures(count=2000, side=4):
    draws = generator("whitening test", count, side)
    base = torch.randint(40, 200, (count, 1, side, side), generator=draws)
    noise = torch.randint(-40, 41, (count, 3, side, side), generator=draws)
    return Resident((base + noise).to(torch.uint8), torch.zeros(count, dtype=torch.int64))


def test_the_covariance_is_shrunk_by_eps_and_the_axes_stay():
    found = pictures()
    white = whitening.fit(found, NORMALISATION, eps=0.1)
    x = normalise(found.images, NORMALISATION)
    z = white.apply(x).flatten(1).double()
    values, vectors = torch.linalg.eigh(torch.cov(x.flatten(1).double().T))
    wanted = (vectors * (values / (values + 0.1))) @ vectors.T
    torch.testing.assert_close(torch.cov(z.T), wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(z.mean(0), torch.zeros(48, dtype=torch.float64), rtol=0, atol=1e-4)
    torch.testing.assert_close(white.matrix, white.matrix.T, rtol=0, atol=1e-6)  # zero phase


def test_what_was_whitened_comes_back_and_a_whitened_network_is_given_pictures():
    found = pictures()
    white = whitening.fit(found, NORMALISATION)
    x = normalise(found.images[:5], NORMALISATION)
    torch.testing.assert_close(white.undo(white.apply(x)), x, rtol=0, atol=1e-5)
    network = whitening.Whitened(torch.nn.Flatten(), white)
    torch.testing.assert_close(network(x), white.apply(x).flatten(1))


def test_large_pictures_are_refused():
    assert checks.LARGEST_WHITENED == whitening.LARGEST
    with pytest.raises(WmddError, match="whitening takes images of at most 64 px, not of 65 px; set whiten: false"):
        whitening.fit(pictures(2, 65), NORMALISATION)
