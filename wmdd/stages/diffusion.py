"""Diffusion: the small class-conditional diffusion model of an autoencoder's latents (`wmdd.generators.denoiser`)."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from wmdd.base.rng import generator
from wmdd.generators import denoiser
from wmdd.networks.context import Context
from wmdd.networks.losses import own_loss
from wmdd.networks.training import Batch, batches_of, fit

if TYPE_CHECKING:
    from wmdd.settings.latent import DiffusionSettings

LOOKED = 500  # latents that are looked at at once


def train(
    latents: Tensor,
    labels: Tensor,
    val_latents: Tensor,
    val_labels: Tensor,
    classes: int,
    settings: "DiffusionSettings",
    seed: int,
    context: Context,
) -> tuple[denoiser.Denoiser, list[dict[str, float]]]:
    """Train a diffusion model of latents [N, c, h, w] with labels [N]; return it with its history.

    Order, noise, angles and hidden classes depend on seed, epoch and step alone; the angles of a step are stratified, one in
    each of B equal parts of [0, pi/2]. `val_loss` in the history is the loss of the validation latents, each time with the
    same draws.

    Raises:
        WmddError: the latents can't be halved, or the loss is not a number.
    """
    engine, shape = context.engine, latents.shape[1:]
    network = denoiser.build(settings, (shape[0], shape[1], shape[2]), classes, generator("diffusion", "weights", seed))
    objective = engine.place(denoiser.Objective(network))
    latents, labels = latents.to(engine.device), labels.to(engine.device)
    val_latents, val_labels = val_latents.to(engine.device), val_labels.to(engine.device)

    def batch(x: Tensor, classes_of: Tensor, draws: torch.Generator, dropout: float) -> Batch:
        count = len(x)
        noise = torch.randn(count, *shape, generator=draws)
        angle = (torch.rand(count, generator=draws) + torch.randperm(count, generator=draws)) / count
        hidden = torch.rand(count, generator=draws) < dropout
        seen = torch.where(hidden.to(engine.device), network.none, classes_of)
        more = (noise.to(engine.device), (angle * denoiser.QUARTER).to(engine.device), seen)
        return Batch(engine.arranged(x.float(), network), seen, more=more)

    def epoch_of(epoch: int, first: int) -> Iterable[Batch]:
        order = torch.randperm(len(labels), generator=generator("diffusion", "order", seed, epoch))
        for step, index in enumerate(batches_of(order.to(engine.device), settings.batch_size)[first:], first):
            draws = generator("diffusion", "noise", seed, epoch, step)
            yield batch(latents[index], labels[index], draws, settings.label_dropout)

    @torch.inference_mode()
    def validate(trained: nn.Module) -> dict[str, float]:
        trained.eval()
        draws, total = generator("diffusion", "validation", seed), 0.0
        for x, y in zip(val_latents.split(LOOKED), val_labels.split(LOOKED), strict=True):
            looked = batch(x, y, draws, 0.0)
            with engine.autocast():
                total += float(trained(looked.images, *looked.more).double().sum())
        trained.train()
        return {"val_loss": total / len(val_labels)}

    steps = len(batches_of(labels, settings.batch_size))
    history = fit(objective, epoch_of, steps, own_loss, validate, settings, context, settings.ema)
    return network.eval(), history
