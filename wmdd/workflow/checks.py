"""Checks of an experiment before anything runs: every run is resolved once, so that a mistake shows at once."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wmdd.base.errors import WmddError
from wmdd.generators import pipeline_folder
from wmdd.networks import foreign_weights
from wmdd.settings.latent import GeneratorSettings
from wmdd.settings.network import has_batchnorm
from wmdd.settings.student import RelabelSettings, StudentSettings
from wmdd.settings.teacher import TeacherSettings
from wmdd.workflow.experiment_file import GENERATOR_STAGES, presets
from wmdd.workflow.layout import RESERVED
from wmdd.workflow.stages import STAGES, TARGETS, stage_of

if TYPE_CHECKING:
    from wmdd.workflow.experiment import Experiment
    from wmdd.workflow.layout import Cell

LARGEST_WHITENED = 64  # px: wmdd.networks.whitening, which imports torch


def check(experiment: "Experiment") -> None:
    """Refuse an experiment of which something can't run.

    Raises:
        WmddError: one line that names the place and the remedy.
    """
    _check_names(experiment)
    for matrix in experiment.file.matrix:
        if matrix.runs % experiment.file.runs_per_job:
            raise WmddError(
                f"matrix: runs {matrix.runs} is not a multiple of runs_per_job {experiment.file.runs_per_job}; change one "
                "of them"
            )
    runs = list(experiment.runs())
    for dataset, teacher in sorted({(run.dataset, run.teacher) for run in runs}):
        _check_teacher(
            experiment.resolve("teacher", dataset=dataset, teacher=teacher), f"teacher {teacher} on {dataset}: "
        )
    for dataset, method in sorted({(run.dataset, run.method) for run in runs}):
        _check_method(experiment, dataset, method)
    for dataset, protocol in sorted({(run.dataset, run.protocol) for run in runs}):
        if experiment.depends_on_side(protocol) and not experiment.resolve("data", dataset=dataset).side:
            raise WmddError(
                f"protocol {protocol} on {dataset}: it has other settings for small images, and the side of these is not known "
                f"before they are read; set datasets: {{{dataset}: {{data: {{resolution: …}}}}}}"
            )
    for dataset, method, ipc, seed in sorted({(run.dataset, run.method, run.ipc, run.seed) for run in runs}):
        if experiment.family(method) == "import":
            _check_import(experiment, dataset, method, ipc, seed)
    for dataset, method, protocol, student in sorted({(r.dataset, r.method, r.protocol, r.student) for r in runs}):
        names = {"dataset": dataset, "method": method, "protocol": protocol}
        labels = experiment.resolve("relabel", **names)
        settings = experiment.resolve("student", student=student, **names)
        _check_whitening(experiment, dataset, settings.whiten, f"protocol {protocol} on {dataset}: ")
        if settings.labels == "soft":
            _check_labels(labels, settings, f"protocol {protocol} on {dataset}: ")
    for run in runs:
        if experiment.settings("student", run).labels == "soft":
            _check_teachers_of_labels(experiment, run)


def _check_names(experiment: "Experiment") -> None:
    """Refuse names that mean something else already, and a sweep as a base."""
    for kind, names in RESERVED.items():
        for name in names:
            if name in experiment.names(kind):
                raise WmddError(f"{kind}.{name}: the name is taken; choose another")
    for name in experiment.named():
        if stage_of(name) in (*STAGES, *TARGETS):
            raise WmddError(f"matrix: the name {name} is that of a rule; choose another")
    for name, entry in experiment.file.methods.items():
        if entry.base in experiment.sweeps and entry.base not in presets().methods:
            members = ", ".join(experiment.sweeps[entry.base])
            raise WmddError(f"methods.{name}: its base {entry.base} is a sweep; name one of its members: {members}")


def _check_teacher(settings: TeacherSettings, where: str) -> None:
    """Refuse weights that are not there, as far as that can be known without a download."""
    if settings.weights:
        _prefixed(where, foreign_weights.check, settings)


def _check_method(experiment: "Experiment", dataset: str, method: str) -> None:
    """Refuse a method whose images can't be made."""
    for stage in ("data", "features"):
        experiment.resolve(stage, dataset=dataset)
    solver, recover, _ = (
        experiment.resolve(stage, dataset=dataset, method=method) for stage in ("barycenter", "recover", "select")
    )
    if experiment.family(method) == "recover" and recover.feature_weight > 0:
        solver.check(f"barycenter for {dataset}, {method}: ")
    _check_family(experiment, dataset, method)
    _check_start(experiment, dataset, method)


def _check_family(experiment: "Experiment", dataset: str, method: str) -> None:
    if experiment.family(method) == "latent":
        _check_latent(experiment, dataset, method)
    if experiment.family(method) == "match":
        _check_match(experiment, dataset, method)


def _check_start(experiment: "Experiment", dataset: str, method: str) -> None:
    """Refuse a method that would start from itself, through others or not."""
    chain = [method]
    while start := experiment.start(dataset, chain[-1]):
        if start in chain:
            family = experiment.family(method)
            raise WmddError(f"method {method} on {dataset}: {family}.init goes round: {' -> '.join([*chain, start])}")
        if (
            experiment.family(start) == "select"
            and experiment.resolve("select", dataset=dataset, method=start).holds_more
        ):
            raise WmddError(
                f"method {method} on {dataset}: its start {start} holds more images than an epoch shows; "
                "start at another method"
            )
        chain.append(start)
        _check_family(experiment, dataset, start)


