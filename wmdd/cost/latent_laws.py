"""Laws of the family latent: generators, latents, and what is decoded of them (`wmdd.cost.laws`)."""

import math
from dataclasses import replace

from wmdd.cost.scene import SHARD, Scene, Work
from wmdd.settings.barycenter import BarycenterSettings

MEASURED = 2000  # points whose intrinsic dimension is measured: wmdd.transport.dimension, which imports torch


def autoencoder(s: Scene) -> Work:
    """Return the work of training encoder and decoder."""
    settings = s.settings("autoencoder")
    return s.training(settings, s.coder.both._replace(width=settings.width))


def encode(s: Scene) -> Work:
    """Return the work of a pass of the encoder over the training images of some classes."""
    count, size = s.train * s.mine / s.classes, s.settings("encode").batch_size
    return replace(
        s.forward(count, s.coder.encoder, size),
        moved=count * (s.pixels + 2 * s.coder.size), disk=2 * count * s.coder.size,
        decoded=s.pictures.decoded(1, 0) * s.mine / s.classes,
        memory=5 * SHARD + 16 * count + 16 * size * s.pixels + s.coder.bytes,
    )  # fmt: skip


def diffusion(s: Scene) -> Work:
    """Return the work of training on latents, which are held in memory."""
    settings = s.settings("diffusion")
    trained = s.training(settings, s.coder.unet._replace(width=settings.width))
    return replace(trained, decoded=0, memory=trained.memory + 8 * s.train * s.coder.size)


def decay(s: Scene) -> Work:
    """Return the work of barycenters of latents with more and more atoms."""
    settings = s.settings("decay")
    each = s.solver_seconds(BarycenterSettings(weights="free"), settings.most, s.coder.size)
    memory = s.solver_bytes(settings.most, s.coder.size) + 16 * MEASURED * s.coder.size
    return Work(seconds=2 * min(settings.classes, s.classes) * each, memory=memory)


def quantize(s: Scene) -> Work:
    """Return the work of a barycenter of each class's latents."""
    solved = s.barycenters(s.settings("quantize"), s.coder.size, 2)
    return replace(solved, memory=solved.memory + 16 * MEASURED * s.coder.size)


def decode(s: Scene) -> Work:
    """Return the work of denoising and decoding the atoms of a block."""
    how, coder = s.settings("decode"), s.coder
    steps = math.ceil(how.strength * how.steps) * (1 if how.guidance in (0, 1) else 2)
    passed = s.forward_bytes(how.batch_size, coder.decoder) + 8 * how.batch_size * coder.unet.outputs
    return Work(
        images=s.images, flop=s.images * (coder.decoder.flop + steps * coder.unet.flop), passed=passed,
        moved=s.images * (s.pixels + 4 * coder.size), disk=s.bytes,
        memory=3 * s.bytes + 8 * s.images * (coder.size + 1) + coder.bytes,
    )  # fmt: skip


LAWS = (autoencoder, encode, diffusion, decay, quantize, decode)
