"""The commands of the latent family: training images to latents, latents to atoms, atoms to images."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wmdd.artifacts import atomic_files, hdf5, hdf5_writer
from wmdd.artifacts.hdf5 import checked_weights, load
from wmdd.artifacts.partial_output import Pieces
from wmdd.base.errors import WmddError
from wmdd.cli.arguments import ENGINE, Block, Data, Paths, Positive, Seed, Threads, command
from wmdd.cli.generator import generator_of
from wmdd.cli.readers import block_classes, data_facts, numbered
from wmdd.cli.tensor_readers import class_rows
from wmdd.cli.writers import save_atoms, save_images
from wmdd.datasets.loader import opened
from wmdd.jobs.job import StageJob, job
from wmdd.jobs.node_cache import staged
from wmdd.settings.engine import EngineSettings
from wmdd.settings.latent import DecaySettings, DecodeSettings, EncodeSettings, GeneratorSettings, QuantizeSettings
from wmdd.stages.barycenter import columns, table
from wmdd.stages.decay import chosen
from wmdd.stages.decay import decay as decay_of
from wmdd.stages.decode import decode as decoded
from wmdd.stages.encode import encode as encoded
from wmdd.stages.feature_files import copy_rows
from wmdd.stages.point_clouds import Cloud
from wmdd.stages.quantize import Latents, Quantized
from wmdd.stages.quantize import quantize as quantized_classes


@command
def encode(
    *,
    data: Data,
    output: Path,
    block: Block,
    autoencoder: Path | None = None,
    threads: Threads = 1,
    generator: GeneratorSettings = GeneratorSettings(),
    settings: EncodeSettings = EncodeSettings(),
    engine: EngineSettings = ENGINE,
) -> None:
    """Encode the training images of a block of classes once: a latent of each.

    Args:
        output: of the latents.
        autoencoder: of the stage of that name, for a generator of kind vae.
    """
    meta = hdf5.load_meta(data)
    classes = block_classes(block, meta["classes"])
    read_generator, inputs = generator_of(generator, None, autoencoder, None, meta)
    inputs["data"] = meta
    with (
        job("encode", output, [generator, settings], inputs, engine, threads, block=block) as stage_job,
        opened(staged(data, make=False), "train", once=True) as (pictures, _),
    ):
        checkpoint = stage_job.checkpoint
        pieces = Pieces(output, checkpoint.key)
        first, end = class_rows(pictures.labels, classes)
        start = max(first, pieces.restore())
        checkpoint.begin(pieces.seconds)
        for shard in encoded(
            read_generator(stage_job.engine), pictures, settings, stage_job.engine, classes, start, checkpoint.due,
            stage_job.context.progress,
        ):  # fmt: skip
            arrays = {"latents": shard.latents.numpy(), "labels": shard.labels.numpy()}
            pieces.add(shard.first, len(shard.labels), arrays, checkpoint.spent(), shape=shard.shape)
            checkpoint.save({}, shard.first + len(shard.labels) - first, end - first, "picture")
        shape = hdf5.load_meta(pieces.whole()[0])["shape"]
        with hdf5_writer.writing(output) as writer:
            writer.meta = stage_job.meta | data_facts(meta) | {"shape": shape}
            copy_rows(pieces.files, writer, ("latents", "labels"))
        pieces.remove()
        stage_job.cost["images"] = end - first
        stage_job.cost["images_per_second"] = round((end - first) / max(checkpoint.spent(), 1e-9), 1)


@contextmanager
def _latents(paths: list[Path]) -> Iterator[tuple[list[tuple[Cloud, range]], list[hdf5.Meta]]]:
    """Open files of latents; yield the points and the classes of each, and the meta data of each."""
    with ExitStack() as files:
        clouds, metas = list[tuple[Cloud, range]](), list[hdf5.Meta]()
        for path in paths:
            file = files.enter_context(hdf5.reading(path, "latents", "labels"))
            meta, labels = file.meta, file["labels"][()]
            metas.append(meta)
            if meta["classes"] != metas[0]["classes"]:
                raise WmddError(f"{path} is of other classes than {paths[0]}; encode the data again")
            classes = range(int(labels.min()), int(labels.max()) + 1)
            clouds.append((Cloud(Latents(file["latents"]), labels, meta["names"]), classes))
        yield clouds, metas


@command
def quantize(
    *,
    latents: Paths,
    output: Path,
    block: Block,
    k: Positive,
    seed: Seed,
    threads: Threads = 1,
    settings: QuantizeSettings = QuantizeSettings(),
) -> None:
    """Quantize the latents of each class of a block: K atoms with the masses of their cells, and how good they are.

    Args:
        latents: of the encode stage, the blocks that hold the classes.
        output: of the atoms.
        k: atoms; images per class.
    """
    settings.check()
    with _latents(latents) as (clouds, metas):
        classes = block_classes(block, metas[0]["classes"])
        inputs = numbered(metas)
        with job("quantize", output, [settings], inputs, threads=threads, block=block, k=k, seed=seed) as stage_job:
            quantized: list[Quantized] = []
            for cloud, held in clouds:
                labels = range(max(classes.start, held.start), min(classes.stop, held.stop))
                quantized += (
                    quantized_classes(cloud, labels, k, settings, seed, stage_job.context.progress) if labels else []
                )
            if len(quantized) != len(classes):
                raise WmddError(f"{', '.join(map(str, latents))} hold not all classes of {block}; encode them again")
            _save(stage_job, quantized, classes, metas[0])
        names = [metas[0]["names"][label] for label in classes]
        print(table(names, [measure.quality for measure in quantized]))


def _save(stage_job: StageJob, quantized: list[Quantized], labels: range, meta: dict[str, Any]) -> None:
    """Write the atoms of latents, with their quality and what is known of latents besides."""
    atoms, weights = (
        torch.stack([getattr(measure.atoms, name) for measure in quantized]).float() for name in ("atoms", "weights")
    )
    quality = columns([measure.quality for measure in quantized]) | {
        name: np.array([getattr(measure, name) for measure in quantized]) for name in ("uniform_cost", "dimension")
    }
    seconds = [measure.quality.seconds for measure in quantized]
    save_atoms(stage_job, atoms, weights, labels, quality, seconds, data_facts(meta) | {"shape": meta["shape"]})


@command
def decode(
    *,
    atoms: Path,
    output: Path,
    seed: Seed,
    autoencoder: Path | None = None,
    diffusion: Path | None = None,
    threads: Threads = 1,
    generator: GeneratorSettings = GeneratorSettings(),
    settings: DecodeSettings = DecodeSettings(),
    engine: EngineSettings = ENGINE,
) -> None:
    """Decode the atoms of a block of classes into images, which keep the atoms' weights.

    Args:
        atoms: of the quantize stage.
        output: of the images.
        autoencoder: for the kinds vae and latent-diffusion.
        diffusion: for the kind latent-diffusion.
    """
    arrays, meta = load(atoms, "labels", "atoms", "weights")
    if generator.kind == "latent-diffusion" and diffusion is None:
        raise WmddError("a generator of kind latent-diffusion needs --diffusion; give its diffusion.safetensors")
    identity = {name: meta["identity"][name] for name in ("block", "k")}
    read_generator, inputs = generator_of(generator, settings, autoencoder, diffusion, meta)
    inputs["atoms"] = meta
    labels = torch.from_numpy(arrays["labels"])
    with job("decode", output, [generator, settings], inputs, engine, threads, seed=seed, **identity) as stage_job:
        images = decoded(
            read_generator(stage_job.engine), torch.from_numpy(arrays["atoms"]), labels, tuple(meta["shape"]), settings,
            seed, stage_job.context,
        )  # fmt: skip
        save_images(
            stage_job, images, torch.from_numpy(checked_weights(atoms, arrays["weights"])), labels.tolist(), meta
        )


@command
def decay(*, latents: Paths, output: Path, threads: Threads = 1, settings: DecaySettings = DecaySettings()) -> None:
    """Measure how fast W2 falls with the number of atoms, beside the intrinsic dimension of the latents.

    Args:
        latents: of the encode stage, all blocks.
        output: JSON.
    """
    with _latents(latents) as (clouds, metas):
        names = metas[0]["names"]
        with job("decay", output, [settings], numbered(metas), threads=threads) as stage_job:
            labels = chosen(len(names), settings)
            held = [(next(cloud for cloud, classes in clouds if label in classes), label) for label in labels]
            shown = stage_job.context.progress(held, "classes", len(labels), 0, "class")
            rows = [decay_of(cloud, label, settings) for cloud, label in shown]
            atomic_files.write_json(output, stage_job.meta | {"decay": rows, "names": names})
