"""The diffusion of latents: its velocity and reverse process against closed forms, guidance, and the real UNet."""

import math

import pytest
import torch

from wmdd.base.errors import WmddError
from wmdd.base.rng import generator
from wmdd.generators.denoiser import QUARTER, Denoiser, Objective, build, reverse
from wmdd.settings.latent import DiffusionSettings


class Exact(torch.nn.Module):
    """The velocity of latents that are one point a class: v = cos p e - sin p x with e = (z - cos p x) / sin p."""

    none = 3

    def __init__(self, points):
        super().__init__()
        self.points, self.asked = points, []

    def forward(self, z, angle, classes):
        x, p = self.points[classes], angle[:, None, None, None]
        return p.cos() * (z - p.cos() * x) / p.sin() - p.sin() * x

    def guided(self, z, angle, classes, guidance):
        self.asked.append(float(angle[0]))
        return Denoiser.guided(self, z, angle, classes, guidance)


@pytest.fixture
def exact():
    return Exact(torch.randn(4, 2, 4, 4, generator=generator("points"), dtype=torch.float64))


def normal(count=3, name="latents"):
    return torch.randn(count, 2, 4, 4, generator=generator(name), dtype=torch.float64)


@pytest.mark.parametrize(("strength", "steps", "done"), [(1.0, 10, 10), (0.31, 10, 4)])
def test_the_reverse_process_of_one_point_a_class_ends_there(exact, strength, steps, done):
    classes = torch.tensor([2, 0, 1])
    found = reverse(exact, normal(), normal(name="noise"), classes, strength, 1.0, steps)
    # from a latent off the point, the process goes back along a straight line in (x, e): its end is exact
    torch.testing.assert_close(found, exact.points[classes], atol=1e-5, rtol=0)  # v is float32
    assert len(exact.asked) == done
    assert exact.asked[0] == pytest.approx(strength * QUARTER)
    assert all(a > b > 0 for a, b in zip(exact.asked, exact.asked[1:], strict=False))
    assert torch.equal(reverse(exact, normal(), normal(name="noise"), classes, 0.0, 1.0, steps), normal())


def test_the_reverse_process_of_standard_normal_latents_is_the_identity_in_the_limit():
    """Their velocity is zero: E[x | z] = cos(p) z and E[e | z] = sin(p) z. N steps shrink by cos(pi / 2N)^N."""

    class Zero(torch.nn.Module):
        def guided(self, z, *_):
            return torch.zeros_like(z)

    noise = normal(name="noise")
    for steps in 1, 8, 200:
        found = reverse(Zero(), normal(), noise, torch.zeros(3).long(), 1.0, 1.0, steps)
        torch.testing.assert_close(found, noise * math.cos(QUARTER / steps) ** steps)
    assert (found - noise).abs().max() < 0.02 * noise.abs().max()


def test_guidance_mixes_the_velocities_with_and_without_a_class(exact):
    z, angle, classes = normal(), torch.full((3,), 0.8, dtype=torch.float64), torch.tensor([0, 1, 2])
    with_class, without = exact(z, angle, classes), exact(z, angle, torch.full((3,), 3))
    assert torch.equal(exact.guided(z, angle, classes, 1.0), with_class)
    assert torch.equal(exact.guided(z, angle, classes, 0.0), without)
    torch.testing.assert_close(exact.guided(z, angle, classes, 3.0), 3 * with_class - 2 * without)


def test_the_exact_velocity_has_no_loss(exact):
    classes, angle = torch.tensor([2, 0, 1]), torch.tensor([0.1, 0.8, 1.5], dtype=torch.float64)
    noise = normal(name="noise")
    objective = Objective(exact)
    none = objective(exact.points[classes], noise, angle, classes)
    torch.testing.assert_close(none, torch.zeros_like(none), atol=1e-6, rtol=0)
    off = objective(exact.points[classes] + 1, noise, angle, classes)  # v - v_p is then 1/sin(p) off in every number
    torch.testing.assert_close(off, 1 / angle.sin() ** 2, rtol=1e-5, atol=0)


def unet(seed=0, **settings):
    return build(DiffusionSettings(width=8, layers=1, **settings), (2, 4, 4), 3, generator("unet", seed)).eval()


def test_latents_that_can_t_be_halved_are_refused():
    with pytest.raises(WmddError, match=r"latents of 7 x 7 can't be halved.*autoencoder.factor"):
        build(DiffusionSettings(width=8), (2, 7, 7), 3, generator("unet"))


@torch.no_grad()
def test_the_unet_knows_angle_and_class_and_mixes_no_images():
    network, z = unet(), normal().float()
    angle, classes = torch.tensor([0.2, 0.9, 1.4]), torch.tensor([0, 1, 3])
    found = network(z, angle, classes)
    assert found.shape == z.shape
    torch.testing.assert_close(network(z[1:2], angle[1:2], classes[1:2]), found[1:2], atol=1e-5, rtol=1e-4)
    for other in (network(z, angle + 0.1, classes), network(z, angle, torch.tensor([1, 2, 0]))):
        assert (other - found).abs().amax((1, 2, 3)).min() > 1e-6
    assert not torch.equal(unet(1)(z, angle, classes), found)
    assert torch.equal(unet()(z, angle, classes), found)
