"""Which files and flags a job of the workflow needs: functions of its wildcards, for the rules.

An input function takes Snakemake's wildcards (or any mapping that has them) and returns a path, or a list of paths: [] where
the job has no such input.
"""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from wmdd.settings import catalogue
from wmdd.settings.base import Settings, flags
from wmdd.settings.engine import EngineSettings
from wmdd.settings.student import LabelSettings
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
        """Return the function that gives the flags of a stage: its settings, what else it needs to know, the engine's."""
        return lambda wildcards: flags(*self.settings(stage, Cell.of(wildcards)))

    def settings(self, stage: str, cell: Cell) -> list[Settings]:
        """Return all settings that the command of a stage takes."""
        section = STAGES[stage].section or stage
        parts = [self.experiment.settings(section, cell)] if section in KEYS else []
        parts += {
            "student": self._views,
            "select": self._solver,
            "encode": self._generator,
            "decode": self._generator,
        }.get(stage, lambda cell: [])(cell)
        return parts + ([self.engine] if STAGES[stage].network and self._runs_network(stage, cell) else [])

    @property
    def engine(self) -> EngineSettings:
        """Where and how precisely networks are computed."""
        return EngineSettings.model_validate(self.experiment.file.engine)

    def _runs_network(self, stage: str, cell: Cell) -> bool:
        return stage != "select" or self._strategy(cell) == "patches"

    def _views(self, cell: Cell) -> list[Settings]:
        """Return the views of the relabel stage, which the student replays, and the store of their labels, if it has any."""
        labels = self.experiment.settings("relabel", cell)
        unused = {"store"} if self.label_source(cell) == "hard" else set()
        return [LabelSettings(**{name: getattr(labels, name) for name in LabelSettings.model_fields.keys() - unused})]

    def _solver(self, cell: Cell) -> list[Settings]:
        return [self.experiment.settings("barycenter", cell)]

    def _generator(self, cell: Cell) -> list[Settings]:
        return [self.experiment.settings("generator", cell)]

    def _strategy(self, cell: Cell) -> str:
        return str(self.experiment.settings("select", cell).strategy)

    def label_source(self, cell: Cell) -> str:
        """Return where a student's labels come from: hard, stored, pruned or online."""
        hard = self.experiment.settings("student", cell).labels == "hard"
        return "hard" if hard else str(self.experiment.settings("relabel", cell).store)

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

    def weights(self, wildcards: Any) -> Paths:
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
        few = self.experiment.settings("barycenter", cell).confident < 1
        return path_of("teacher", self.teacher_of(cell)) if few else []

    def teacher_if_asked(self, wildcards: Any) -> Paths:
        """Return the teacher, for strategies that choose patches by it, or images of which it is surest."""
        cell = Cell.of(wildcards)
        patches = self._strategy(cell) == "patches"
        return path_of("teacher", self.teacher_of(cell)) if patches else self.teacher_if_confident(wildcards)

    def features_if_chosen_by(self, wildcards: Any) -> Paths:
        """Return the features, for strategies that choose by them."""
        cell = Cell.of(wildcards)
        strategy = self._strategy(cell)
        unseen = strategy == "patches" or (strategy == "random" and not self.teacher_if_confident(wildcards))
        return [] if unseen else path_of("features", self.teacher_of(cell))

    def barycenter_if_matched(self, wildcards: Any) -> Paths:
        """Return the barycenter of a block, for methods whose loss has the feature term."""
        cell = Cell.of(wildcards)
        return path_of("barycenter", cell) if self._matches(cell) else []

    def _matches(self, cell: Cell) -> bool:
        return bool(self.experiment.settings("recover", cell).feature_weight > 0)

    def start(self, wildcards: Any) -> Paths:
        """Return the images that recover begins with, where they are another method's."""
        cell = Cell.of(wildcards)
        method = self.experiment.settings("recover", cell).start
        return path_of("images", cell.having(method=method)) if method else []

    def blocks(self, wildcards: Any) -> Paths:
        """Return the recovered, decoded or matched blocks of a distilled set."""
        cell = Cell.of(wildcards)
        family = self.experiment.family(cell.method)
        kind = next(STAGES[stage].file for stage in BLOCKS if family in STAGES[stage].families)
        return [path_of(kind, each) for each in self._blocks(cell)]

    def _blocks(self, cell: Cell) -> list[Cell]:
        return [cell.having(block=block) for block in self.block_names(cell)]

    def autoencoder(self, wildcards: Any) -> Paths:
        """Return the autoencoder of a job's generator, for the kinds that have one."""
        cell = self._encoder(Cell.of(wildcards))
        return path_of("autoencoder", cell) if self._kind(cell) != "ldm" else []

    def diffusion(self, wildcards: Any) -> Paths:
        """Return the diffusion model of a job's generator, for the kind that has one."""
        cell = self._decoder(Cell.of(wildcards))
        return path_of("diffusion", cell) if self._kind(cell) == "latent-diffusion" else []

    def pipeline(self, wildcards: Any) -> Paths:
        """Return what names the parts of a pipeline of the diffusers library, where its model is a folder."""
        model = self.experiment.settings("generator", self._decoder(Cell.of(wildcards))).model
        index = Path(model or "-").expanduser() / "model_index.json"
        return str(index) if index.is_file() else []

    def latents(self, wildcards: Any) -> Paths:
        """Return the latents of the blocks that hold the classes of a job, or of all."""
        cell = Cell.of(wildcards)
        encoder = self._encoder(cell)
        pieces = [encoder.having(block=block) for block in self.experiment.features_blocks(cell.dataset)]
        wanted = cell.classes if cell.block else range(10**9)
        overlap = (piece for piece in pieces if piece.classes.start < wanted.stop and piece.classes.stop > wanted.start)
        return [path_of("latents", piece) for piece in overlap]

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

    def labels_if_stored(self, wildcards: Any) -> Paths:
        """Return the soft labels of a student that learns from a file: the first protocol's that has such labels."""
        cell = Cell.of(wildcards)
        if self.label_source(cell) not in ("stored", "pruned"):
            return []
        protocol = self.experiment.labelled(cell.dataset, cell.method, cell.protocol)
        return path_of("labels", cell.having(protocol=protocol))

    def teacher_if_online(self, wildcards: Any) -> Paths:
        """Return the teacher, for students that ask it for their labels."""
        cell = Cell.of(wildcards)
        return path_of("teacher", self.teacher_of(cell)) if self.label_source(cell) == "online" else []

    # ---- which rule makes what

    def methods_of(self, *families: Family) -> str:
        """Return a pattern for the methods of some families, of the matrix or that one of it starts from."""
        return any_of(method for method in self.methods if self.experiment.family(method) in families)

    def datasets_with(self, shared: bool) -> str:
        """Return a pattern for the datasets whose pass over the training set is shared by several jobs, or is not."""
        datasets = {run.dataset for run in self.runs}
        return any_of(each for each in datasets if (len(self.experiment.features_blocks(each)) > 1) == shared)

    # ---- what the matrix wants

    def students(self, runs: Iterable[Cell] | None = None) -> list[str]:
        """Return the result of every student of the matrix, or of some of its runs."""
        return [path_of("student", run) for run in (self.runs if runs is None else runs)]

    def histories(self) -> list[str]:
        """Return the history of every student of the matrix."""
        return list(map(history_of, self.students()))

    def datasets(self) -> list[str]:
        """Return every dataset of the matrix."""
        return self.each("data")

    def teachers(self) -> list[str]:
        """Return every teacher of the matrix."""
        return sorted({path_of("teacher", self.teacher_of(run)) for run in self.runs})

    def sets(self, runs: Iterable[Cell] | None = None) -> list[str]:
        """Return every distilled set of the matrix, or of some of its runs."""
        return self.each("images", runs)

    def grids(self) -> list[str]:
        """Return a picture of each distilled set: of the first seed that it has."""
        return self.each("grid", self._first(lambda run: (run.dataset, run.teacher, run.method, run.ipc)))

    def maps(self) -> list[str]:
        """Return the map of each dataset and teacher, where the experiment wants one."""
        return self.each("map") if self.experiment.file.embedding else []

    def barycenters(self) -> list[str]:
        """Return the barycenters of every run of the matrix that has some."""
        matched = filter(self._matches, self._of_family("recover"))
        return sorted({path_of("barycenter", block) for run in matched for block in self._blocks(run)})

    def quantized(self) -> list[str]:
        """Return the atoms of every run of the matrix that quantizes latents."""
        return sorted({path_of("quantize", block) for run in self._of_family("latent") for block in self._blocks(run)})

    def distances(self) -> list[str]:
        """Return the distances to the real data: of all sets if the experiment wants them; of the family latent always."""
        return self.each("distance", self.runs if self.experiment.file.distances else self._of_family("latent"))

    def decays(self) -> list[str]:
        """Return how W2 falls with the number of atoms, for every generator that encodes."""
        return self.each("decay", map(self._encoder, self._of_family("latent")))

    def features(self) -> list[str]:
        """Return the features of every teacher of the matrix: every table counts what they cost."""
        return sorted({path_of("features", self.teacher_of(run)) for run in self.runs})

    def mapped(self, wildcards: Any) -> list[str]:
        """Return the sets that the map of a dataset and a teacher shows: of each method that with most images per class.

        Of several seeds it is the first of the map, or else the method's own first.
        """
        runs, seed = self._of_map(Cell.of(wildcards))
        shown: dict[str, Cell] = {}
        for run in sorted(runs, key=lambda run: (-run.ipc, run.seed != seed, run.seed)):
            shown.setdefault(run.method, run)
        return sorted(path_of("images", run) for run in shown.values())

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

    def _of_family(self, family: Family) -> list[Cell]:
        return [run for run in self.runs if self.experiment.family(run.method) == family]

    def _first(self, key: Callable[[Cell], Any]) -> list[Cell]:
        """Return of the runs that share a key one of the smallest seed."""
        return list({key(run): run for run in sorted(self.runs, key=lambda run: -run.seed)}.values())

    def each(self, kind: str, runs: Iterable[Cell] | None = None) -> list[str]:
        """Return the file of a kind of every run, each once."""
        return sorted({path_of(kind, run) for run in (self.runs if runs is None else runs)})
