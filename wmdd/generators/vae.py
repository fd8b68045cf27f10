r"""A small convolutional variational autoencoder [1], cheap enough to be trained on a CPU.

The encoder E gives mean m(x) and standard deviation s(x) of a latent [c, R/f, R/f], the decoder D an image of it. With pixels x
from -1 to 1, n = 3 R^2 of them, and e standard normal,

    L(x) = 1/n [ ||x - D(m + s e)||^2 + beta \sum_j (m_j^2 + s_j^2 - 1 - log s_j^2) / 2 ],

which is -2 v / n times the evidence lower bound with noise of variance v = beta / 2 in every pixel, up to a constant. Blocks
are residual and end in a convolution that begins at zero [2], so that none is normalised: that is slow on CPUs. Latents
outside of this module are the means, standardised by channel over the training set (`Vae.standardise`), so that a diffusion
begins with variance 1, as the scaling factor of Stable Diffusion's autoencoder does for all channels at once.

References:
    [1] Kingma, Welling: Auto-Encoding Variational Bayes, ICLR 2014, Eq. 10.
    [2] Zhang, Dauphin, Ma: Fixup Initialization, ICLR 2019 (its first rule).
"""

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmdd.base.errors import WmddError

if TYPE_CHECKING:
    from wmdd.settings.latent import AutoencoderSettings

FINE = 16  # channels at the full resolution


def scaled(images: Tensor) -> Tensor:
    """Return images uint8 [B, 3, R, R] as float32 from -1 to 1."""
    return images.float() / 127.5 - 1


def to_pixels(images: Tensor) -> Tensor:
    """Return uint8 images of those from -1 to 1, rounded."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


class _Residual(nn.Module):
    """x + C(silu(C(silu(x)))), the identity in the beginning."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        nn.init.zeros_(self.second.weight)
        assert self.second.bias is not None
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum."""
        branch: Tensor = self.second(F.silu(self.first(F.silu(x))))
        return x + branch


def _doubled(inputs: int, outputs: int) -> nn.Sequential:
    """Return a convolution to twice the side."""
    return nn.Sequential(nn.Conv2d(inputs, 4 * outputs, 3, padding=1), nn.PixelShuffle(2))


class Vae(nn.Module):
    """The autoencoder: `moments` and `reconstructed` with gradients, `encode` and `decode` of standardised latents."""

    shift: Tensor
    scale: Tensor

    def __init__(self, channels: int, factor: int, width: int) -> None:
        super().__init__()
        self.channels, self.factor = channels, factor
        levels = int(math.log2(factor))
        widths = [width] + [2 * width] * (levels - 1)
        down: list[nn.Module] = []
        for before, after in zip([3, *widths], widths, strict=False):
            down += [nn.Conv2d(before, after, 4, 2, padding=1), _Residual(after)]
        self.encoder = nn.Sequential(*down, nn.SiLU(), nn.Conv2d(widths[-1], 2 * channels, 3, padding=1))
        up: list[nn.Module] = [nn.Conv2d(channels, widths[-1], 3, padding=1), _Residual(widths[-1])]
        for before, after in zip(widths[::-1], [*widths[-2::-1], 0], strict=True):
            up += [_doubled(before, after), _Residual(after)] if after else [nn.SiLU(), _doubled(before, FINE)]
        self.decoder = nn.Sequential(*up, nn.SiLU(), nn.Conv2d(FINE, 3, 3, padding=1))
        self.register_buffer("shift", torch.zeros(channels, 1, 1))
        self.register_buffer("scale", torch.ones(channels, 1, 1))

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of the latents, each [B, c, h, w], of images from -1 to 1."""
        mean, log_variance = self.encoder(images).chunk(2, 1)
        return mean, log_variance.clamp(-20, 10)

    def reconstructed(self, latents: Tensor) -> Tensor:
        """Return images, from -1 to 1 or nearly, of latents that are not standardised."""
        images: Tensor = self.decoder(latents)
        return images

    def encode(self, images: Tensor) -> Tensor:
        """Return the standardised latents [B, c, h, w] of images from -1 to 1."""
        return (self.moments(images)[0].float() - self.shift) / self.scale

    def decode(self, latents: Tensor) -> Tensor:
        """Return the images of standardised latents."""
        return self.reconstructed(latents * self.scale + self.shift)

    @torch.no_grad()
    def standardise(self, mean: Tensor, std: Tensor) -> None:
        """Let latents have mean 0 and standard deviation 1, of which they had `mean` [c] and `std` [c] until now."""
        self.shift.add_(self.scale * mean.view(-1, 1, 1))
        self.scale.mul_(std.clamp(min=1e-6).view(-1, 1, 1))


class Objective(nn.Module):
    """The loss of each image, as `wmdd.networks.training.fit` trains it."""

    def __init__(self, vae: Vae, divergence: float) -> None:
        super().__init__()
        self.vae, self.divergence = vae, divergence

    def forward(self, images: Tensor, noise: Tensor) -> Tensor:
        """Return L [B] of images [B, 3, R, R] from -1 to 1, with the draws e [B, c, h, w]."""
        mean, log_variance = (x.float() for x in self.vae.moments(images))
        sample = mean + (log_variance / 2).exp() * noise
        error = (images - self.vae.reconstructed(sample).float()).square().flatten(1).sum(1)
        kl = (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).sum(1) / 2
        return (error + self.divergence * kl) / images[0].numel()


def build(settings: "AutoencoderSettings", resolution: int, generator: torch.Generator) -> Vae:
    """Build an autoencoder with fresh weights drawn from `generator`.

    Raises:
        WmddError: the images can't be divided by the factor.
    """
    if resolution % settings.factor:
        near = max(settings.factor, settings.factor * round(resolution / settings.factor))
        raise WmddError(
            f"images of {resolution} px can't be divided by the autoencoder's factor {settings.factor}; set "
            f"data.resolution: {near}, or another autoencoder.factor"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator.initial_seed())
        return Vae(settings.channels, settings.factor, settings.width)
