"""The commands of the protocol: labels of random views of a distilled set, and the students that learn from it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from cyclopts import Parameter

from wmdd.artifacts import atomic_files, hdf5, hdf5_writer
from wmdd.artifacts.hdf5 import check_classes, checked_weights, learned_labels, load
from wmdd.artifacts.partial_output import Pieces, gathered
from wmdd.base.errors import WmddError
from wmdd.cli.arguments import ENGINE, Data, Paths, Seed, Threads, command
from wmdd.cli.readers import data_facts, images_per_epoch
from wmdd.cli.tensor_readers import read_teacher
from wmdd.cli.writers import save_history
from wmdd.datasets.loader import opened
from wmdd.jobs.job import StageJob, job
from wmdd.jobs.node_cache import staged
from wmdd.networks import whitening
from wmdd.networks.normalisation import Normalisation
from wmdd.settings.engine import EngineSettings
from wmdd.settings.student import LabelSettings, RelabelSettings, StudentSettings
from wmdd.stages import labels
from wmdd.stages.relabel import relabel as logits_of_views
from wmdd.stages.relabel import seeds_of
from wmdd.stages.shown import Shown
from wmdd.stages.student import train, weighted

LABELS = LabelSettings()
CONFUSED = 100  # classes at most of which a result says what each is taken for
ADDED = ("patches", "teachers", "statistics", "statistics_batch")  # settings that older files of labels do not name


@command
def relabel(
    *,
    images: Path,
    teacher: Paths,
    output: Path,
    seed: Seed,
    threads: Threads = 1,
    settings: RelabelSettings = RelabelSettings(),
    engine: EngineSettings = ENGINE,
) -> None:
    """Label random views of the distilled images by their teachers; one epoch of labels is in memory at a time.

    Args:
        images: the distilled set.
        teacher: of the teacher stage; behind the distillation's own, those that --teachers names.
    """
    if settings.store == "online":
        raise WmddError("the store online keeps no labels; give the teacher to the student, or set --store stored")
    arrays, meta = load(images, "images")
    network, teachers = _read_teachers(teacher, settings, meta["classes"], str(images), None)
    teacher_meta = teachers["teacher"]
    inputs = {"images": meta} | teachers
    with job("relabel", output, [settings], inputs, engine, threads, seed=seed) as stage_job:
        checkpoint, seeds = stage_job.checkpoint, seeds_of(seed, settings.labelled)
        pixels, shown = torch.from_numpy(arrays["images"]).flatten(0, 1), _shown(meta, arrays["images"])
        pieces = Pieces(output, checkpoint.key)
        done = pieces.restore()
        checkpoint.begin(pieces.seconds)
        logits = logits_of_views(
            network, pixels, Normalisation.of(teacher_meta), seeds, settings, settings.batch_size, stage_job.context, done,
            shown, _statistics_batch(settings),
        )  # fmt: skip
        for rows in gathered((labels.rows_of(part, settings) for part in logits), checkpoint.due):
            count = len(next(iter(rows.values())))
            pieces.add(done, count, rows, checkpoint.spent())
            done += count
            checkpoint.save({}, done, len(seeds), "epoch")
        with hdf5_writer.writing(output) as writer:
            writer.meta = stage_job.meta | data_facts(teacher_meta) | {"teacher_accuracy": teacher_meta["accuracy"]}
            for rows in pieces.rows():
                labels.append(writer, rows)
            writer.put("seeds", np.array(seeds))
        pieces.remove()
        bytes_per_image = output.stat().st_size / shown.count
        stage_job.cost["bytes_per_image"] = round(bytes_per_image)
        stage_job.cost["bytes_per_image_and_epoch"] = round(bytes_per_image / settings.epochs, 2)


@command
def student(
    *,
    images: Path,
    data: Data,
    output: Paths,
    seed: Seed,
    run: Annotated[list[int], Parameter(consume_multiple=True)],
    soft_labels: Path | None = None,
    teacher: Paths | None = None,
    threads: Threads = 1,
    settings: StudentSettings = StudentSettings(),
    augmentation: LabelSettings = LABELS,
    engine: EngineSettings = ENGINE,
) -> None:
    """Train students from scratch on the distilled images, side by side, and score them on the real validation set.

    Args:
        images: the distilled set.
        output: the scores of each run; the history is written beside it.
        run: numbers that tell students of one distilled set apart.
        soft_labels: of the relabel stage, for the stores that it keeps.
        teacher: of the teacher stage, for the store online; behind the distillation's own, those that --teachers names.
    """
    if len(run) != len(output) or len(set(run)) < len(run):
        raise WmddError(f"the runs {run} need one --output each, and none twice; {len(output)} are given")
    arrays, meta = load(images, "images", "weights")
    data_meta = hdf5.load_meta(data)
    check_classes(data_meta["classes"], meta["classes"], str(data), str(images))
    if settings.learned_lr and "student_lr" in meta:
        settings = settings.model_copy(update={"lr": meta["student_lr"]})
    with ExitStack() as files:
        labelling = _labels(soft_labels, teacher, seed, settings, augmentation, meta, data_meta)
        views_labels, sources = files.enter_context(labelling)
        inputs = {"images": meta, "data": data_meta} | sources
        numbers = run if len(run) > 1 else run[0]
        stage_job = files.enter_context(
            job("student", output[0], [settings, augmentation], inputs, engine, threads, seed=seed, run=numbers)
        )
        near = staged(data, make=False)
        val_pictures, _ = files.enter_context(opened(near, "val", device=stage_job.engine.device))
        normalisation, white = Normalisation.of(data_meta), None
        if settings.whiten:
            pictures, _ = files.enter_context(opened(near, "train", once=True))
            white = whitening.fit(pictures, normalisation)
        weights = torch.from_numpy(checked_weights(images, arrays["weights"]))  # [C, K]
        shown = _shown(meta, arrays["images"])
        students = train(
            torch.from_numpy(arrays["images"]).flatten(0, 1), _own_labels(images, *weights.shape),
            weighted(weights, settings.weights).flatten(), views_labels, val_pictures, len(weights),
            normalisation, settings, augmentation, seed, run, stage_job.context, white, shown,
        )  # fmt: skip
        stage_job.cost["students"] = len(run)
        seen = {
            "steps": settings.epochs * shown.steps(settings.batch_size),
            "images_seen": settings.epochs * shown.count,
        } | ({} if shown.everything else {"images_held": shown.held})
        for place, (_, history, confusion) in enumerate(students):
            facts = {"identity": {"seed": seed, "run": run[place]}, "classes": meta["classes"]}
            facts |= {"by_class": _by_class(confusion)}
            _save_scores(stage_job, output[place], history, seen, facts, f"{place}/" if len(run) > 1 else "")


def _by_class(confusion: torch.Tensor) -> dict[str, list[Any]]:
    """Return how many validation pictures of each class there are and are right, and of few classes what they are taken for."""
    counts = {"right": confusion.diagonal().tolist(), "total": confusion.sum(1).tolist()}
    return counts | ({"confusion": confusion.tolist()} if len(confusion) <= CONFUSED else {})


def _shown(meta: hdf5.Meta, images: np.ndarray) -> Shown:
    """Return which of a set's images [C, M, 3, R, R] each epoch shows."""
    classes, held = images.shape[:2]
    return Shown(classes, held, images_per_epoch(meta, held))


