"""The commands: each reads artifacts, calls the stage of the same name, and writes artifacts. The science is in the stages."""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from cyclopts import App, Parameter
from cyclopts.validators import Number

from wmdd import __version__
from wmdd.artifacts import atomic_files, hdf5, hdf5_writer, model_files
from wmdd.artifacts.atomic_files import read_json
from wmdd.artifacts.hdf5 import LEARNED, check_classes, learned_labels, load
from wmdd.artifacts.hdf5_writer import save
from wmdd.artifacts.model_files import load_model
from wmdd.base.errors import WmddError
from wmdd.base.progress import progress
from wmdd.jobs.job import Job, cost_path, job
from wmdd.jobs.node_cache import staged
from wmdd.networks.batchnorm import Statistics
from wmdd.networks.models import Network, restore
from wmdd.settings.barycenter import BarycenterSettings
from wmdd.settings.data import DataSettings
from wmdd.settings.engine import EngineSettings
from wmdd.settings.network import NetworkSettings
from wmdd.settings.recover import RecoverSettings, SelectSettings
from wmdd.settings.student import LabelSettings, RelabelSettings, StudentSettings
from wmdd.settings.teacher import FeaturesSettings, TeacherSettings

if TYPE_CHECKING:
    from wmdd.stages import point_clouds
    from wmdd.stages.barycenter import Quality
    from wmdd.stages.labels import Labels
    from wmdd.transport import Barycenter

app = App(name="wmdd", help="Dataset distillation with Wasserstein barycenters.", version=__version__)
Several = Annotated[list[Path], Parameter(consume_multiple=True)]
Runs = Annotated[list[int], Parameter(consume_multiple=True)]
Ipc = Annotated[int, Parameter(validator=Number(gte=1))]
Processes = Annotated[int, Parameter(validator=Number(gte=1))]
ENGINE = EngineSettings()
LABELS = LabelSettings()
SHOWN = 50  # classes of a distilled set that the tracker shows


def _block(text: str, classes: list[str]) -> range:
    """Return the classes of a block named `classes{first}-{last}`."""
    match = re.fullmatch(r"classes(\d+)-(\d+)", text)
    if match is None or not int(match[1]) <= int(match[2]) < len(classes):
        raise WmddError(f"there is no block {text!r}; name the classes as in classes0-{len(classes) - 1}")
    return range(int(match[1]), int(match[2]) + 1)


def _teacher(path: Path) -> tuple[Network, dict[str, Any]]:
    """Read a teacher with its meta data."""
    state, meta = load_model(path)
    settings = NetworkSettings(**{k: v for k, v in meta["settings"].items() if k in NetworkSettings.model_fields})
    return restore(settings, state, len(meta["classes"]), meta["resolution"], str(path)), meta


def _statistics(path: Path, labels: range) -> Statistics:
    """Read the BatchNorm statistics of some classes; the layers in the network's order."""
    with hdf5.reading(path) as file:
        layers = hdf5.meta_of(file)["layers"]
        mean, variance = (
            {name: torch.from_numpy(file[f"{kind}/{name}"][labels.start : labels.stop]) for name in layers}
            for kind in ("mean", "variance")
        )
    return Statistics(mean, variance)


def _manifest(meta: dict[str, Any]) -> dict[str, Any]:
    """Return what every artifact says of the data it comes from."""
    return {name: meta[name] for name in ("classes", "names", "resolution", "mean", "std")}


@app.command
def data(*, name: str, output: Path, threads: int = 1, settings: DataSettings = DataSettings()) -> None:
    """Read the pictures of a dataset once and write them as one file, sorted by class."""
    from wmdd.stages.data import pack
    from wmdd.stages.data_summary import describe

    with job("data", output, [settings], {}, threads=threads, dataset=name) as this:
        with hdf5_writer.writing(output) as writer:
            writer.meta = this.meta | pack(settings, writer)
        describe(hdf5.load_meta(output), lambda line: print(line, file=sys.stderr))


@app.command
def manifest(file: Path) -> None:
    """Print the classes of any artifact: index, folder, readable name; and of a dataset how many pictures each has."""
    meta = load_model(file)[1] if file.suffix == ".safetensors" else hdf5.load_meta(file)
    if "classes" not in meta:
        raise WmddError(f"{file} has no classes; give a file of the stages data to images")
    counts = meta.get("counts", {})
    print("index\tfolder\tname" + "".join(f"\t{split}" for split in counts))
    for index, row in enumerate(zip(meta["classes"], meta["names"], *counts.values(), strict=True)):
        print(index, *row, sep="\t")


