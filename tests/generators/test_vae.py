"""The small autoencoder: its loss by hand, its latents standardised, and sizes that it does not take."""

import pytest
import torch

from wmdd.base.errors import WmddError
from wmdd.base.rng import generator
from wmdd.generators.vae import Objective, build, scaled, to_pixels
from wmdd.settings.latent import AutoencoderSettings


def vae(factor=4, resolution=16, channels=3, seed=0):
    settings = AutoencoderSettings(width=4, channels=channels, factor=factor)
    return build(settings, resolution, generator("test vae", seed)).eval()


def images(count=5, resolution=16):
    return torch.randint(0, 256, (count, 3, resolution, resolution), generator=generator("vae"), dtype=torch.uint8)


def test_every_pixel_value_comes_back():
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert torch.equal(to_pixels(scaled(every)), every)
    assert scaled(every).aminmax() == (-1, 1)


@pytest.mark.parametrize("factor", [2, 8])
def test_a_latent_has_the_side_of_the_image_over_the_factor(factor):
    network = vae(factor)
    latents = network.encode(scaled(images()))
    assert latents.shape == (5, 3, 16 // factor, 16 // factor)
    assert network.decode(latents).shape == (5, 3, 16, 16)


@pytest.mark.parametrize(("resolution", "near"), [(30, 32), (33, 32), (1, 4)])
def test_an_image_that_the_factor_does_not_divide_is_refused(resolution, near):
    with pytest.raises(WmddError, match=rf"{resolution} px can't be divided by .* 4; set data.resolution: {near}"):
        vae(resolution=resolution)


def test_the_loss_is_the_formula():
    network, x = vae(), scaled(images())
    noise = torch.randn(5, 3, 4, 4, generator=generator("noise"))
    mean, log_variance = network.moments(x)
    again = network.reconstructed(mean + (0.5 * log_variance).exp() * noise)
    spread = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    kl = torch.distributions.kl_divergence(spread, torch.distributions.Normal(0.0, 1.0)).flatten(1).sum(1)
    expected = ((x - again) ** 2).flatten(1).mean(1) + 0.25 * kl / (3 * 16 * 16)
    torch.testing.assert_close(Objective(network, 0.25)(x, noise), expected)


def test_standardising_changes_latents_but_no_image():
    network, x = vae(), scaled(images())
    before = network.encode(x)
    image = network.decode(before)
    for _ in range(2):  # a second time nothing is left to do
        latents = network.encode(x)
        network.standardise(latents.mean((0, 2, 3)), latents.std((0, 2, 3), correction=0))
        after = network.encode(x)
        torch.testing.assert_close(after.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
        torch.testing.assert_close(after.std((0, 2, 3), correction=0), torch.ones(3))
        torch.testing.assert_close(network.decode(after), image)
    assert not torch.allclose(after, before)


def test_weights_follow_from_the_generator_alone():
    torch.manual_seed(1)
    first = vae().state_dict()
    torch.manual_seed(2)
    for name, tensor in vae().state_dict().items():
        assert torch.equal(tensor, first[name])
    assert not torch.equal(vae(seed=1).state_dict()["encoder.0.weight"], first["encoder.0.weight"])
