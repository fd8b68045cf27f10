"""Decode: the atoms of the latents become images, by a decoder or through a reverse diffusion (DDOQ, Algorithm 1; D4M)."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wmdd.base.rng import generator
from wmdd.generators.generator import Generator
from wmdd.networks.context import Context

if TYPE_CHECKING:
    from wmdd.settings.latent import DecodeSettings


def decode(
    coder: Generator,
    atoms: Tensor,
    labels: Tensor,
    shape: tuple[int, ...],
    settings: "DecodeSettings",
    seed: int,
    context: Context,
) -> Tensor:
    """Return the images [C, K, 3, R, R] uint8 of atoms [C, K, D] of the classes `labels` [C].

    A latent has the `shape` [c, h, w] with c h w = D. What is random in an image is drawn for (seed, class, number of the
    image), so it depends on neither batch nor block.
    """
    count, k, _ = atoms.shape
    latents = atoms.reshape(count * k, *shape).float()
    classes = labels.repeat_interleave(k)
    parts = torch.arange(count * k).split(context.engine.images_at_once or settings.batch_size)
    state = context.keeper.load()
    images = [] if state is None else [state["images"]]
    done = 0 if state is None else int(state["done"])
    for part in context.progress(parts[done:], "decoding", len(parts), done, "batch"):
        draws = [generator("decode", seed, int(classes[i]), int(i) % k) for i in part]
        images.append(coder.decode(latents[part], classes[part], draws).cpu())
        done += 1
        if context.keeper.due():
            context.keeper.save({"images": torch.cat(images), "done": done}, done, len(parts), "batch")
    return torch.cat(images).unflatten(0, (count, k))
