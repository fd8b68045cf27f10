"""Which files and flags a job of the workflow needs: functions of its wildcards, for the rules.

An input function takes Snakemake's wildcards (or any mapping that has them) and returns a path, or a list of paths: [] where
the job has no such input.
"""

import os
import re
from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any

from wmdd.settings import catalogue
from wmdd.settings.base import Settings, flags
from wmdd.settings.engine import EngineSettings
from wmdd.settings.student import AugmentationSettings, LabelSettings
from wmdd.workflow.experiment import Experiment
from wmdd.workflow.layout import Cell, history_of, path_of
from wmdd.workflow.stages import BLOCKS, KEYS, STAGES, Family

Paths = str | list[str]
Input = Callable[[Any], Paths]
NONE = r"(?!)"  # a pattern that matches nothing


def any_of(names: Iterable[str]) -> str:
    """Return a pattern that matches these names alone."""
    return "|".join(map(re.escape, sorted(names))) or NONE


class Inputs:
    """The inputs, flags and targets of an experiment's jobs."""

    def __init__(self, experiment: Experiment, block_names: Callable[[Cell], list[str]]) -> None:
        self.block_names = block_names  # of a distilled set
        self.experiment, self.runs = experiment, list(experiment.runs())
        self.methods = experiment.methods()

    # ---- flags

    def flags(self, stage: str) -> Callable[[Any], str]:
        """Return the function that gives the flags of a stage: all settings that its command takes."""
        return lambda wildcards: flags(*self.settings(stage, Cell.of(wildcards)))

    def settings(self, stage: str, cell: Cell) -> list[Settings]:
        """Return all settings that the command of a stage takes: its own, others that it needs to know, the engine's."""
        section = STAGES[stage].section or stage
        settings = [self.experiment.settings(section, cell)] if section in KEYS else []
        if stage == "student":
            settings.append(self._label_settings(cell))
        elif stage == "select":
            settings.append(self.experiment.settings("barycenter", cell))
        elif stage in ("encode", "decode"):
            settings.append(self.experiment.settings("generator", cell))
        return settings + self._engine_if_network(stage, cell)

    def _engine_if_network(self, stage: str, cell: Cell) -> list[Settings]:
        """Return where and how precisely a stage computes its network; of select, only patches are cut by one."""
        has_network = STAGES[stage].network and (stage != "select" or self._strategy(cell) == "patches")
        return [EngineSettings.model_validate(self.experiment.file.engine)] if has_network else []

    def _label_settings(self, cell: Cell) -> LabelSettings:
        """Return the views of the relabel stage, which the student replays, and whose labels these have, if any."""
        relabel = self.experiment.settings("relabel", cell)
        used = AugmentationSettings if self.label_source(cell) == "hard" else LabelSettings
        return LabelSettings(**{name: getattr(relabel, name) for name in used.model_fields})

    def label_source(self, cell: Cell) -> str:
        """Return where a student's labels come from: hard, stored, pruned or online."""
        hard = self.experiment.settings("student", cell).labels == "hard"
        return "hard" if hard else str(self.experiment.settings("relabel", cell).store)

    def _strategy(self, cell: Cell) -> str:
        return str(self.experiment.settings("select", cell).strategy)

    def pictures(self, wildcards: Any) -> str:
        """Return what the catalogue says of a dataset's pictures: a change of it makes the data anew."""
        return catalogue.known(self.experiment.settings("data", Cell.of(wildcards)).source).pictures()

    # ---- inputs of a job

    def of_teacher(self, kind: str) -> Input:
        """Return the function that gives a file of the teacher that a distillation uses: teacher, features or statistics."""
        return lambda wildcards: path_of(kind, self.teacher_of(Cell.of(wildcards)))

    def teacher_of(self, cell: Cell) -> Cell:
        """Return the cell of a distillation's teacher."""
        return cell.having(seed=self.experiment.teacher_seed(cell.seed))

    def teacher_checkpoint(self, wildcards: Any) -> Paths:
        """Return the checkpoint that a teacher's weights are taken from, where they are a file."""
        return self.experiment.settings("teacher", Cell.of(wildcards)).checkpoint or []

    def features_parts(self, wildcards: Any) -> Paths:
        """Return what the jobs that share a pass over the training set have made."""
        cell = Cell.of(wildcards)
        blocks = self.experiment.features_blocks(cell.dataset)
        return [path_of("features_part", cell.having(block=block)) for block in blocks]

    def teacher_if_confident(self, wildcards: Any) -> Paths:
        """Return the teacher, where only the images count of which it is surest."""
        cell = Cell.of(wildcards)
        return path_of("teacher", self.teacher_of(cell)) if self._only_confident(cell) else []

    def teacher_if_patches_or_confident(self, wildcards: Any) -> Paths:
        """Return the teacher, where select cuts patches by it, or chooses among the images of which it is surest."""
        cell = Cell.of(wildcards)
        judges = self.experiment.settings("select", cell).judged or self._only_confident(cell)
        return path_of("teacher", self.teacher_of(cell)) if judges else []

    def features_if_compared(self, wildcards: Any) -> Paths:
        """Return the features, where select compares images by them: always but for patches and a draw from all images."""
        cell = Cell.of(wildcards)
        drawn = self.experiment.settings("select", cell).drawn and not self._only_confident(cell)
        unseen = self._strategy(cell) == "patches" or drawn
        return [] if unseen else path_of("features", self.teacher_of(cell))

    def _only_confident(self, cell: Cell) -> bool:
        return bool(self.experiment.settings("barycenter", cell).confident < 1)

    def barycenter_if_feature_term(self, wildcards: Any) -> Paths:
        """Return the barycenter of a block, for methods whose loss has the feature term."""
        cell = Cell.of(wildcards)
        return path_of("barycenter", cell) if self._has_feature_term(cell) else []

    def _has_feature_term(self, cell: Cell) -> bool:
        return bool(self.experiment.settings("recover", cell).feature_weight > 0)

    def start_images(self, wildcards: Any) -> Paths:
        """Return the images that recover or match begins with, where they are another method's."""
        cell = Cell.of(wildcards)
        method = self.experiment.start(cell.dataset, cell.method)
        return path_of("images", cell.having(method=method)) if method else []

    def blocks(self, wildcards: Any) -> Paths:
        """Return the recovered, decoded or matched blocks of a distilled set."""
        cell = Cell.of(wildcards)
        family = self.experiment.family(cell.method)
        kind = next(STAGES[stage].file for stage in BLOCKS if family in STAGES[stage].families)
        return [path_of(kind, block) for block in self._blocks(cell)]

    def autoencoder(self, wildcards: Any) -> Paths:
        """Return the autoencoder of a job's generator, for the kinds that have one."""
        encoder = self._encoder(Cell.of(wildcards))
        return path_of("autoencoder", encoder) if self._kind(encoder) != "ldm" else []

    def diffusion(self, wildcards: Any) -> Paths:
        """Return the diffusion model of a job's generator, for the kind that has one."""
        decoder = self._decoder(Cell.of(wildcards))
        return path_of("diffusion", decoder) if self._kind(decoder) == "latent-diffusion" else []

    def pipeline(self, wildcards: Any) -> Paths:
        """Return what names the parts of a pipeline of the diffusers library, where its model is a folder."""
        model = self.experiment.settings("generator", self._decoder(Cell.of(wildcards))).model
        index = Path(model or "-").expanduser() / "model_index.json"
        return str(index) if index.is_file() else []

    def latents(self, wildcards: Any) -> Paths:
        """Return the latents of the blocks that hold the classes of a job, or of all."""
        cell = Cell.of(wildcards)
        blocks = [self._encoder(cell).having(block=block) for block in self.experiment.features_blocks(cell.dataset)]
        wanted = cell.classes if cell.block else range(10**9)
        overlaps = [b for b in blocks if b.classes.start < wanted.stop and b.classes.stop > wanted.start]
        return [path_of("latents", block) for block in overlaps]

    def _decoder(self, cell: Cell) -> Cell:
        """Return the cell of a job's generator: the one in its path, or its method's with the teacher's seed."""
        if cell.generator:
            return cell
        return self.teacher_of(cell).having(generator=self.experiment.generator(cell.method))

    def _encoder(self, cell: Cell) -> Cell:
        """Return the cell of the generator that encodes for a job's."""
        decoder = self._decoder(cell)
        return decoder.having(generator=self.experiment.encoder(decoder.generator, decoder.dataset))

    def _kind(self, generator: Cell) -> str:
        return str(self.experiment.settings("generator", generator).kind)

    def experts(self, wildcards: Any) -> Paths:
        """Return the trajectories that a method matches, if it does."""
        cell = Cell.of(wildcards)
        count = self.experiment.trajectories(cell.dataset, cell.method)
        expert = self.experiment.expert(cell.method) if count else None
        return [path_of("expert", cell.having(expert=expert, seed=number)) for number in range(count)]

    def imported(self, wildcards: Any) -> list[str]:
        """Return the files of a set that others made; of tensors in several files (MTT) the others too."""
        cell = Cell.of(wildcards)
        settings = self.experiment.settings("images", cell)
        path = Path(settings.source(cell.ipc, cell.seed))
        beside = [path.with_name(path.name.replace("images", part, 1)) for part in ("labels", "lr")]
        paths = [path, *(other for other in beside if path.is_file() and other != path and other.is_file())]
        return [str(each) for each in paths] + ([os.path.expanduser(settings.classes)] if settings.classes else [])

    def imported_state(self, wildcards: Any) -> str:
        """Return a digest of the names, sizes and times of the files in a folder that is imported; "" of a single file.

        Snakemake itself notices a change of a file, but not of one in a folder below.
        """
        folder = Path(self.imported(wildcards)[0])
        if not folder.is_dir():
            return ""
        files = sorted((path, path.stat()) for path in folder.rglob("*") if path.is_file())
        text = "".join(f"{path.relative_to(folder)}\0{stat.st_size}\0{stat.st_mtime_ns}\0" for path, stat in files)
        return sha256(text.encode("utf-8", "surrogateescape")).hexdigest()

    def teacher_if_order_checked(self, wildcards: Any) -> Paths:
        """Return the teacher that looks whether the classes of an imported set are permuted."""
        cell = Cell.of(wildcards)
        checked = self.experiment.settings("images", cell).order == "checked"
        return path_of("teacher", self.teacher_of(cell)) if checked else []

    def labels_if_stored(self, wildcards: Any) -> Paths:
        """Return the soft labels of a student that learns from a file: the first protocol's that has such labels."""
        cell = Cell.of(wildcards)
        if self.label_source(cell) not in ("stored", "pruned"):
            return []
        protocol = self.experiment.protocol_of_labels(cell.dataset, cell.method, cell.protocol)
        return path_of("labels", cell.having(protocol=protocol))

    def teachers_of_labels(self, wildcards: Any) -> Paths:
        """Return the teachers whose mean logits are the labels: the distillation's own, and those that the protocol names."""
        cell = Cell.of(wildcards)
        own, others = self.teacher_of(cell), self.experiment.settings("relabel", cell).teachers
        return [path_of("teacher", own), *(path_of("teacher", own.having(teacher=name)) for name in others)]

    def teachers_if_online(self, wildcards: Any) -> Paths:
        """Return these teachers, for students that ask them for their labels."""
        return self.teachers_of_labels(wildcards) if self.label_source(Cell.of(wildcards)) == "online" else []

    # ---- which rule makes what

    def methods_of(self, *families: Family) -> str:
        """Return a pattern for the methods of some families, of the matrix or that one of it starts from."""
        return any_of(method for method in self.methods if self.experiment.family(method) in families)

    def datasets_with(self, shared: bool) -> str:
        """Return a pattern for the datasets whose pass over the training set is shared by several jobs, or is not."""
        datasets = {run.dataset for run in self.runs}
        return any_of(each for each in datasets if (len(self.experiment.features_blocks(each)) > 1) == shared)

    # ---- files of the whole matrix

    def files_of(self, kind: str, cells: Iterable[Cell] | None = None) -> list[str]:
        """Return a file of every run of the matrix, or of some cells, each once."""
        return sorted({path_of(kind, cell) for cell in (self.runs if cells is None else cells)})

    def files_of_teachers(self, kind: str) -> list[str]:
        """Return a file of every teacher of the matrix: teacher, features or statistics."""
        return self.files_of(kind, map(self.teacher_of, self.runs))

    def students(self, runs: Iterable[Cell] | None = None) -> list[str]:
        """Return the result of every student of the matrix, or of some of its runs, in their order."""
        return [path_of("student", run) for run in (self.runs if runs is None else runs)]

    def histories(self) -> list[str]:
        """Return the history of every student of the matrix."""
        return list(map(history_of, self.students()))

    def grids(self) -> list[str]:
        """Return a picture of each distilled set: of the first seed that it has."""
        runs = sorted(self.runs, key=lambda run: -run.seed)
        return self.files_of("grid", {(run.dataset, run.teacher, run.method, run.ipc): run for run in runs}.values())

    def maps(self) -> list[str]:
        """Return the map of each dataset and teacher, where the experiment wants one."""
        return self.files_of("map") if self.experiment.file.embedding else []

    def barycenters(self) -> list[str]:
        """Return the barycenters of every run of the matrix that has some."""
        return self._files_of_blocks("barycenter", filter(self._has_feature_term, self._of_family("recover")))

    def quantized(self) -> list[str]:
        """Return the atoms of every run of the matrix that quantizes latents."""
        return self._files_of_blocks("quantize", self._of_family("latent"))

    def distances(self) -> list[str]:
        """Return the distances to the real data: of all sets if the experiment wants them; of the family latent always.

        Of the whole training set there is none, as it is these data.
        """
        runs = [run for run in self.runs if not self.experiment.is_whole(run.dataset, run.method)]
        return self.files_of("distance", runs if self.experiment.file.distances else self._of_family("latent"))

    def decays(self) -> list[str]:
        """Return how W2 falls with the number of atoms, for every generator that encodes."""
        return self.files_of("decay", map(self._encoder, self._of_family("latent")))

    def _of_family(self, family: Family) -> list[Cell]:
        return [run for run in self.runs if self.experiment.family(run.method) == family]

    def _files_of_blocks(self, kind: str, runs: Iterable[Cell]) -> list[str]:
        return self.files_of(kind, [block for run in runs for block in self._blocks(run)])

    def _blocks(self, cell: Cell) -> list[Cell]:
        return [cell.having(block=block) for block in self.block_names(cell)]

    # ---- the map of a dataset and a teacher

    def mapped(self, wildcards: Any) -> list[str]:
        """Return the sets that a map shows: of each method that with most images per class.

        Of several seeds it is the first of the map, or else the method's own first.
        """
        runs, seed = self._of_map(Cell.of(wildcards))
        shown: dict[str, Cell] = {}
        for run in sorted(runs, key=lambda run: (-run.ipc, run.seed != seed, run.seed)):
            shown.setdefault(run.method, run)
        return self.files_of("images", shown.values())

    def of_map(self, kind: str) -> Input:
        """Return the function that gives a file of the teacher in whose features a map is drawn: that of the first seed."""

        def file(wildcards: Any) -> str:
            cell = Cell.of(wildcards)
            return path_of(kind, self.teacher_of(cell.having(seed=self._of_map(cell)[1])))

        return file

    def _of_map(self, cell: Cell) -> tuple[list[Cell], int]:
        """Return the runs of a map's dataset and teacher, and the first seed of these."""
        runs = [run for run in self.runs if (run.dataset, run.teacher) == (cell.dataset, cell.teacher)]
        return runs, min(run.seed for run in runs)
