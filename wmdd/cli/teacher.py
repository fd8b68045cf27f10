"""The commands of teachers: training one, or taking one from outside, and passing the training set through it."""

import sys
from pathlib import Path
from typing import Any

from wmdd.artifacts import hdf5
from wmdd.artifacts.hdf5 import check_classes
from wmdd.artifacts.model_files import save_model
from wmdd.artifacts.partial_output import Pieces
from wmdd.base.errors import WmddError
from wmdd.cli.arguments import ENGINE, Data, Paths, Positive, Teacher, Threads, command
from wmdd.cli.readers import block_classes, data_facts, numbered
from wmdd.cli.tensor_readers import both_splits, class_rows, read_teacher
from wmdd.cli.writers import save_history
from wmdd.datasets.loader import opened
from wmdd.jobs.job import job
from wmdd.jobs.node_cache import staged
from wmdd.jobs.torchrun import launch
from wmdd.networks.distributed import started, world
from wmdd.networks.foreign_teacher import pretrained
from wmdd.networks.normalisation import Normalisation
from wmdd.networks.training import evaluate
from wmdd.settings.engine import EngineSettings
from wmdd.settings.teacher import FeaturesSettings, TeacherSettings
from wmdd.stages.feature_files import check_parts, join_features, join_part, join_statistics, keep, taken_up
from wmdd.stages.features import extract
from wmdd.stages.teacher import gate, train


@command
def teacher(
    *,
    data: Data,
    output: Path,
    seed: int,
    processes: Positive = 1,
    threads: Threads = 1,
    settings: TeacherSettings = TeacherSettings(),
    engine: EngineSettings = ENGINE,
) -> None:
    """Train a teacher on the real training set, or take its weights from outside; stop when it is below the gate.

    Args:
        output: the network; its history is written beside it.
        seed: of weights, order and views.
        processes: that train together, one a GPU (or on the CPU, where no GPU is used). The result is that of one, up to
            rounding.
    """
    data_meta = hdf5.load_meta(data)
    facts = data_facts(data_meta)
    if settings.weights:
        return _adopt(data, output, seed, threads, settings, engine)
    if processes > 1 and not started():
        return launch(processes, engine, sys.argv[1:])
    inputs = {"data": data_meta}
    with (
        world(engine.device) as together,
        job("teacher", output, [settings], inputs, engine, threads, together, seed=seed) as stage_job,
        both_splits(data, stage_job.engine) as (pictures, val_pictures),
    ):
        network, history = train(
            pictures, val_pictures, len(facts["classes"]), Normalisation.of(facts), settings, seed, stage_job.context
        )
        stage_job.cost["processes"] = together.size
        if together.main:
            save_history(output, history)
            accuracy = {name: history[-1][name] for name in ("top1", "top5")}
            facts |= {"accuracy": accuracy, "processes": together.size}
            save_model(output, network.state_dict(), stage_job.meta | facts)


def _adopt(
    data: Path, output: Path, seed: int, threads: int, settings: TeacherSettings, engine: EngineSettings
) -> None:
    """Write a teacher whose weights come from outside, once it has passed the same gate as a trained one."""
    data_meta = hdf5.load_meta(data)
    foreign = pretrained(settings, data_meta["classes"], data_meta["resolution"])
    inputs: dict[str, hdf5.Meta | str] = {"data": data_meta, "weights": foreign.digest}
    facts = data_facts(data_meta) | foreign.about
    with (
        job("teacher", output, [foreign.settings], inputs, engine, threads, seed=seed) as stage_job,
        opened(staged(data, make=False), "val", once=True) as (pictures, _),
    ):
        network = stage_job.engine.place(foreign.network)
        accuracy = evaluate(network, pictures, Normalisation.of(facts), stage_job.engine)
        gate(accuracy["top1"], settings.min_accuracy)
        save_history(output, [{"epoch": 0} | accuracy])
        save_model(output, network.state_dict(), stage_job.meta | facts | {"accuracy": accuracy})


@command
def features(
    *,
    data: Data,
    teacher: Teacher,
    output: Path,
    statistics: Path | None = None,
    block: str | None = None,
    threads: Threads = 1,
    settings: FeaturesSettings = FeaturesSettings(),
    engine: EngineSettings = ENGINE,
) -> None:
    """Pass the training set through the teacher once: features of every image, and BatchNorm statistics of each class.

    Args:
        output: of the features; with a block, of a part that `gather` joins with the others.
        statistics: of each class; not with a block.
        block: of classes, as in classes0-99; all of them by default.
    """
    if (block is None) == (statistics is None):
        raise WmddError("give --statistics for the whole training set, or --block for a part of it")
    network, teacher_meta = read_teacher(teacher)
    data_meta = hdf5.load_meta(data)
    check_classes(teacher_meta["classes"], data_meta["classes"], str(teacher), str(data))
    inputs = {"data": data_meta, "teacher": teacher_meta}
    identity: dict[str, Any] = {} if block is None else {"block": block}
    with (
        job("features", output, [settings], inputs, engine, threads, **identity) as stage_job,
        opened(staged(data, make=block is None), "train", once=True) as (pictures, _),
    ):
        checkpoint = stage_job.checkpoint
        pieces = Pieces(output, checkpoint.key)
        start, moments = taken_up(pieces)
        checkpoint.begin(pieces.seconds)
        classes = None if block is None else block_classes(block, teacher_meta["classes"])
        first, end = class_rows(pictures.labels, classes)
        for shard in extract(
            stage_job.engine.place(network), pictures, Normalisation.of(teacher_meta), settings, stage_job.engine, classes,
            start, moments, checkpoint.due, stage_job.context.progress,
        ):  # fmt: skip
            keep(pieces, shard, checkpoint.spent())
            checkpoint.save({}, shard.first + len(shard.labels) - first, end - first, "picture")
        meta = stage_job.meta | data_facts(teacher_meta)
        if statistics is None:
            join_part(pieces.whole(), output, meta, len(teacher_meta["classes"]))
        else:
            _join(pieces.whole(), output, statistics, meta)
        pieces.remove()


def _join(files: list[Path], output: Path, statistics: Path, meta: dict[str, Any]) -> None:
    join_statistics(files, statistics, meta, len(meta["classes"]))
    join_features(files, output, meta)


@command
def gather(*, parts: Paths, output: Path, statistics: Path, threads: Threads = 1) -> None:
    """Join the features that several jobs have made, each of a block of classes: the bits of one job that made them all."""
    metas = [hdf5.load_meta(path) for path in parts]
    shared = {name: value for name, value in metas[0].items() if name not in ("digest", "identity", "widths")}
    for path, meta in zip(parts, metas, strict=True):
        if (meta["inputs"], meta["settings"]) != (shared["inputs"], shared["settings"]):
            raise WmddError(f"{path} is of other data, another teacher or other settings than {parts[0]}; make it anew")
    check_parts(parts, len(shared["classes"]))
    with job("gather", output, [], numbered(metas), threads=threads):
        _join(parts, output, statistics, shared | {"identity": {}})