@app.command
def teacher(
    *,
    data: Path,
    output: Path,
    seed: int,
    processes: Processes = 1,
    threads: int = 1,
    settings: TeacherSettings = TeacherSettings(),
    engine: EngineSettings = ENGINE,
) -> None:
    """Train a teacher on the real training set, or take its weights from outside; stop when it is below the gate.

    Args:
        data: of the data stage.
        output: the network; its history is written beside it.
        seed: of weights, order and views.
        processes: that train together, one a GPU (or on the CPU, where no GPU is used). The result is that of one, up to
            rounding.
        threads: of the CPU, for each process.
        settings: network and optimisation.
        engine: device, precision.
    """
    from wmdd.datasets.loader import opened
    from wmdd.jobs.torchrun import launch
    from wmdd.networks.distributed import started, world
    from wmdd.stages.teacher import train

    meta = hdf5.load_meta(data)
    manifest = _manifest(meta)
    if settings.weights:
        return _adopt(data, output, seed, threads, settings, engine)
    if processes > 1 and not started():
        return launch(processes, engine, sys.argv[1:])
    with (
        world(engine.device) as together,
        job("teacher", output, [settings], {"data": meta["digest"]}, engine, threads, together, seed=seed) as this,
        opened(near := staged(data), "train", device=this.engine.device) as (pictures, _),
        opened(near, "val", device=this.engine.device) as (val_pictures, _),
    ):
        network, history = train(
            pictures, val_pictures, len(manifest["classes"]), manifest["mean"], manifest["std"], settings, seed,
            this.context,
        )  # fmt: skip
        this.figures["processes"] = together.size
        if together.main:
            _write_history(output.with_suffix(".csv"), history)
            last = history[-1]
            accuracy = {"top1": last["top1"], "top5": last["top5"]}
            about = manifest | {"accuracy": accuracy, "processes": together.size}
            model_files.save_model(output, network.state_dict(), this.meta | about)


def _adopt(
    data: Path, output: Path, seed: int, threads: int, settings: TeacherSettings, engine: EngineSettings
) -> None:
    """Write a teacher whose weights come from outside, once it has passed the same gate as a trained one."""
    from wmdd.datasets.loader import opened
    from wmdd.networks.foreign_teacher import pretrained
    from wmdd.networks.training import evaluate
    from wmdd.stages.teacher import gate

    about = hdf5.load_meta(data)
    found = pretrained(settings, about["classes"], about["resolution"])
    inputs = {"data": about["digest"], "weights": found.digest}
    manifest = _manifest(about) | found.about
    with (
        job("teacher", output, [found.settings], inputs, engine, threads, seed=seed) as this,
        opened(staged(data, make=False), "val", once=True) as (pictures, _),
    ):
        network = this.engine.place(found.network)
        accuracy = evaluate(network, pictures, manifest["mean"], manifest["std"], this.engine)
        gate(accuracy["top1"], settings.min_accuracy)
        _write_history(output.with_suffix(".csv"), [{"epoch": 0} | accuracy])
        model_files.save_model(output, network.state_dict(), this.meta | manifest | {"accuracy": accuracy})


@app.command
def features(
    *,
    data: Path,
    teacher: Path,
    output: Path,
    statistics: Path | None = None,
    block: str | None = None,
    threads: int = 1,
    settings: FeaturesSettings = FeaturesSettings(),
    engine: EngineSettings = ENGINE,
) -> None:
    """Pass the training set through the teacher once: features of every image, and BatchNorm statistics of each class.

    Args:
        data: of the data stage.
        teacher: of the teacher stage.
        output: of the features; with a block, of a part that `gather` joins with the others.
        statistics: of each class; not with a block.
        block: of classes, as in classes0-99; all of them by default.
        threads: of the CPU.
        settings: batch size, precision.
        engine: device.
    """
    from wmdd.artifacts.partial_output import Pieces
    from wmdd.datasets.loader import opened
    from wmdd.stages.feature_files import join_part, keep, taken_up
    from wmdd.stages.features import extract

    if (block is None) == (statistics is None):
        raise WmddError("give --statistics for the whole training set, or --block for a part of it")
    network, known = _teacher(teacher)
    meta = hdf5.load_meta(data)
    check_classes(known["classes"], meta["classes"], str(teacher), str(data))
    inputs = {"data": meta["digest"], "teacher": known["digest"]}
    identity: dict[str, Any] = {} if block is None else {"block": block}
    with (
        job("features", output, [settings], inputs, engine, threads, **identity) as this,
        opened(staged(data, make=block is None), "train", once=True) as (pictures, _),
    ):
        pieces = Pieces(output, this.checkpoint.key)
        start, moments = taken_up(pieces)
        this.checkpoint.begin(pieces.seconds)
        wanted = None if block is None else _block(block, known["classes"])
        begin, end = _rows(pictures.labels, wanted)
        for shard in extract(
            this.engine.place(network), pictures, known["mean"], known["std"], settings, this.engine,
            wanted, start, moments, this.checkpoint.due, this.context.progress,
        ):  # fmt: skip
            keep(pieces, shard, this.checkpoint.spent())
            this.checkpoint.save({}, shard.first + len(shard.labels) - begin, end - begin, "picture")
        about = this.meta | _manifest(known)
        if statistics is None:
            join_part(pieces.whole(), output, about, len(known["classes"]))
        else:
            _join(pieces.whole(), output, statistics, about)
        pieces.remove()


