"""Generators: one small interface to all that turns images into latents and latents into images."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from wmdd.generators import vae
from wmdd.generators.denoiser import Denoiser, reverse
from wmdd.networks.engine import Engine

if TYPE_CHECKING:
    from wmdd.settings.latent import DecodeSettings


class Generator(Protocol):
    """An encoder and a decoder, on the engine's device.

    Images are uint8 [B, 3, R, R], latents float32 [B, c, h, w] of about unit variance, labels int64 [B]. The result for an
    image or a latent does not depend on what else is in its batch, beyond rounding; all that is random is drawn from its
    own generator, on the CPU.
    """

    def encode(self, images: Tensor) -> Tensor:
        """Return latents of images."""

    def decode(self, latents: Tensor, labels: Tensor, draws: Sequence[torch.Generator]) -> Tensor:
        """Return images of latents."""


def noise(shape: Sequence[int], draws: Sequence[torch.Generator]) -> Tensor:
    """Return standard normal numbers, [B, *shape], a row from each generator."""
    return torch.stack([torch.randn(*shape, generator=each) for each in draws])


@dataclass(frozen=True)
class Autoencoder:
    """The trained autoencoder alone: a latent is decoded as it is."""

    network: vae.Vae
    engine: Engine

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        """Return the standardised means of the latents."""
        with self.engine.autocast():
            return self.network.encode(self.engine.arranged(vae.scaled(images), self.network)).float()

    @torch.inference_mode()
    def decode(self, latents: Tensor, labels: Tensor, draws: Sequence[torch.Generator]) -> Tensor:
        """Return images of latents; labels and draws have no part in it."""
        with self.engine.autocast():
            return vae.to_pixels(self.network.decode(self.engine.arranged(latents, self.network)))


@dataclass(frozen=True)
class LatentDiffusion:
    """A diffusion model of the autoencoder's latents: a latent is noised, brought back as one of its class, and decoded."""

    autoencoder: Autoencoder
    denoiser: Denoiser
    settings: "DecodeSettings"

    def encode(self, images: Tensor) -> Tensor:
        """Return the autoencoder's latents."""
        return self.autoencoder.encode(images)

    @torch.inference_mode()
    def decode(self, latents: Tensor, labels: Tensor, draws: Sequence[torch.Generator]) -> Tensor:
        """Return images of latents after the reverse process (`wmdd.generators.denoiser.reverse`)."""
        engine, how = self.autoencoder.engine, self.settings
        drawn = noise(latents.shape[1:], draws).to(engine.device)
        with engine.autocast():
            moved = reverse(
                self.denoiser, latents.to(engine.device), drawn, labels.to(engine.device),
                how.strength, how.guidance, how.steps,
            )  # fmt: skip
        return self.autoencoder.decode(moved, labels, draws)