def _check_latent(experiment: "Experiment", dataset: str, method: str) -> None:
    """Refuse a method whose latents, atoms or decoder can't be made."""
    name, where = experiment.generator(method), f"method {method} on {dataset}: "
    settings = experiment.resolve("generator", dataset=dataset, generator=name)
    settings.check(f"{where}generator {name}: ")
    if settings.kind == "ldm":
        _check_pipeline(settings, experiment.resolve("data", dataset=dataset).side, f"{where}generator {name}: ")
    encoder = experiment.encoder(name, dataset)
    kind = experiment.resolve("generator", dataset=dataset, generator=encoder).kind
    if encoder != name and kind != "vae":
        raise WmddError(f"{where}generator {name}: its encoder {encoder} is of kind {kind}; name one of kind vae")
    for stage in GENERATOR_STAGES:
        experiment.resolve(stage, dataset=dataset, generator=name, method=method)
    experiment.resolve("quantize", dataset=dataset, method=method).check(f"{where}quantize: ")


def _check_pipeline(settings: GeneratorSettings, side: int, where: str) -> None:
    """Refuse a pipeline that is not there, or not whole; of a hub id nothing is asked here."""
    _prefixed(where, pipeline_folder.check, settings, side or settings.size)


def _check_import(experiment: "Experiment", dataset: str, method: str, ipc: int, seed: int) -> None:
    """Refuse a set of others that is not there."""
    settings = experiment.resolve("images", dataset=dataset, method=method)
    where, source = f"method {method} on {dataset}: images.", settings.source(ipc, seed)
    if not source:
        raise WmddError(f"{where}path is not set; name the file or folder of the set")
    for name, path in ("path", source), ("classes", os.path.expanduser(settings.classes)):
        if path and not Path(path).exists():
            raise WmddError(f"{where}{name}: there is no {path}; paths are from {Path.cwd()}")


def _check_match(experiment: "Experiment", dataset: str, method: str) -> None:
    """Refuse a method whose network can't be matched, or whose experts are too short."""
    settings, where = experiment.resolve("match", dataset=dataset, method=method), f"method {method} on {dataset}: "
    if not experiment.trajectories(dataset, method):
        settings.check(f"{where}match: ")
        return
    name = experiment.expert(method)
    experts = experiment.resolve("expert", dataset=dataset, expert=name)
    experts.check(f"{where}experts {name}: ")
    _check_whitening(experiment, dataset, experts.whiten, f"{where}experts {name}: ")
    needed = settings.start_epochs - 1 + settings.expert_epochs
    if needed > experts.epochs:
        raise WmddError(
            f"{where}match begins at up to {settings.start_epochs - 1} epochs of an expert and goes on for "
            f"{settings.expert_epochs}, but the experts {name} have {experts.epochs}; raise their epochs to {needed}"
        )


def _check_whitening(experiment: "Experiment", dataset: str, whiten: bool, where: str) -> None:
    """Refuse whitened images that are too large for it, as far as their side is known."""
    side = experiment.resolve("data", dataset=dataset).side
    if whiten and side > LARGEST_WHITENED:
        raise WmddError(
            f"{where}whitening takes images of at most {LARGEST_WHITENED} px, not of {side} px; set whiten: false"
        )


def _check_labels(labels: RelabelSettings, student: StudentSettings, where: str) -> None:
    """Refuse soft labels that do not reach for the student's epochs, or are pruned for another temperature."""
    if labels.store != "online" and student.epochs > labels.epochs:
        raise WmddError(
            f"{where}student.epochs {student.epochs} exceeds relabel.epochs {labels.epochs}; raise the latter"
        )
    if labels.store == "pruned" and student.temperature_decay < 1:
        raise WmddError(
            f"{where}pruned labels hold for one temperature, but student.temperature_decay is {student.temperature_decay:g}; "
            "set relabel.store: stored, or temperature_decay: 1"
        )
    if labels.store == "pruned" and student.temperature != labels.temperature:
        raise WmddError(
            f"{where}the labels are pruned for relabel.temperature {labels.temperature:g} but student.temperature is "
            f"{student.temperature:g}; make them agree"
        )


def _check_teachers_of_labels(experiment: "Experiment", run: "Cell") -> None:
    """Refuse teachers of labels that are unknown, can't be made, are named twice, or have no batch whose statistics to take."""
    labels, where = experiment.settings("relabel", run), f"protocol {run.protocol}: relabel."
    names = [run.teacher, *labels.teachers]
    teachers = [experiment.settings("teacher", run.having(teacher=name)) for name in names]
    for place, name in enumerate(names[1:], 1):
        if name in names[:place]:
            first = "the distillation's own teacher" if name == run.teacher else "named before"
            raise WmddError(f"{where}teachers names {name}, which is {first}; leave it out")
        _check_teacher(teachers[place], f"teacher {name} on {run.dataset}: ")
    if labels.statistics == "batch" and not any(has_batchnorm(teacher) for teacher in teachers):
        raise WmddError(f"{where}statistics is batch, but {', '.join(names)} have no BatchNorm; set it to running")


def _prefixed(where: str, check: Any, *values: Any) -> None:
    """Run a check of another room, and say in its error where the mistake is."""
    try:
        check(*values)
    except WmddError as error:
        raise WmddError(f"{where}{error}") from None