def _rows(labels: torch.Tensor, classes: range | None) -> tuple[int, int]:
    """Return where the rows of some classes (None: all) begin and end, of labels sorted by class."""
    if classes is None:
        return 0, len(labels)
    return int((labels < classes.start).sum()), int((labels < classes.stop).sum())


def _join(files: list[Path], output: Path, statistics: Path, meta: dict[str, Any]) -> None:
    from wmdd.stages.feature_files import join_features, join_statistics

    join_statistics(files, statistics, meta, len(meta["classes"]))
    join_features(files, output, meta)


@app.command
def gather(*, parts: Several, output: Path, statistics: Path, threads: int = 1) -> None:
    """Join the features that several jobs have made, each of a block of classes: the bits of one job that made them all."""
    from wmdd.stages.feature_files import check_parts

    known = [hdf5.load_meta(path) for path in parts]
    first = {name: value for name, value in known[0].items() if name not in ("digest", "identity", "widths")}
    for path, meta in zip(parts, known, strict=True):
        if (meta["inputs"], meta["settings"]) != (first["inputs"], first["settings"]):
            raise WmddError(f"{path} is of other data, another teacher or other settings than {parts[0]}; make it anew")
    check_parts(parts, len(first["classes"]))
    with job("gather", output, [], {str(i): meta["digest"] for i, meta in enumerate(known)}, threads=threads):
        _join(parts, output, statistics, first | {"identity": {}})


@app.command
def barycenter(
    *,
    features: Path,
    k: Ipc,
    output: Path | None = None,
    block: str | None = None,
    seed: int = 0,
    dataset: str | None = None,
    labels: str | None = None,
    teacher: Path | None = None,
    threads: int = 1,
    settings: BarycenterSettings = BarycenterSettings(),
) -> None:
    """Compute the Wasserstein barycenter of each class with K atoms, and print how good they are.

    Args:
        features: features.h5 of the features stage, or any HDF5 or .npy file of points [N, D].
        k: atoms; images per class, in the workflow.
        output: HDF5 file of the atoms; without it only the table is printed.
        block: of classes, as in classes0-4; all of them by default.
        seed: of the starts.
        dataset: name of the points in an HDF5 file of your own, where it is not `features` and not the only 2-D one.
        labels: name of their classes there, if it is not `labels`; without labels all points are one measure.
        teacher: of the teacher stage, where only a share of the images counts (`confident`).
        threads: of the CPU.
        settings: of the solver.
    """
    from wmdd.stages import point_clouds
    from wmdd.stages.barycenter import barycenters, table

    settings.check()
    with point_clouds.reading(features, dataset, labels) as source:
        cloud, asked = _counted(source.cloud, source.meta, features, teacher, settings.confident)
        classes = source.meta["classes"]
        block = block or f"classes0-{len(classes) - 1}"
        wanted = _block(block, classes)
        if output is None:
            torch.set_num_threads(threads)
            found = barycenters(cloud, wanted, k, settings, seed, progress)
        else:
            inputs = {"features": source.digest()} | asked
            with job("barycenter", output, [settings], inputs, threads=threads, block=block, k=k, seed=seed) as this:
                found = barycenters(cloud, wanted, k, settings, seed, this.context.progress)
                _save_barycenters(this, found, wanted, source)
        print(table([source.cloud.name(label) for label in wanted], [quality for _, quality in found]))


def _counted(
    cloud: "point_clouds.Cloud", meta: dict[str, Any], path: Path, teacher: Path | None, share: float
) -> "tuple[point_clouds.Cloud, dict[str, str]]":
    """Return the points that count, with the digest of the teacher that says which, if not all do."""
    from wmdd.stages.point_clouds import Confident

    if share >= 1:
        return cloud, {}
    if teacher is None:
        raise WmddError(f"with confident {share:g} give the --teacher whose features {path} has, or set confident: 1")
    state, known = load_model(teacher)
    if meta.get("inputs", {}).get("teacher") != known["digest"]:
        raise WmddError(f"{path} has no features of {teacher}; run the features stage again")
    return Confident(cloud, state["head.weight"], state["head.bias"], share), {"teacher": known["digest"]}


