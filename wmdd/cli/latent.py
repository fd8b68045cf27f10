"""The commands of the latent family, and of distances (see `wmdd.cli.stages`)."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from wmdd.artifacts import atomic_files, hdf5, hdf5_writer, model_files
from wmdd.artifacts.hdf5 import check_classes, load
from wmdd.artifacts.hdf5_writer import save
from wmdd.artifacts.model_files import load_model
from wmdd.base.errors import WmddError
from wmdd.cli.stages import (
    ENGINE,
    Ipc,
    Several,
    _block,
    _manifest,
    _quality,
    _rows,
    _save_images,
    _teacher,
    _write_history,
    app,
)
from wmdd.jobs.job import job
from wmdd.jobs.node_cache import staged
from wmdd.networks.engine import Engine
from wmdd.settings.engine import EngineSettings
from wmdd.settings.latent import (
    AutoencoderSettings,
    DecaySettings,
    DecodeSettings,
    DiffusionSettings,
    EncodeSettings,
    GeneratorSettings,
    QuantizeSettings,
)

if TYPE_CHECKING:
    from wmdd.generators.generator import Generator
    from wmdd.generators.vae import Vae
    from wmdd.stages.point_clouds import Cloud


@app.command
def autoencoder(
    *,
    data: Path,
    output: Path,
    seed: int,
    threads: int = 1,
    settings: AutoencoderSettings = AutoencoderSettings(),
    engine: EngineSettings = ENGINE,
) -> None:
    """Train the small variational autoencoder of the latent family on the real training set.

    Args:
        data: of the data stage.
        output: the network; its history is written beside it.
        seed: of weights, order and draws.
        threads: of the CPU.
        settings: network and optimisation.
        engine: device, precision.
    """
    from wmdd.datasets.loader import opened
    from wmdd.stages.autoencoder import train

    about = hdf5.load_meta(data)
    with (
        job("autoencoder", output, [settings], {"data": about["digest"]}, engine, threads, seed=seed) as this,
        opened(near := staged(data), "train", device=this.engine.device) as (pictures, _),
        opened(near, "val", device=this.engine.device) as (val_pictures, _),
    ):
        network, history = train(pictures, val_pictures, settings, seed, this.context)
        _write_history(output.with_suffix(".csv"), history)
        known = _manifest(about) | {"psnr": history[-1]["psnr"]}
        model_files.save_model(output, network.state_dict(), this.meta | known)


def _autoencoder(path: Path, engine: Engine) -> "tuple[Vae, dict[str, Any]]":
    """Read an autoencoder with its meta data."""
    from wmdd.generators.vae import build

    state, meta = load_model(path)
    if meta["stage"] != "autoencoder":
        raise WmddError(f"{path} is of the stage {meta['stage']}; give the autoencoder.safetensors of a generator")
    network = build(AutoencoderSettings(**meta["settings"]), meta["resolution"], torch.Generator())
    network.load_state_dict(state)
    return engine.place(network.eval()), meta


@app.command
def diffusion(
    *,
    latents: Several,
    autoencoder: Path,
    data: Path,
    output: Path,
    seed: int,
    threads: int = 1,
    settings: DiffusionSettings = DiffusionSettings(),
    engine: EngineSettings = ENGINE,
) -> None:
    """Train the small class-conditional diffusion model of an autoencoder's latents.

    Args:
        latents: of the encode stage, all blocks in order.
        autoencoder: that made them, for the validation pictures.
        data: of the data stage.
        output: the network; its history is written beside it.
        seed: of weights, order and draws.
        threads: of the CPU.
        settings: network and optimisation.
        engine: device, precision.
    """
    from wmdd.datasets.loader import opened, resident
    from wmdd.generators.generator import Autoencoder
    from wmdd.stages.diffusion import train

    parts = [load(path, "latents", "labels") for path in latents]
    first, about = parts[0][1], hdf5.load_meta(data)
    inputs = {str(i): meta["digest"] for i, (_, meta) in enumerate(parts)} | {"data": about["digest"]}
    with (
        job("diffusion", output, [settings], inputs, engine, threads, seed=seed) as this,
        opened(staged(data, make=False), "val") as (val_pictures, _),
    ):
        coder = Autoencoder(_autoencoder(autoencoder, this.engine)[0], this.engine)
        points, labels = (
            torch.from_numpy(np.concatenate([arrays[n] for arrays, _ in parts])) for n in ("latents", "labels")
        )
        looked = resident(val_pictures).images
        val = torch.cat([coder.encode(part).cpu() for part in looked.split(500)])
        network, history = train(
            points.unflatten(1, first["shape"]), labels, val, val_pictures.labels, len(first["classes"]), settings, seed,
            this.context,
        )  # fmt: skip
        _write_history(output.with_suffix(".csv"), history)
        known = _manifest(first) | {"shape": first["shape"]}
        model_files.save_model(output, network.state_dict(), this.meta | known)


def _coder(
    generator: GeneratorSettings,
    decode: DecodeSettings | None,
    autoencoder: Path | None,
    diffusion: Path | None,
    data: dict[str, Any],
) -> "tuple[Callable[[Engine], Generator], dict[str, str]]":
    """Return a function that makes a generator for an engine, and the digests of the files that it is made of.

    `decode` is None for one that only encodes; `data` is the meta data of an artifact of the images that come or go.
    """
    if generator.kind == "ldm":
        return _pipeline(generator, decode, data)
    if autoencoder is None:
        raise WmddError(f"a generator of kind {generator.kind} needs --autoencoder; give its autoencoder.safetensors")
    inputs = {"autoencoder": load_model(autoencoder)[1]["digest"]}
    if generator.kind == "latent-diffusion" and diffusion is not None:
        inputs["diffusion"] = load_model(diffusion)[1]["digest"]

    def made(engine: Engine) -> "Generator":
        from wmdd.generators.generator import Autoencoder, LatentDiffusion

        network, meta = _autoencoder(autoencoder, engine)
        check_classes(meta["classes"], data["classes"], str(autoencoder), "the data")
        coder = Autoencoder(network, engine)
        if diffusion is None or decode is None:
            return coder
        return LatentDiffusion(coder, _denoiser(diffusion, engine), decode)

    return made, inputs


def _pipeline(
    generator: GeneratorSettings, decode: DecodeSettings | None, data: dict[str, Any]
) -> "tuple[Callable[[Engine], Generator], dict[str, str]]":
    """Return what `_coder` does, of a pipeline of the diffusers library."""
    from wmdd.generators import pipeline_hub
    from wmdd.generators import pipelines as ldm

    model = pipeline_hub.find(generator)
    if decode is None:
        return (lambda engine: ldm.autoencoder(generator, data["resolution"], engine)), {"model": model.digest("vae")}
    return (lambda engine: ldm.load(generator, data["resolution"], engine, data["classes"], data["names"], decode)), {
        "model": model.digest()
    }


def _denoiser(path: Path, engine: Engine) -> Any:
    """Read a diffusion model."""
    from wmdd.generators.denoiser import build

    state, meta = load_model(path)
    if meta["stage"] != "diffusion":
        raise WmddError(f"{path} is of the stage {meta['stage']}; give the diffusion.safetensors of a generator")
    shape = meta["shape"]
    network = build(
        DiffusionSettings(**meta["settings"]), (shape[0], shape[1], shape[2]), len(meta["classes"]), torch.Generator()
    )
    network.load_state_dict(state)
    return engine.place(network.eval())


@app.command
def encode(
    *,
    data: Path,
    output: Path,
    block: str,
    autoencoder: Path | None = None,
    threads: int = 1,
    generator: GeneratorSettings = GeneratorSettings(),
    settings: EncodeSettings = EncodeSettings(),
    engine: EngineSettings = ENGINE,
) -> None:
    """Encode the training images of a block of classes once: a latent of each.

    Args:
        data: of the data stage.
        output: of the latents.
        block: of classes, as in classes0-99.
        autoencoder: of the stage of that name, for a generator of kind vae.
        threads: of the CPU.
        generator: its kind and model.
        settings: batch size.
        engine: device, precision.
    """
    from wmdd.artifacts.partial_output import Pieces
    from wmdd.datasets.loader import opened
    from wmdd.stages.encode import encode as run
    from wmdd.stages.feature_files import copy_rows

    about = hdf5.load_meta(data)
    wanted = _block(block, about["classes"])
    with ExitStack() as files:
        made, inputs = _coder(generator, None, autoencoder, None, about)
        inputs["data"] = about["digest"]
        this = files.enter_context(job("encode", output, [generator, settings], inputs, engine, threads, block=block))
        pictures, _ = files.enter_context(opened(staged(data, make=False), "train", once=True))
        pieces = Pieces(output, this.checkpoint.key)
        begin, end = _rows(pictures.labels, wanted)
        start = max(begin, pieces.restore())
        this.checkpoint.begin(pieces.seconds)
        for shard in run(
            made(this.engine),
            pictures,
            settings,
            this.engine,
            wanted,
            start,
            this.checkpoint.due,
            this.context.progress,
        ):
            arrays = {"latents": shard.latents.numpy(), "labels": shard.labels.numpy()}
            pieces.add(shard.first, len(shard.labels), arrays, this.checkpoint.spent(), shape=shard.shape)
            this.checkpoint.save({}, shard.first + len(shard.labels) - begin, end - begin, "picture")
        shape = hdf5.load_meta(pieces.whole()[0])["shape"]
        with hdf5_writer.writing(output) as writer:
            writer.meta = this.meta | _manifest(about) | {"shape": shape}
            copy_rows(pieces.files, writer, ("latents", "labels"))
        pieces.remove()
        this.figures["images"] = end - begin
        this.figures["images_per_second"] = round((end - begin) / max(this.checkpoint.spent(), 1e-9), 1)


@contextmanager
def _latents(paths: list[Path]) -> "Iterator[list[tuple[Cloud, range, dict[str, Any]]]]":
    """Open files of latents; yield of each its points, its classes and its meta data."""
    from wmdd.stages.point_clouds import Cloud
    from wmdd.stages.quantize import Latents

    with ExitStack() as files:
        found: list[tuple[Cloud, range, dict[str, Any]]] = []
        for path in paths:
            file = files.enter_context(hdf5.reading(path, "latents", "labels"))
            meta, labels = hdf5.meta_of(file), file["labels"][()]
            if meta["classes"] != (found[0][2] if found else meta)["classes"]:
                raise WmddError(f"{path} is of other classes than {paths[0]}; encode the data again")
            cloud = Cloud(Latents(file["latents"]), labels, meta["names"])
            found.append((cloud, range(int(labels.min()), int(labels.max()) + 1), meta))
        yield found


@app.command
def quantize(
    *,
    latents: Several,
    output: Path,
    block: str,
    k: Ipc,
    seed: int,
    threads: int = 1,
    settings: QuantizeSettings = QuantizeSettings(),
) -> None:
    """Quantize the latents of each class of a block: K atoms with the masses of their cells, and how good they are.

    Args:
        latents: of the encode stage, the blocks that hold the classes.
        output: of the atoms.
        block: of classes, as in classes0-4.
        k: atoms; images per class.
        seed: of the distillation.
        threads: of the CPU.
        settings: of the solver.
    """
    from wmdd.stages.barycenter import columns, table
    from wmdd.stages.quantize import quantize as run

    settings.check()
    with _latents(latents) as files:
        first = files[0][2]
        wanted = _block(block, first["classes"])
        inputs = {str(i): meta["digest"] for i, (_, _, meta) in enumerate(files)}
        with job("quantize", output, [settings], inputs, threads=threads, block=block, k=k, seed=seed) as this:
            found = []
            for cloud, classes, _ in files:
                mine = range(max(wanted.start, classes.start), min(wanted.stop, classes.stop))
                found += run(cloud, mine, k, settings, seed, this.context.progress) if mine else []
            if len(found) != len(wanted):
                raise WmddError(f"{', '.join(map(str, latents))} hold not all classes of {block}; encode them again")
            quality = columns([each.quality for each in found])
            quality |= {
                name: np.array([getattr(each, name) for each in found]) for name in ("uniform_cost", "dimension")
            }
            arrays = {
                "labels": np.array(wanted),
                "atoms": torch.stack([each.atoms.atoms for each in found]).float().numpy(),
                "weights": torch.stack([each.atoms.weights for each in found]).float().numpy(),
            } | {f"quality/{name}": values for name, values in quality.items()}
            save(output, arrays, this.meta | _manifest(first) | {"shape": first["shape"]})
            this.figures["seconds_per_class"] = [round(each.quality.seconds, 4) for each in found]
            this.tracker.log({f"mean/{name}": float(values.mean()) for name, values in quality.items()})
        print(table([first["names"][label] for label in wanted], [each.quality for each in found]))


@app.command
def decode(
    *,
    atoms: Path,
    output: Path,
    seed: int,
    autoencoder: Path | None = None,
    diffusion: Path | None = None,
    threads: int = 1,
    generator: GeneratorSettings = GeneratorSettings(),
    settings: DecodeSettings = DecodeSettings(),
    engine: EngineSettings = ENGINE,
) -> None:
    """Decode the atoms of a block of classes into images, which keep the atoms' weights.

    Args:
        atoms: of the quantize stage.
        output: of the images.
        seed: of the distillation.
        autoencoder: for the kinds vae and latent-diffusion.
        diffusion: for the kind latent-diffusion.
        threads: of the CPU.
        generator: its kind and model.
        settings: of the reverse diffusion.
        engine: device, precision.
    """
    from wmdd.stages.decode import decode as run

    arrays, about = load(atoms, "labels", "atoms", "weights")
    if generator.kind == "latent-diffusion" and diffusion is None:
        raise WmddError("a generator of kind latent-diffusion needs --diffusion; give its diffusion.safetensors")
    identity = {name: about["identity"][name] for name in ("block", "k")}
    made, inputs = _coder(generator, settings, autoencoder, diffusion, about)
    inputs["atoms"] = about["digest"]
    labels = torch.from_numpy(arrays["labels"])
    with job("decode", output, [generator, settings], inputs, engine, threads, seed=seed, **identity) as this:
        images = run(
            made(this.engine), torch.from_numpy(arrays["atoms"]), labels, tuple(about["shape"]), settings, seed,
            this.context,
        )  # fmt: skip
        _save_images(this, images, torch.from_numpy(arrays["weights"]), labels.tolist(), about)


@app.command
def distance(
    *,
    images: Path,
    teacher: Path,
    features: Path,
    output: Path,
    threads: int = 1,
    engine: EngineSettings = ENGINE,
) -> None:
    """Measure how far a distilled set is from the real data: W2^2 of each class in the space of the teacher's features.

    Args:
        images: a distilled set.
        teacher: of the teacher stage.
        features: of the features stage.
        output: JSON.
        threads: of the CPU.
        engine: device, precision.
    """
    from wmdd.stages.distance import distances
    from wmdd.stages.distance import features as embed
    from wmdd.stages.point_clouds import Cloud

    arrays, about = load(images, "images", "weights")
    network, known = _teacher(teacher)
    check_classes(known["classes"], about["classes"], str(teacher), str(images))
    with hdf5.reading(features, "features", "labels") as file:
        real = hdf5.meta_of(file)
        if real["inputs"]["teacher"] != known["digest"]:
            raise WmddError(f"{features} is of another teacher than {teacher}; run the features stage again")
        inputs = {"images": about["digest"], "teacher": known["digest"], "features": real["digest"]}
        with job("distance", output, [], inputs, engine, threads) as this:
            pixels, cloud = (
                torch.from_numpy(arrays["images"]),
                Cloud(file["features"], file["labels"][()], real["names"]),
            )
            embedded = embed(network, pixels.flatten(0, 1), known["mean"], known["std"], this.context)
            weights = torch.from_numpy(arrays["weights"])
            found = distances(embedded.unflatten(0, pixels.shape[:2]), weights, cloud, this.context)
            this.tracker.log({f"mean/{name}": float(np.mean(values)) for name, values in found.items()})
            atomic_files.write_json(output, this.meta | {"distance": found, "classes": about["classes"]})


@app.command
def decay(*, latents: Several, output: Path, threads: int = 1, settings: DecaySettings = DecaySettings()) -> None:
    """Measure how fast W2 falls with the number of atoms, beside the intrinsic dimension of the latents.

    Args:
        latents: of the encode stage, all blocks.
        output: JSON.
        threads: of the CPU.
        settings: how many atoms and classes.
    """
    from wmdd.stages.decay import chosen
    from wmdd.stages.decay import decay as run

    with _latents(latents) as files:
        first = files[0][2]
        inputs = {str(i): meta["digest"] for i, (_, _, meta) in enumerate(files)}
        with job("decay", output, [settings], inputs, threads=threads) as this:
            labels = chosen(len(first["classes"]), settings)
            of = [next(cloud for cloud, classes, _ in files if label in classes) for label in labels]
            rows = [
                run(cloud, label, settings)
                for cloud, label in this.context.progress(
                    list(zip(of, labels, strict=True)), "classes", len(labels), 0, "class"
                )
            ]
            atomic_files.write_json(output, this.meta | {"decay": rows, "names": first["names"]})


@app.command
def distances(
    *,
    distances: Several,
    table: Path,
    csv: Path,
    figure: Path,
    atoms: Several | None = None,
    decays: Several | None = None,
) -> None:
    """Gather the distances of all distilled sets of the matrix to the real data: tables and a picture.

    Args:
        distances: of the distance stage.
        table: Markdown.
        csv: the same as numbers.
        figure: PNG.
        atoms: of the quantize stage.
        decays: of the decay stage.
    """
    from wmdd.report import distances as build

    measured = [(path, atomic_files.read_json(path)) for path in distances]
    summary = build.summary(measured, [(path, _quality(path)[0]) for path in atoms or []])
    falling = build.decays([(path, atomic_files.read_json(path)) for path in decays or []])
    atomic_files.write_text(csv, summary.to_csv(index=False))
    with atomic_files.atomic(figure) as part:
        build.draw(summary, falling, part)
    text = build.markdown(summary, falling)
    atomic_files.write_text(table, text)
    print(text)