def _own_labels(path: Path, classes: int, k: int) -> torch.Tensor:
    """Return the classes of distilled images [C K], or the labels [C K, C] that their method learned."""
    with hdf5.reading(path, "images") as file:
        learned = learned_labels(path, file)
    return torch.arange(classes).repeat_interleave(k) if learned is None else torch.from_numpy(learned)


def _save_scores(
    stage_job: StageJob,
    path: Path,
    history: list[dict[str, float]],
    seen: dict[str, int],
    meta: dict[str, Any],
    prefix: str,
) -> None:
    """Write the scores of a student, with how much it has seen, and its history; `prefix` tells it apart on the tracker."""
    scored = [epoch for epoch in history if "top1" in epoch]
    last, best = scored[-1], max(scored, key=lambda epoch: epoch["top1"])
    result = {
        "top1": last["top1"],
        "top5": last["top5"],
        "best_top1": best["top1"],
        "best_epoch": best["epoch"],
        **seen,
    }
    stage_job.tracker.log({f"{prefix}final/{name}": value for name, value in result.items()})
    save_history(path, history)
    digest = atomic_files.sha256_of(path.with_suffix(".csv"))
    atomic_files.write_json(path, stage_job.meta | meta | {"result": result, "history": digest})


@contextmanager
def _labels(
    path: Path | None,
    teacher: list[Path] | None,
    seed: int,
    settings: StudentSettings,
    augmentation: LabelSettings,
    images: dict[str, Any],
    data: dict[str, Any],
) -> Iterator[tuple[labels.Labels, dict[str, hdf5.Meta]]]:
    """Open what a student learns from, with the meta data of the files that it comes from."""
    if settings.labels == "hard":
        yield labels.hard(seed), {}
    elif augmentation.store == "online":
        if path is not None:
            raise WmddError(
                f"the store online takes no labels but {path} is given; drop it, or set --store to its store"
            )
        if not teacher:
            raise WmddError("a student with the store online needs --teacher; give it, or set --store or --labels hard")
        given = Normalisation.of(data)
        network, teachers = _read_teachers(teacher, augmentation, images["classes"], "the distilled set", given)
        yield labels.online(seed, network, _statistics_batch(augmentation)), teachers
    elif path is None:
        raise WmddError("a student with soft labels needs --soft-labels; run the relabel stage, or set --labels hard")
    else:
        with labels.opened(path) as (stored, meta):
            _check_labels(path, meta, settings, augmentation, images)
            yield stored, {"labels": meta}


