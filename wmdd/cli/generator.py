"""The commands that train generators, and how the commands of the latent family read them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wmdd.artifacts import hdf5
from wmdd.artifacts.hdf5 import check_classes, load
from wmdd.artifacts.model_files import load_meta, load_model, save_model
from wmdd.base.errors import WmddError
from wmdd.cli.arguments import ENGINE, Data, Paths, Threads, command
from wmdd.cli.readers import data_facts, numbered
from wmdd.cli.tensor_readers import both_splits
from wmdd.cli.writers import save_history
from wmdd.datasets.loader import opened, resident
from wmdd.generators import denoiser, pipeline_hub, pipelines, vae
from wmdd.generators.generator import Autoencoder, Generator, LatentDiffusion
from wmdd.jobs.job import job
from wmdd.jobs.node_cache import staged
from wmdd.networks.engine import Engine
from wmdd.settings.engine import EngineSettings
from wmdd.settings.latent import AutoencoderSettings, DecodeSettings, DiffusionSettings, GeneratorSettings
from wmdd.stages.autoencoder import train as train_autoencoder
from wmdd.stages.diffusion import train as train_diffusion


@command
def autoencoder(
    *,
    data: Data,
    output: Path,
    seed: int,
    threads: Threads = 1,
    settings: AutoencoderSettings = AutoencoderSettings(),
    engine: EngineSettings = ENGINE,
) -> None:
    """Train the small variational autoencoder of the latent family on the real training set.

    Args:
        output: the network; its history is written beside it.
        seed: of weights, order and draws.
    """
    meta = hdf5.load_meta(data)
    with (
        job("autoencoder", output, [settings], {"data": meta}, engine, threads, seed=seed) as stage_job,
        both_splits(data, stage_job.engine) as (pictures, val_pictures),
    ):
        network, history = train_autoencoder(pictures, val_pictures, settings, seed, stage_job.context)
        save_history(output, history)
        save_model(output, network.state_dict(), stage_job.meta | data_facts(meta) | {"psnr": history[-1]["psnr"]})


@command
def diffusion(
    *,
    latents: Paths,
    autoencoder: Path,
    data: Data,
    output: Path,
    seed: int,
    threads: Threads = 1,
    settings: DiffusionSettings = DiffusionSettings(),
    engine: EngineSettings = ENGINE,
) -> None:
    """Train the small class-conditional diffusion model of an autoencoder's latents.

    Args:
        latents: of the encode stage, all blocks in order.
        autoencoder: that made them, for the validation pictures.
        output: the network; its history is written beside it.
        seed: of weights, order and draws.
    """
    parts = [load(path, "latents", "labels") for path in latents]
    first = parts[0][1]
    inputs = numbered(meta for _, meta in parts) | {"data": hdf5.load_meta(data), "autoencoder": load_meta(autoencoder)}
    with (
        job("diffusion", output, [settings], inputs, engine, threads, seed=seed) as stage_job,
        opened(staged(data, make=False), "val") as (val_pictures, _),
    ):
        coder = Autoencoder(_autoencoder(autoencoder, stage_job.engine)[0], stage_job.engine)
        points, labels = (
            torch.from_numpy(np.concatenate([arrays[name] for arrays, _ in parts])) for name in ("latents", "labels")
        )
        val_latents = torch.cat([coder.encode(part).cpu() for part in resident(val_pictures).images.split(500)])
        network, history = train_diffusion(
            points.unflatten(1, first["shape"]), labels, val_latents, val_pictures.labels, len(first["classes"]), settings,
            seed, stage_job.context,
        )  # fmt: skip
        save_history(output, history)
        save_model(output, network.state_dict(), stage_job.meta | data_facts(first) | {"shape": first["shape"]})


def generator_of(
    generator: GeneratorSettings,
    decode: DecodeSettings | None,
    autoencoder: Path | None,
    diffusion: Path | None,
    data: dict[str, Any],
) -> tuple[Callable[[Engine], Generator], dict[str, hdf5.Meta | str]]:
    """Return a function that reads a generator for an engine, and its inputs: meta data of files, the digest of a model.

    Args:
        generator: its kind and model.
        decode: None for one that only encodes.
        autoencoder: of the kinds vae and latent-diffusion.
        diffusion: of the kind latent-diffusion.
        data: meta data of an artifact of the images that are encoded or decoded.

    Raises:
        WmddError: its autoencoder is not given.
    """
    if generator.kind == "ldm":
        return _pipeline(generator, decode, data)
    if autoencoder is None:
        raise WmddError(f"a generator of kind {generator.kind} needs --autoencoder; give its autoencoder.safetensors")
    inputs: dict[str, hdf5.Meta | str] = {"autoencoder": load_meta(autoencoder)}
    if generator.kind == "latent-diffusion" and diffusion is not None:
        inputs["diffusion"] = load_meta(diffusion)

    def read(engine: Engine) -> Generator:
        network, meta = _autoencoder(autoencoder, engine)
        check_classes(meta["classes"], data["classes"], str(autoencoder), "the data")
        coder = Autoencoder(network, engine)
        if diffusion is None or decode is None:
            return coder
        return LatentDiffusion(coder, _denoiser(diffusion, engine), decode)

    return read, inputs


def _pipeline(
    generator: GeneratorSettings, decode: DecodeSettings | None, data: dict[str, Any]
) -> tuple[Callable[[Engine], Generator], dict[str, hdf5.Meta | str]]:
    """Return what `generator_of` does, of a pipeline of the diffusers library."""
    model, resolution = pipeline_hub.find(generator), data["resolution"]
    if decode is None:
        return (lambda engine: pipelines.autoencoder(generator, resolution, engine)), {"model": model.digest("vae")}
    classes, names = data["classes"], data["names"]
    return (lambda engine: pipelines.load(generator, resolution, engine, classes, names, decode)), {
        "model": model.digest()
    }


def _read_state(path: Path, stage: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the weights and the meta data that a stage made."""
    state, meta = load_model(path)
    if meta["stage"] != stage:
        raise WmddError(f"{path} is of the stage {meta['stage']}; give the {stage}.safetensors of a generator")
    return state, meta


def _autoencoder(path: Path, engine: Engine) -> tuple[vae.Vae, dict[str, Any]]:
    """Read an autoencoder with its meta data."""
    state, meta = _read_state(path, "autoencoder")
    network = vae.build(AutoencoderSettings(**meta["settings"]), meta["resolution"], torch.Generator())
    network.load_state_dict(state)
    return engine.place(network.eval()), meta


def _denoiser(path: Path, engine: Engine) -> denoiser.Denoiser:
    """Read a diffusion model."""
    state, meta = _read_state(path, "diffusion")
    channels, height, width = meta["shape"]
    settings = DiffusionSettings(**meta["settings"])
    network = denoiser.build(settings, (channels, height, width), len(meta["classes"]), torch.Generator())
    network.load_state_dict(state)
    return engine.place(network.eval())
