"""An experiment: the runs of its matrix, and the settings of each stage of each run.

Precedence, weakest first: a setting's default; the presets that come with the package (`presets.yaml` and the datasets of
`datasets.yaml`); the user's file. Within presets and within the file: the stage's own section < the dataset's < the
teacher's < the generator's < the experts' < the method's < the protocol's < the student's, each entry's base before it. What
a protocol says of small images stands over what the same entry says of all.
"""

import difflib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from wmdd.base.errors import WmddError
from wmdd.workflow import experiment_file
from wmdd.workflow.checks import check
from wmdd.workflow.experiment_file import METHOD_STAGES, Matrix, parse, presets, values_set
from wmdd.workflow.layout import Cell, block_of
from wmdd.workflow.mistakes import first_mistake
from wmdd.workflow.stages import CONTROLS, KEYS, SETTINGS, STAGES
from wmdd.workflow.sweeps import expand

SMALL = {"up_to_64px": 64, "up_to_32px": 32}  # sections of a protocol, and the side up to which each counts
PRECEDENCE = ("dataset", "teacher", "generator", "expert", "method", "protocol", "student")  # the strongest last


@dataclass(frozen=True)
class _Layer:
    """One source of settings (the presets or the user's file) with its sweeps expanded."""

    content: Any
    methods: dict[str, Any]

    def entries(self, kind: str) -> dict[str, Any]:
        return self.methods if kind == "methods" else getattr(self.content, kind)


def _over(content: dict[str, Any], stronger: dict[str, Any]) -> dict[str, Any]:
    """Return a mapping with another one over it, key by key in all depths."""
    both = {
        key: _over(content[key], value) if isinstance(value, dict) and isinstance(content.get(key), dict) else value
        for key, value in stronger.items()
    }
    return content | both