def _read_teachers(
    paths: list[Path], settings: LabelSettings, classes: list[str], classes_of: str, given: Normalisation | None
) -> tuple[torch.nn.Module, dict[str, hdf5.Meta]]:
    """Read the teachers of labels as one, and the meta data of each.

    It takes pictures in the `given` normalisation, or else in that of the first. The first is the distillation's own, and the
    names of the others stand in the settings. `classes` are those of the images, and `classes_of` says whose.
    """
    if len(paths) != 1 + len(settings.teachers):
        raise WmddError(
            f"--teachers names {len(settings.teachers)} teachers beside the distillation's own, but --teacher has "
            f"{len(paths)} files; give a file for each, the distillation's own first"
        )
    networks, metas = [], {}
    for number, path in enumerate(paths):
        network, meta = read_teacher(path)
        check_classes(meta["classes"], classes, str(path), classes_of)
        own = Normalisation.of(meta)
        given = given or own
        networks.append(network if own == given else labels.Renormalised(network, own, given))
        metas[f"teacher{number}" if number else "teacher"] = meta
    return (networks[0] if len(networks) == 1 else labels.Committee(networks)), metas


def _statistics_batch(settings: LabelSettings) -> int:
    """Return how many views share the statistics of a teacher's BatchNorm; 0 where its running ones count."""
    return settings.statistics_batch if settings.statistics == "batch" else 0


def _check_labels(
    path: Path, meta: dict[str, Any], settings: StudentSettings, augmentation: LabelSettings, images: dict[str, Any]
) -> None:
    """Refuse labels of other images or views, of another store, or pruned for another temperature."""
    if meta["inputs"]["images"] != images["digest"]:
        raise WmddError(f"{path} labels other images than those given; run the relabel stage again")
    expected = augmentation.model_dump(mode="json")
    made = LABELS.model_dump(mode="json", include=set(ADDED)) | meta["settings"]
    if augmentation.store == "pruned":
        expected["temperature"] = settings.temperature
    for name, value in expected.items():
        stored = made.get(name)
        if stored != value:
            raise WmddError(f"{path} was made with {name} {stored}, the student asks for {value}; make them agree")