def _save_barycenters(
    this: Job, found: "list[tuple[Barycenter, Quality]]", labels: range, source: "point_clouds.Source"
) -> None:
    """Write atoms [C, K, D], weights [C, K] and their quality, each a column [C]; the seconds go to the cost."""
    from wmdd.stages.barycenter import columns

    quality = columns([q for _, q in found])
    arrays = {
        "labels": np.array(labels),
        "atoms": torch.stack([b.atoms for b, _ in found]).numpy(),
        "weights": torch.stack([b.weights for b, _ in found]).numpy(),
    }
    origin = _manifest(source.meta) if "digest" in source.meta else source.meta | {"file": source.path.name}
    save(this.output, arrays | {f"quality/{name}": values for name, values in quality.items()}, this.meta | origin)
    this.figures["seconds_per_class"] = [round(q.seconds, 4) for _, q in found]
    this.tracker.log({f"mean/{name}": float(values.mean()) for name, values in quality.items()})


@app.command
def recover(
    *,
    teacher: Path,
    class_statistics: Path,
    output: Path,
    block: str,
    ipc: Ipc,
    seed: int,
    barycenter: Path | None = None,
    start: Path | None = None,
    threads: int = 1,
    settings: RecoverSettings = RecoverSettings(),
    engine: EngineSettings = ENGINE,
) -> None:
    """Optimise the images of a block of classes until their features are the barycenter's atoms.

    Args:
        teacher: of the teacher stage.
        class_statistics: of the features stage.
        output: of the images.
        block: of classes, as in classes0-4.
        ipc: images per class.
        seed: of the distillation.
        barycenter: whose atoms are to be matched, where the loss has such a term.
        start: a distilled set to begin with, where `init` names a method.
        threads: of the CPU.
        settings: the loss and its optimisation.
        engine: device, precision.
    """
    from wmdd.stages.recover import recover as run

    network, known = _teacher(teacher)
    meta = hdf5.load_meta(class_statistics)
    if "layers" not in meta:
        raise WmddError(f"{class_statistics} holds no BatchNorm statistics; give statistics.h5 of the features stage")
    check_classes(known["classes"], meta["classes"], str(teacher), str(class_statistics))
    if meta["inputs"]["teacher"] != known["digest"]:
        raise WmddError(f"{class_statistics} is of another teacher than {teacher}; run the features stage again")
    wanted = _block(block, known["classes"])
    moments, labels = _statistics(class_statistics, wanted), torch.tensor(wanted)
    atoms, weights = None, torch.full((len(labels), ipc), 1 / ipc)
    inputs = {"teacher": known["digest"], "statistics": meta["digest"]}
    if barycenter is not None:
        arrays, about = load(barycenter, "labels", "atoms", "weights")
        check_classes(known["classes"], about["classes"], str(teacher), str(barycenter))
        if arrays["labels"].tolist() != labels.tolist() or arrays["atoms"].shape[1] != ipc:
            raise WmddError(
                f"{barycenter} is of other classes or images per class than {block} at ipc {ipc}; rebuild it"
            )
        if arrays["atoms"].shape[2] != network.head.in_features:
            raise WmddError(f"{barycenter} is of the features of another teacher than {teacher}; rebuild it")
        atoms, weights = torch.from_numpy(arrays["atoms"]), torch.from_numpy(arrays["weights"])
        inputs["barycenter"] = about["digest"]
    begin = None
    if (start is None) != (settings.init == "noise"):
        raise WmddError(f"recover with init {settings.init} takes {'no ' if start else ''}--start; make them agree")
    if start is not None:
        begin, inputs["start"] = _start(start, known, wanted, ipc)
    with job("recover", output, [settings], inputs, engine, threads, block=block, ipc=ipc, seed=seed) as this:
        images = run(
            network, labels, atoms, weights, moments, known["resolution"], known["mean"], known["std"],
            settings, seed, this.context, begin,
        )  # fmt: skip
        _save_images(this, images, weights, labels.tolist(), known)


def _start(path: Path, known: dict[str, Any], wanted: range, ipc: int) -> tuple[torch.Tensor, str]:
    """Read the images [C, K, 3, R, R] of some classes that recover begins with, and the digest of their file."""
    with hdf5.reading(path, "images") as file:
        about = hdf5.meta_of(file)
        check_classes(known["classes"], about["classes"], "the teacher", str(path))
        if file["images"].shape[1] != ipc or about["resolution"] != known["resolution"]:
            raise WmddError(
                f"{path} has {file['images'].shape[1]} images per class of {about['resolution']} px, but {ipc} of "
                f"{known['resolution']} px are to be recovered; rebuild it"
            )
        return torch.from_numpy(file["images"][wanted.start : wanted.stop]), str(about["digest"])