class Experiment:
    """A checked experiment file over the presets; resolves the settings of any stage of any run.

    Attributes:
        file: its content, checked.
        sweeps: the names of the methods that each sweep makes.
    """

    def __init__(self, content: Mapping[str, Any], name: str = "configuration") -> None:
        self.file = parse(content, name)
        methods, self.sweeps = expand(self.file.methods)
        self._layers = [_Layer(presets(), expand(presets().methods)[0]), _Layer(self.file, methods)]
        self._resolved: dict[tuple[Any, ...], Any] = {}
        check(self)

    @classmethod
    def read(cls, *paths: Path, over: Mapping[str, Any] = MappingProxyType({})) -> "Experiment":
        """Read experiment files (YAML), later ones over earlier ones as Snakemake does, and `over` over all of them."""
        content: dict[str, Any] = {}
        for path in paths:
            content = _over(content, experiment_file.read(path))
        return cls(_over(content, dict(over)), ", ".join(path.name for path in paths) or "configuration")

    # ---- the matrix

    def runs(self) -> Iterator[Cell]:
        """Yield every cell of the matrix once: one student on one distilled set."""
        return iter(dict.fromkeys(run for matrix in self.file.matrix for run in self._product(matrix)))

    def named(self) -> dict[str, list[Cell]]:
        """Return the runs of the entries of the matrix that have a name; entries of one name are one table."""
        tables: dict[str, dict[Cell, None]] = {}
        for matrix in self.file.matrix:
            if matrix.name:
                tables.setdefault(matrix.name, {}).update(dict.fromkeys(self._product(matrix)))
        return {name: list(runs) for name, runs in tables.items()}

    def axes(self, matrix: Matrix) -> dict[str, list[Any]]:
        """Return the values of each part of the cells of an entry of the matrix; those of a sweep's members for its name."""
        names = dict.fromkeys([*matrix.methods, *(CONTROLS if matrix.controls else ())])
        return {
            "dataset": matrix.datasets,
            "teacher": matrix.teachers,
            "method": [member for name in names for member in self.sweeps.get(name, [name])],
            "ipc": matrix.ipc,
            "seed": matrix.seeds,
            "student": matrix.students,
            "protocol": matrix.protocols,
            "run": [*range(matrix.runs)],
        }

    def _product(self, matrix: Matrix) -> Iterator[Cell]:
        """Yield the cells of an entry of the matrix."""
        axes = self.axes(matrix)
        return (Cell(**dict(zip(axes, values, strict=True))) for values in itertools.product(*axes.values()))

    def runs_of_jobs(self) -> list[list[int]]:
        """Return the runs that a job trains side by side, for each job of a distilled set."""
        size = self.file.runs_per_job
        most = max((matrix.runs for matrix in self.file.matrix), default=1)
        return [list(range(first, first + size)) for first in range(0, most, size)]

    def methods(self) -> list[str]:
        """Return the methods whose images are made: those of the matrix, and what they start from."""
        pairs = list(dict.fromkeys((run.dataset, run.method) for run in self.runs()))
        for dataset, method in pairs:  # which grows
            start = self.start(dataset, method)
            pairs += [(dataset, start)] if start and (dataset, start) not in pairs else []
        return sorted({method for _, method in pairs})

    def start(self, dataset: str, method: str) -> str:
        """Return the method whose images a method begins with, or nothing."""
        family = self.family(method)
        if family not in ("recover", "match"):  # stages of the same names
            return ""
        return str(self.resolve(family, dataset=dataset, method=method).start)

    def teacher_seed(self, seed: int) -> int:
        """Return the seed of the teacher used by a distillation with this seed."""
        return seed if self.file.teacher_seed == "same" else int(self.file.teacher_seed)

    # ---- what entries say of the workflow

    def names(self, kind: str) -> list[str]:
        """Return the known names of a kind of entry, such as datasets."""
        return sorted(set().union(*(layer.entries(kind) for layer in self._layers)))

    def entry_value(self, kind: str, name: str, key: str) -> Any:
        """Return a value of an entry, or of what it is based on; None where it stands in neither."""
        bases = self._chain(kind, name)[::-1]
        entries = [layer.entries(kind).get(base) for layer in self._layers[::-1] for base in bases]
        return next((getattr(entry, key) for entry in entries if entry is not None and getattr(entry, key)), None)

    def family(self, method: str) -> str:
        """Return the chain of rules that makes a method's images, a `Family`."""
        if family := self.entry_value("methods", method, "family"):
            return str(family)
        raise WmddError(f"method {method} has no family; give it a base, one of {', '.join(self.names('methods'))}")

    def generator(self, method: str) -> str:
        """Return the generator of a method of the family latent.

        Raises:
            WmddError: it names none.
        """
        if generator := self.entry_value("methods", method, "generator"):
            return str(generator)
        raise WmddError(f"method {method} has no generator; set it to one of {', '.join(self.names('generators'))}")

    def expert(self, method: str) -> str:
        """Return the experts whose trajectories a method of the family match needs.

        Raises:
            WmddError: it names none.
        """
        if expert := self.entry_value("methods", method, "expert"):
            return str(expert)
        raise WmddError(f"method {method} has no experts; set expert to one of {', '.join(self.names('experts'))}")

    def gpus(self, teacher: str) -> int:
        """Return on how many GPUs a teacher is trained."""
        return self.entry_value("teachers", teacher, "gpus") or 1

    def features_blocks(self, dataset: str) -> list[str]:
        """Return the class blocks of the jobs that share a pass over the training set; one block: no sharing."""
        classes = self.resolve("data", dataset=dataset).classes
        jobs = min(self.entry_value("datasets", dataset, "features_jobs") or 1, classes)
        cuts = [job * classes // jobs for job in range(jobs + 1)]
        return [block_of(first, end - 1) for first, end in itertools.pairwise(cuts)]

    # ---- what settings say of the workflow

    def is_whole(self, dataset: str, method: str) -> bool:
        """Return whether a method's set is the whole training set, of which an epoch shows a part."""
        selects = self.family(method) == "select"
        return selects and self.resolve("select", dataset=dataset, method=method).strategy == "whole"

    def trajectories(self, dataset: str, method: str) -> int:
        """Return how many experts a method of the family match needs on a dataset."""
        settings = self.resolve("match", dataset=dataset, method=method)
        return int(settings.trajectories) if settings.objective == "mtt" else 0

    def encoder(self, generator: str, dataset: str) -> str:
        """Return the generator whose latents a generator decodes: itself, or the one that it is a diffusion model for."""
        settings = self.resolve("generator", dataset=dataset, generator=generator)
        return settings.encoder if settings.kind == "latent-diffusion" else generator

    def protocol_of_labels(self, dataset: str, method: str, protocol: str) -> str:
        """Return the protocol whose soft labels students of another learn from: the first of its bases that makes the same."""
        wanted = self.resolve("relabel", dataset=dataset, method=method, protocol=protocol)
        return next(
            name
            for name in self._chain("protocols", protocol)
            if self.resolve("relabel", dataset=dataset, method=method, protocol=name) == wanted
        )

    def cells(self, stage: str, run: Cell) -> list[Cell]:
        """Return the cells whose settings of a stage a run of the matrix depends on: none, where it does without the stage.

        The generators and experts of its method are filled in.
        """
        families = STAGES[stage].families if stage in STAGES else ("latent",)
        if families and self.family(run.method) not in families:
            return []
        if "expert" in KEYS[stage]:
            matched = self.trajectories(run.dataset, run.method)
            return [run.having(expert=self.expert(run.method))] if matched else []
        if "generator" not in KEYS[stage]:
            return [run]
        decoder = self.generator(run.method)
        encoder = self.encoder(decoder, run.dataset)
        kind = self.resolve("generator", dataset=run.dataset, generator=decoder).kind
        names = {
            "generator": [decoder, encoder],
            "autoencoder": [encoder] if kind != "ldm" else [],
            "diffusion": [decoder] if kind == "latent-diffusion" else [],
            "decode": [decoder],
        }.get(stage, [encoder])
        return [run.having(generator=name) for name in dict.fromkeys(names)]

    # ---- settings

    def settings(self, stage: str, cell: Cell) -> Any:
        """Return the settings of a stage for a cell, which has what they depend on (`stages.KEYS`).

        A cell without a generator or experts has those of its method.
        """
        names = {key: getattr(cell, key) for key in KEYS[stage]}
        if "generator" in names and cell.generator is None:
            names["generator"] = self.generator(cell.method)
        if "expert" in names and cell.expert is None:
            names["expert"] = self.expert(cell.method)
        return self.resolve(stage, **names)

    def resolve(self, stage: str, **names: str) -> Any:
        """Return the settings of a stage for a dataset, teacher, generator, expert, method, protocol and student.

        Args:
            stage: one of `stages.SETTINGS`.
            names: of those that its settings depend on (`stages.KEYS`); a level without a name is left out.

        Raises:
            WmddError: a name is unknown.
        """
        key = (stage, *sorted(names.items()))
        if key not in self._resolved:
            self._resolved[key] = self._resolve(stage, names)
        return self._resolved[key]

    def _resolve(self, stage: str, names: Mapping[str, str]) -> Any:
        values: dict[str, Any] = {}
        for layer in self._layers:
            values |= values_set(getattr(layer.content, stage))
            for kind in (kind for kind in PRECEDENCE if kind in names):
                for name in self._chain(kind + "s", names[kind]):
                    entry = layer.entries(kind + "s").get(name)
                    # A teacher's entry holds its settings itself, others in a section for each stage.
                    values |= values_set(entry if kind == stage else getattr(entry, stage, None))
                    for part in self._of_side(entry, names) if kind == "protocol" else ():
                        values |= values_set(getattr(part, stage, None))
        fields = SETTINGS[stage].model_fields  # entries have keys of the workflow beside those of the stage
        try:
            return SETTINGS[stage](**{name: value for name, value in values.items() if name in fields})
        except ValidationError as error:
            mistake = first_mistake(error, SETTINGS[stage])
            raise WmddError(f"settings of {stage} for {', '.join(names.values())}: {mistake}") from None

    def _of_side(self, protocol: Any, names: Mapping[str, str]) -> list[Any]:
        """Return what an entry of a protocol says of images as small as those of the dataset."""
        side = self.resolve("data", dataset=names["dataset"]).side if "dataset" in names else 0
        return [getattr(protocol, key, None) for key, bound in SMALL.items() if 0 < side <= bound]

    def depends_on_side(self, protocol: str) -> bool:
        """Return whether a protocol says what differs for small images."""
        entries = [
            layer.entries("protocols").get(name)
            for layer in self._layers
            for name in self._chain("protocols", protocol)
        ]
        return any(getattr(entry, key, None) is not None for entry in entries for key in SMALL)

    def replaced(self) -> list[str]:
        """Say which settings of the presets of methods the file's more general sections replace, a line each.

        A file wins over presets, so that the lambda of a dataset, meant for WMDD, is SRe2L's, too.
        """
        lines = []
        for dataset, method in dict.fromkeys((run.dataset, run.method) for run in self.runs()):
            for stage in METHOD_STAGES:
                preset, own = (self._of_methods(layer, method, stage) for layer in self._layers)
                now = self.resolve(stage, dataset=dataset, method=method).model_dump() if preset else {}
                for key in (key for key in preset if key not in own and now[key] != preset[key]):
                    remedy = f"to choose, say methods: {{{method}: {{{stage}: {{{key}: ...}}}}}}"
                    lines.append(
                        f"{method} on {dataset}: {stage}.{key} is {now[key]} by a general section of the file, in place of "
                        f"the preset's {preset[key]}; {remedy}"
                    )
        return lines

    def _of_methods(self, layer: _Layer, method: str, stage: str) -> dict[str, Any]:
        """Return what a layer's entries of a method and of its bases say of a stage."""
        values: dict[str, Any] = {}
        for name in self._chain("methods", method):
            values |= values_set(getattr(layer.methods.get(name), stage, None))
        return values

    def _chain(self, kind: str, name: str) -> list[str]:
        """Return a name and what it is based on, the root first."""
        chain: list[str] = []
        step: str | None = name
        while step is not None:
            if step in chain:
                raise WmddError(f"{kind}: {' -> '.join([*chain, step])} goes round in a circle")
            chain.append(step)
            entries = [layer.entries(kind)[step] for layer in self._layers[::-1] if step in layer.entries(kind)]
            if not entries:
                near = difflib.get_close_matches(step, self.names(kind), n=1, cutoff=0.0)
                raise WmddError(
                    f"unknown name {step!r} in {kind}; did you mean {near[0]!r}? Known: {', '.join(self.names(kind))}"
                )
            step = next((entry.base for entry in entries if getattr(entry, "base", None)), None)
        return chain[::-1]
