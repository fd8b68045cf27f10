"""Autoencoder: the small variational autoencoder of the latent family, trained on the real images (`wmdd.generators.vae`)."""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from wmdd.base.rng import generator
from wmdd.generators import vae
from wmdd.generators.generator import Autoencoder
from wmdd.networks.context import Context
from wmdd.networks.engine import Engine
from wmdd.networks.losses import own_loss
from wmdd.networks.training import Batch, batches_of, fit

if TYPE_CHECKING:
    from wmdd.datasets.loader import Pictures
    from wmdd.settings.latent import AutoencoderSettings

LOOKED = 250  # images that are looked at at once
SAMPLE = 20_000  # images whose latents are standardised, at most, evenly from all


def train(
    pictures: "Pictures",
    val_pictures: "Pictures",
    settings: "AutoencoderSettings",
    seed: int,
    context: Context,
) -> tuple[vae.Vae, list[dict[str, float]]]:
    """Train an autoencoder on the pictures of the training split; return it, standardised, with its history.

    Order, mirror images and draws of the latents depend on seed and epoch alone. `psnr` in the history is that of the
    validation pictures' reconstructions, 10 log10(4 / mean squared error) with pixels from -1 to 1, in dB.

    Raises:
        WmddError: the images can't be divided by the factor, or the loss is not a number.
    """
    engine, count, resolution = context.engine, len(pictures.labels), pictures.resolution
    network = vae.build(settings, resolution, generator("autoencoder", "weights", seed))
    objective = engine.place(vae.Objective(network, settings.divergence))
    shape = (settings.channels, resolution // settings.factor, resolution // settings.factor)

    def epoch_of(epoch: int, first: int) -> Iterable[Batch]:
        draws = generator("autoencoder", "epoch", seed, epoch)
        steps = batches_of(torch.randperm(count, generator=draws), settings.batch_size)
        mirrored = torch.rand(count, generator=draws) < (0.5 if settings.flip else 0.0)
        for step, images in enumerate(pictures.batches(steps[first:]), first):
            drawn = torch.randn(len(images), *shape, generator=generator("autoencoder", "noise", seed, epoch, step))
            flips = mirrored[steps[step]].to(engine.device)
            x = vae.scaled(images.to(engine.device))
            x = torch.where(flips[:, None, None, None], x.flip(3), x)
            yield Batch(engine.arranged(x, network), flips, more=(drawn.to(engine.device),))

    def validate(trained: nn.Module) -> dict[str, float]:
        assert isinstance(trained, vae.Objective)
        return {"psnr": psnr(trained.vae, val_pictures, engine)}

    steps = len(batches_of(pictures.labels, settings.batch_size))
    history = fit(objective, epoch_of, steps, own_loss, validate, settings, context, settings.ema)
    network.eval()
    network.standardise(*moments(network, pictures, engine))
    return network, history


def psnr(network: vae.Vae, pictures: "Pictures", engine: Engine) -> float:
    """Return how well images are reconstructed from the means of their latents, in dB."""
    coder, total, count = Autoencoder(network, engine), 0.0, len(pictures.labels)
    for images in pictures.batches(torch.arange(count).split(LOOKED)):
        again = coder.decode(coder.encode(images), images, ())
        total += float(
            (vae.scaled(again) - vae.scaled(images.to(again.device))).square().mean((1, 2, 3)).double().sum()
        )
    return 10 * math.log10(4 * count / max(total, 1e-12))


def moments(network: vae.Vae, pictures: "Pictures", engine: Engine) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the latents by channel, [c] each, over at most `SAMPLE` of the pictures."""
    coder, count = Autoencoder(network, engine), len(pictures.labels)
    chosen = torch.linspace(0, count - 1, min(count, SAMPLE)).round().long()
    sums = torch.zeros(2, network.channels, dtype=torch.float64)
    numbers = 0
    for images in pictures.batches(chosen.split(LOOKED)):
        latents = coder.encode(images).double()
        sums += torch.stack([latents.sum((0, 2, 3)), latents.square().sum((0, 2, 3))]).cpu()
        numbers += latents[:, 0].numel()
    mean, square = sums / numbers
    return mean.float().to(engine.device), (square - mean**2).clamp(min=0).sqrt().float().to(engine.device)