def _save_images(
    this: Job,
    images: torch.Tensor,
    weights: torch.Tensor,
    labels: list[int],
    meta: dict[str, Any],
    learned: Mapping[str, np.ndarray] = MappingProxyType({}),
    about: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Write distilled images [C, K, 3, H, W] uint8 with their weights [C, K], and what else a method learned; show some."""
    arrays = {"images": images.numpy(), "weights": weights.float().numpy(), "labels": np.array(labels), **learned}
    save(this.output, arrays, this.meta | _manifest(meta) | dict(about), chunked=("images",))
    shown = images[:SHOWN, 0].permute(0, 2, 3, 1).numpy()
    this.tracker.log_images("images", shown, [meta["names"][label] for label in labels[:SHOWN]])


@app.command
def images(*, blocks: Several, output: Path, threads: int = 1) -> None:
    """Join the blocks of a distilled set into one file, every class once and in order; one block is in memory at a time."""
    parts = [load(path, "weights", "labels") for path in blocks]
    first = parts[0][1]
    with job("images", output, [], {str(i): m["digest"] for i, (_, m) in enumerate(parts)}, threads=threads) as this:
        for path, (_, meta) in zip(blocks, parts, strict=True):
            check_classes(first["classes"], meta["classes"], str(blocks[0]), str(path))
        weights, labels = (np.concatenate([arrays[name] for arrays, _ in parts]) for name in ("weights", "labels"))
        if labels.tolist() != list(range(len(first["classes"]))):
            raise WmddError(f"the blocks of {output} hold the classes {labels.tolist()}, not each class once in order")
        made = {first["stage"]: {name: first[name] for name in ("settings", "identity", "code")}}
        with hdf5_writer.writing(output) as writer:
            writer.meta = this.meta | made | _manifest(first)
            if "student_lr" in first:
                writer.meta["student_lr"] = first["student_lr"]
            for path in blocks:
                with hdf5.reading(path, "images") as file:
                    writer.append("images", file["images"][()], compressed=True)
                    if LEARNED in file:
                        writer.append(LEARNED, file[LEARNED][()])
            writer.put("labels", labels)
            writer.put("weights", weights)


@app.command
def select(
    *,
    data: Path,
    output: Path,
    ipc: Ipc,
    seed: int,
    features: Path | None = None,
    teacher: Path | None = None,
    threads: int = 1,
    settings: SelectSettings = SelectSettings(),
    solver: BarycenterSettings = BarycenterSettings(),
    engine: EngineSettings = ENGINE,
) -> None:
    """Choose real images, or parts of them, as the distilled set.

    Args:
        data: of the data stage.
        output: of the images.
        ipc: images per class.
        seed: of the distillation.
        features: of the features stage, for the strategy kmeans-medoid.
        teacher: of the teacher stage, for the strategy patches, and where only a share of the images counts (`confident`).
        threads: of the CPU.
        settings: the strategy.
        solver: of the barycenter behind kmeans-medoid.
        engine: device, precision, for the strategy patches.
    """
    from wmdd.datasets.loader import opened, read
    from wmdd.stages.point_clouds import Cloud
    from wmdd.stages.select import masses, mosaic, patches
    from wmdd.stages.select import select as run

    asks, measures = settings.strategy == "patches", settings.strategy not in ("random", "patches")
    sifts = not asks and solver.confident < 1
    for needed, given, name in (asks or sifts, teacher, "teacher"), (measures or sifts, features, "features"):
        if needed and given is None:
            share = f" and confident {solver.confident:g}" if sifts else ""
            raise WmddError(f"select with strategy {settings.strategy}{share} needs --{name}")
    with ExitStack() as files:
        pictures, meta = files.enter_context(opened(staged(data, make=False), "train", once=True))
        inputs, cloud, network = {"data": meta["digest"]}, None, None
        if asks and teacher is not None:
            network, known = _teacher(teacher)
            check_classes(known["classes"], meta["classes"], str(teacher), str(data))
            inputs["teacher"] = known["digest"]
        if features is not None:
            found = files.enter_context(hdf5.reading(features, "features", "labels"))
            about = hdf5.meta_of(found)
            if about["inputs"]["data"] != meta["digest"]:
                raise WmddError(f"{features} is of other data than {data}; run the features stage again")
            inputs["features"] = about["digest"]
            cloud = Cloud(found["features"], found["labels"][()], about["names"])
            cloud, asked = _counted(cloud, about, features, teacher, solver.confident)
            inputs |= asked
        this = files.enter_context(
            job(
                "select", output, [settings, solver], inputs, None if network is None else engine, threads,
                ipc=ipc, seed=seed,
            )
        )  # fmt: skip
        positions, weights = run(pictures.labels, meta["classes"], ipc, cloud, settings, solver, seed)
        shown, chosen, boxes = [], [], []
        for label, mine in enumerate(this.context.progress(positions, "selecting", len(positions), 0, "class")):
            found_here = read(pictures, mine)
            if network is not None:
                count = ipc * settings.tiles**2
                this.engine.place(network).eval()
                best = patches(
                    network, found_here, label, count, known["mean"], known["std"], settings, seed, this.engine
                )
                mine, found_here = mine[best.images], best.pixels
                boxes.append(best.boxes.tolist())
            chosen.append(mine.tolist())
            shown.append(mosaic(found_here, settings.tiles))
        if boxes:
            weights, this.meta["boxes"] = torch.full((len(boxes), ipc), 1 / ipc), boxes
        else:
            weights = masses(weights, settings.tiles)
        this.meta["positions"] = chosen
        _save_images(this, torch.stack(shown), weights, list(range(len(meta["classes"]))), meta)


@app.command
def relabel(
    *,
    images: Path,
    teacher: Path,
    output: Path,
    seed: int,
    threads: int = 1,
    settings: RelabelSettings = RelabelSettings(),
    engine: EngineSettings = ENGINE,
) -> None:
    """Label random views of the distilled images by the teacher; one epoch of labels is in memory at a time."""
    from wmdd.artifacts.partial_output import Pieces, gathered
    from wmdd.stages.labels import append, rows_of
    from wmdd.stages.relabel import relabel as run
    from wmdd.stages.relabel import seeds_of

    if settings.store == "online":
        raise WmddError("the store online keeps no labels; give the teacher to the student, or set --store stored")
    arrays, meta = load(images, "images")
    network, known = _teacher(teacher)
    check_classes(known["classes"], meta["classes"], str(teacher), str(images))
    inputs = {"images": meta["digest"], "teacher": known["digest"]}
    with job("relabel", output, [settings], inputs, engine, threads, seed=seed) as this:
        seeds = seeds_of(seed, settings.labelled)
        pixels = torch.from_numpy(arrays["images"]).flatten(0, 1)
        pieces = Pieces(output, this.checkpoint.key)
        done = pieces.restore()
        this.checkpoint.begin(pieces.seconds)
        logits = run(
            network, pixels, known["mean"], known["std"], seeds, settings, settings.batch_size, this.context, done
        )
        for rows in gathered((rows_of(part, settings) for part in logits), this.checkpoint.due):
            count = len(next(iter(rows.values())))
            pieces.add(done, count, rows, this.checkpoint.spent())
            done += count
            this.checkpoint.save({}, done, len(seeds), "epoch")
        with hdf5_writer.writing(output) as writer:
            writer.meta = this.meta | _manifest(known) | {"teacher_accuracy": known["accuracy"]}
            for rows in pieces.rows():
                append(writer, rows)
            writer.put("seeds", np.array(seeds))
        pieces.remove()
        size = output.stat().st_size / len(pixels)
        this.figures["bytes_per_image"] = round(size)
        this.figures["bytes_per_image_and_epoch"] = round(size / settings.epochs, 2)


@app.command
def student(
    *,
    images: Path,
    data: Path,
    output: Several,
    seed: int,
    run: Runs,
    soft_labels: Path | None = None,
    teacher: Path | None = None,
    threads: int = 1,
    settings: StudentSettings = StudentSettings(),
    augmentation: LabelSettings = LABELS,
    engine: EngineSettings = ENGINE,
) -> None:
    """Train students from scratch on the distilled images, side by side, and score them on the real validation set.

    Args:
        images: the distilled set.
        data: of the data stage.
        output: the scores of each run; the history is written beside it.
        seed: of the distillation.
        run: numbers that tell students of one distilled set apart.
        soft_labels: of the relabel stage, for the stores that it keeps.
        teacher: of the teacher stage, for the store online.
        threads: of the CPU.
        settings: network and optimisation.
        augmentation: the views and the store of their soft labels, as the relabel stage has them.
        engine: device, precision.
    """
    from wmdd.datasets.loader import opened
    from wmdd.networks import whitening
    from wmdd.stages.student import train, weighted

    if len(run) != len(output) or len(set(run)) < len(run):
        raise WmddError(f"the runs {run} need one --output each, and none twice; {len(output)} are given")
    arrays, meta = load(images, "images", "weights")
    about = hdf5.load_meta(data)
    check_classes(about["classes"], meta["classes"], str(data), str(images))
    inputs = {"images": meta["digest"], "data": about["digest"]}
    if settings.learned_lr and "student_lr" in meta:
        settings = settings.model_copy(update={"lr": meta["student_lr"]})
    with ExitStack() as files:
        labels, taught = files.enter_context(_labels(soft_labels, teacher, seed, settings, augmentation, meta, about))
        inputs |= taught
        identity: dict[str, Any] = {"seed": seed, "run": run[0] if len(run) == 1 else run}
        this = files.enter_context(
            job("student", output[0], [settings, augmentation], inputs, engine, threads, **identity)
        )
        val_pictures, _ = files.enter_context(opened(staged(data, make=False), "val", device=this.engine.device))
        count, k = arrays["weights"].shape
        white = None
        if settings.whiten:
            pictures, _ = files.enter_context(opened(staged(data, make=False), "train", once=True))
            white = whitening.fit(pictures, about["mean"], about["std"])
        found = train(
            torch.from_numpy(arrays["images"]).flatten(0, 1), _own(images, count, k),
            weighted(torch.from_numpy(arrays["weights"]), settings.weights).flatten(), labels, val_pictures, count,
            about["mean"], about["std"],
            settings, augmentation, seed, run, this.context, white,
        )  # fmt: skip
        this.figures["students"] = len(run)
        for place, (path, (_, history)) in enumerate(zip(output, found, strict=True)):
            of = f"{place}/" if len(run) > 1 else ""  # as the training logs them
            _write_result(this, path, history, {"seed": seed, "run": run[place]}, meta["classes"], of)


def _own(path: Path, classes: int, k: int) -> torch.Tensor:
    """Return the classes of distilled images [C K], or the labels [C K, C] that their method learned."""
    with hdf5.reading(path, "images") as file:
        own = learned_labels(path, file)
    if own is not None:
        return torch.from_numpy(own)
    return torch.arange(classes).repeat_interleave(k)


def _write_result(
    this: Job, path: Path, history: list[dict[str, float]], identity: dict[str, int], classes: list[str], of: str
) -> None:
    """Write the scores of a student and, beside them, its history; `of` tells it apart on the tracker."""
    scored = [entry for entry in history if "top1" in entry]
    best = max(scored, key=lambda entry: entry["top1"])
    last = {"top1": scored[-1]["top1"], "top5": scored[-1]["top5"]}
    result = last | {"best_top1": best["top1"], "best_epoch": best["epoch"]}
    this.tracker.log({f"{of}final/{name}": value for name, value in result.items()})
    _write_history(path.with_suffix(".csv"), history)
    atomic_files.write_json(path, this.meta | {"identity": identity, "result": result, "classes": classes})


@contextmanager
def _labels(
    path: Path | None,
    teacher: Path | None,
    seed: int,
    settings: StudentSettings,
    shared: LabelSettings,
    images: dict[str, Any],
    data: dict[str, Any],
) -> "Iterator[tuple[Labels, dict[str, str]]]":
    """Open what a student learns from, with the digests of the files that it comes from."""
    from wmdd.stages import labels

    if settings.labels == "hard":
        yield labels.hard(seed), {}
    elif shared.store == "online":
        if path is not None:
            raise WmddError(
                f"the store online takes no labels but {path} is given; drop it, or set --store to its store"
            )
        if teacher is None:
            raise WmddError("a student with the store online needs --teacher; give it, or set --store or --labels hard")
        network, known = _teacher(teacher)
        check_classes(images["classes"], known["classes"], "the distilled set", str(teacher))
        yield labels.online(seed, _taking(network, known, data)), {"teacher": known["digest"]}
    elif path is None:
        raise WmddError("a student with soft labels needs --soft-labels; run the relabel stage, or set --labels hard")
    else:
        with labels.opened(path) as (found, meta):
            _check_labels(path, meta, settings, shared, images)
            yield found, {"labels": meta["digest"]}


def _taking(network: Network, known: dict[str, Any], data: dict[str, Any]) -> torch.nn.Module:
    """Return a teacher that takes pictures in the normalisation of the data."""
    from wmdd.stages.labels import Renormalised

    if (known["mean"], known["std"]) == (data["mean"], data["std"]):
        return network
    return Renormalised(network, known["mean"], known["std"], data["mean"], data["std"])


def _check_labels(
    path: Path, meta: dict[str, Any], settings: StudentSettings, shared: LabelSettings, images: dict[str, Any]
) -> None:
    """Refuse labels of other images or views, of another store, or pruned for another temperature."""
    if meta["inputs"]["images"] != images["digest"]:
        raise WmddError(f"{path} labels other images than those given; run the relabel stage again")
    wanted = shared.model_dump(mode="json")
    if shared.store == "pruned":
        wanted["temperature"] = settings.temperature
    for name, value in wanted.items():
        made = meta["settings"].get(name)
        if made != value:
            raise WmddError(f"{path} was made with {name} {made}, the student asks for {value}; make them agree")


def _write_history(path: Path, history: list[dict[str, float]]) -> None:
    import pandas as pd

    atomic_files.write_text(path, pd.DataFrame(history).to_csv(index=False))


@app.command
def grid(*, images: Path, output: Path, per_class: int = 10, rows: int = 20, threads: int = 1) -> None:
    """Draw the distilled images, a row a class; of more classes than `rows`, some from first to last."""
    from wmdd.report.grid import draw

    with hdf5.reading(images, "images") as file:
        meta = hdf5.meta_of(file)
        classes = np.unique(np.linspace(0, len(meta["classes"]) - 1, rows).round().astype(int))
        shown = file["images"][classes, :per_class]
    with atomic_files.atomic(output) as part:
        draw(shown, [meta["names"][label] for label in classes], part, str(images.parent))


@app.command
def report(
    *,
    students: Several,
    teachers: Several,
    costs: Several,
    table: Path,
    csv: Path,
    cost_table: Path,
    barycenter_table: Path,
    barycenter_csv: Path,
    dataset_table: Path,
    datasets: Several,
    runs: Path,
    barycenters: Several | None = None,
    threads: int = 1,
) -> None:
    """Gather all runs into tables: mean, standard deviation and seeds of each cell, and its gain over random real images."""
    from wmdd.report import report as build
    from wmdd.report import results
    from wmdd.report.page.scores import results as results_table
    from wmdd.report.render import render

    scores = [(path, read_json(path)) for path in students]
    families = results.families_beside(students)
    known = {str(path): load_model(path)[1] for path in teachers}
    spent = [(path, read_json(path)) for path in costs]
    summary = results.summary(results.rows(scores, families))
    solved = build.barycenter_summary([(path, *_quality(path)) for path in barycenters or []])
    atomic_files.write_text(csv, render(results_table(summary), "csv"))
    atomic_files.write_text(cost_table, build.cost_markdown(results.jobs(spent)))
    atomic_files.write_text(barycenter_csv, solved.to_csv(index=False))
    atomic_files.write_text(barycenter_table, build.barycenter_markdown(solved))
    about = [(path.stem, hdf5.load_meta(path)) for path in datasets]
    atomic_files.write_text(dataset_table, build.dataset_markdown(about))
    atomic_files.write_json(runs, results.raw(scores, families, known, spent))
    held_out = [name for name, meta in about if meta.get("settings", {}).get("held_out")]
    text = build.markdown(summary, known, held_out)
    atomic_files.write_text(table, text)
    print(text)


def _quality(path: Path) -> tuple[dict[str, np.ndarray], list[float]]:
    """Read how good the barycenters of a block are, and the seconds of each from the cost beside it."""
    with hdf5.reading(path) as file:
        if "quality" not in file:
            raise WmddError(f"{path} lacks the quality of its barycenters; delete it and run again to rebuild it")
        quality = {name: values[()] for name, values in file["quality"].items()}
    return quality, read_json(cost_path(path)).get("seconds_per_class", [float("nan")])


@app.command
def config(file: Path, *, stage: str | None = None) -> None:
    """Print the merged, resolved settings of every run of an experiment file, as YAML."""
    import yaml

    from wmdd.report.show_settings import resolved
    from wmdd.workflow.experiment import Experiment

    print(yaml.safe_dump(resolved(Experiment.read(file), stage), sort_keys=False, width=120), end="")


@app.command
def schema() -> None:
    """Print the JSON schema of experiment files, for editors that complete and check YAML."""
    from wmdd.workflow.experiment import schema as build

    print(json.dumps(build(), indent=1))


@app.command
def plan(
    *,
    configfile: Path,
    device: str | None = None,
    rates: Path | None = None,
    parallel: Processes = 1,
    detail: bool = False,
) -> None:
    """Print what an experiment will cost before it runs: jobs, FLOP, time, GPU-hours, bytes; and what its jobs ask for.

    Args:
        configfile: the experiment file.
        device: cpu-core, cpu-core-fp32, a100, h100, h200 (wmdd/cost/rates.yaml); a CPU core in the file's precision by default.
        rates: of a machine of your own in place of a device, JSON (docs/cost.md).
        parallel: devices that work at once.
        detail: a row for each method and number of images per class.
    """
    from wmdd.cost import rates as known
    from wmdd.cost.plan import plan as build
    from wmdd.cost.plan import render
    from wmdd.cost.resources import Requests
    from wmdd.cost.resources import render as sizes
    from wmdd.cost.scene import Shapes
    from wmdd.workflow.dag import jobs
    from wmdd.workflow.experiment import Experiment

    if rates is not None and device is not None:
        raise WmddError("give --device or --rates, not both")
    experiment = Experiment.read(configfile)
    usual = "cpu-core-fp32" if experiment.file.engine.precision == "fp32" else "cpu-core"
    on = known.device(device or usual) if rates is None else known.read(rates)
    planned = build(jobs(configfile, forceall=True), Shapes(experiment), on, detail)
    print(render(planned, configfile.name, parallel), "", sizes(Requests(experiment), planned), sep="\n")


@app.command
def status(*, configfile: Path = Path("config/config.yaml"), detail: bool = False) -> None:
    """Print what is done, runs, waits, has failed or stopped, from the current folder; also while the workflow runs.

    Args:
        configfile: the experiment file.
        detail: all jobs that run or ended early, and why those out of date are.
    """
    from wmdd.report.status import holder, look, markers, render
    from wmdd.workflow.dag import jobs
    from wmdd.workflow.experiment import Experiment

    Experiment.read(configfile)
    at_work = holder()
    print(render(look(jobs(configfile), markers(), bool(at_work)), configfile.name, at_work, detail))
