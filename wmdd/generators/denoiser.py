r"""A small class-conditional diffusion model of latents, and its reverse process, by which latents are transported.

With a latent x of variance 1, e standard normal and an angle p in [0, pi/2],

    z_p = cos(p) x + sin(p) e,        v_p = cos(p) e - sin(p) x = dz_p / dp                                     [1, App. D]

A UNet learns v from (z_p, p, class y) by E ||v(z_p, p, y) - v_p||^2, p uniform: the cosine schedule of [2] in continuous time.
With a share of the classes hidden, it also learns v without a class, and is guided by v_g = v_0 + g (v_y - v_0) [3].

From a latent x the reverse process begins at z_q = cos(q) x + sin(q) e, q = strength pi/2 (image to image, [4]), and goes back
to p = 0 in equal steps d of the deterministic sampler [5], which in these terms is a rotation:

    z_{p-d} = cos(d) z_p - sin(d) v_g(z_p, p, y)

So an image depends on its latent, its class and its own draw e alone: this is the push-forward of DDOQ [6], whose theory is of
the reverse process's probability flow.

References:
    [1] Salimans, Ho: Progressive Distillation for Fast Sampling of Diffusion Models, ICLR 2022.
    [2] Nichol, Dhariwal: Improved Denoising Diffusion Probabilistic Models, ICML 2021.
    [3] Ho, Salimans: Classifier-Free Diffusion Guidance, 2022, Eq. 6 (g is its 1 + w).
    [4] Meng et al.: SDEdit, ICLR 2022.
    [5] Song, Meng, Ermon: Denoising Diffusion Implicit Models, ICLR 2021, Eq. 12 with sigma = 0.
    [6] Tan, Slade: Dataset Distillation as Pushforward Optimal Quantization, arXiv 2501.07681, ICLR 2026.
"""

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from wmdd.base.errors import WmddError

if TYPE_CHECKING:
    from wmdd.settings.latent import DiffusionSettings

QUARTER = math.pi / 2


class Denoiser(nn.Module):
    """v(z, p, y) of latents [c, side, side] in class y < C, or C for none: a UNet of the diffusers library.

    It has `width` channels at the full side and twice as many, with attention, at half of it; `layers` residual blocks at each.
    """

    def __init__(self, channels: int, side: int, classes: int, width: int, layers: int) -> None:
        super().__init__()
        from diffusers import UNet2DModel

        groups = math.gcd(width, 8)
        self.none = classes
        self.unet: Any = UNet2DModel(
            sample_size=side, in_channels=channels, out_channels=channels, block_out_channels=(width, 2 * width),
            down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            layers_per_block=layers, norm_num_groups=groups, attention_head_dim=2 * width // math.gcd(2 * width, 4),
            num_class_embeds=classes + 1, add_attention=False,
        )  # fmt: skip

    def forward(self, z: Tensor, angle: Tensor, classes: Tensor) -> Tensor:
        """Return v [B, c, h, w] of noised latents z, angles p [B] in [0, pi/2] and classes [B]."""
        velocity: Tensor = self.unet(z, angle * (1000 / QUARTER), classes, return_dict=False)[0]
        return velocity

    def guided(self, z: Tensor, angle: Tensor, classes: Tensor, guidance: float) -> Tensor:
        """Return v_g."""
        if guidance == 1:
            return self(z, angle, classes)
        none = torch.full_like(classes, self.none)
        if guidance == 0:
            return self(z, angle, none)
        with_class, without = self(torch.cat([z, z]), torch.cat([angle, angle]), torch.cat([classes, none])).chunk(2)
        return without + guidance * (with_class - without)


class Objective(nn.Module):
    """The loss of each latent, as `wmdd.networks.training.fit` trains it."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, latents: Tensor, noise: Tensor, angle: Tensor, classes: Tensor) -> Tensor:
        """Return the mean over a latent of (v(z_p, p, y) - v_p)^2, [B]."""
        cos, sin = angle.cos()[:, None, None, None], angle.sin()[:, None, None, None]
        velocity = self.denoiser(cos * latents + sin * noise, angle, classes).float()
        return (velocity - (cos * noise - sin * latents)).square().flatten(1).mean(1)


def reverse(
    denoiser: Denoiser, latents: Tensor, noise: Tensor, classes: Tensor, strength: float, guidance: float, steps: int
) -> Tensor:
    """Return latents [B, c, h, w] after the reverse process, begun at themselves with noise [B, c, h, w].

    `steps` are those of the whole process, of which ceil(strength steps) are done; with strength 0 nothing is changed.
    """
    start, count = strength * QUARTER, math.ceil(strength * steps - 1e-9)
    if count == 0:
        return latents
    z, step = math.cos(start) * latents + math.sin(start) * noise, start / count
    for done in range(count):
        angle = z.new_full((len(z),), start - done * step)
        z = math.cos(step) * z - math.sin(step) * denoiser.guided(z, angle, classes, guidance).float()
    return z


def build(
    settings: "DiffusionSettings", shape: tuple[int, int, int], classes: int, generator: torch.Generator
) -> Denoiser:
    """Build a denoiser of latents [c, h, w] with fresh weights drawn from `generator`.

    Raises:
        WmddError: the latents' side is odd, so that it can't be halved.
    """
    channels, height, width = shape
    if height % 2 or width % 2:
        raise WmddError(
            f"latents of {height} x {width} can't be halved by the diffusion's UNet; set another autoencoder.factor or "
            "data.resolution"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator.initial_seed())
        return Denoiser(channels, height, classes, settings.width, settings.layers)
