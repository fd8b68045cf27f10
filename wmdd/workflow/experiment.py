"""The experiment file: what may stand in it, and how the settings of one stage of one run are resolved from it.

Precedence, weakest first: a setting's default; the presets that come with the package (`presets.yaml` and the datasets of
`datasets.yaml`); the user's file. Within presets and within the file: the stage's own section < the dataset's < the
teacher's < the method's (its base first) < the protocol's (its base first) < the student's.
"""

import difflib
import itertools
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
)

from wmdd.base.errors import WmddError
from wmdd.settings import catalogue
from wmdd.settings.base import NAME, Count, Positive, Settings
from wmdd.settings.engine import EngineSettings, Mode
from wmdd.settings.latent import GeneratorSettings
from wmdd.settings.match import ExpertSettings
from wmdd.settings.network import NetworkSettings
from wmdd.settings.student import RelabelSettings, StudentSettings, WeightsSettings
from wmdd.settings.teacher import TeacherSettings
from wmdd.workflow.layout import RESERVED, Cell, block_of
from wmdd.workflow.stages import KEYS, SETTINGS, STAGES, TARGETS, Family, stage_of

if TYPE_CHECKING:
    from wmdd.cost.rates import Device

NAME_LENGTH = 200  # of the 255 characters that a file system allows, what is left beside suffixes
Name = Annotated[str, Field(pattern=f"^{NAME}$", max_length=NAME_LENGTH)]
Names = Annotated[list[Name], Field(min_length=1)]

LARGEST_WHITENED = 64  # px: wmdd.networks.whitening, which imports torch


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _partial(model: type[Settings], sweep: bool = False) -> Any:
    """Return `model` with every field optional and, if `sweep`, with a list of values allowed for each."""
    fields: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        kind: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
        kind = kind | Annotated[list[kind], Field(min_length=1)] | None if sweep else kind | None
        fields[name] = (kind, Field(None, description=field.description))
    suffix = "Sweep" if sweep else "Overrides"
    return create_model(
        model.__name__.removesuffix("Settings") + suffix, __base__=_Entry, __doc__=model.__doc__, **fields
    )


_OVERRIDES = {stage: (_partial(model) | None, None) for stage, model in SETTINGS.items()}
_OF_METHODS = tuple(stage for stage, keys in KEYS.items() if "method" in keys and "protocol" not in keys)
_SWEEPS = {stage: (_partial(SETTINGS[stage], sweep=True) | None, None) for stage in _OF_METHODS}
# All that a student may know of a method is how much its images count.
_SWEEPS |= {"student": (_partial(WeightsSettings, sweep=True) | None, None)}
_OF_GENERATORS = tuple(stage for stage, keys in KEYS.items() if "generator" in keys and stage != "generator")
_OF_PROTOCOLS = tuple(stage for stage, keys in KEYS.items() if "protocol" in keys)


class _DatasetEntry(_Entry):
    """A dataset: its `data` section, and overrides of any stage for it."""

    classes_per_block: Count | None = Field(
        None,
        description="classes a barycenter or recover job; unless set, as many as take `jobs.minutes`, or have "
        "1000 images where the side of the images or the network's FLOP is not known beforehand",
    )
    features_jobs: Count | None = Field(
        None,
        description="jobs that share a pass over the training set (features, encode), each a range of classes; 1 unless set",
    )


class _TeacherEntry(_Entry):
    """A teacher: overrides of the stage of that name, and how it is trained."""

    gpus: Count | None = Field(
        None, description="processes that train it together, one a GPU; 1 unless set. Changing it reruns nothing"
    )


class _MethodEntry(_Entry):
    """A method: a base and overrides. A list of values is a sweep: one method for each."""

    base: Name | None = Field(None, description="the method whose settings this one starts from")
    family: Family | None = Field(None, description="its chain of rules; inherited from base")
    generator: Name | None = Field(
        None, description="latent: what encodes the images and decodes the atoms; inherited from base"
    )
    expert: Name | None = Field(
        None, description="match, of objective mtt: the experts whose trajectories are matched; inherited from base"
    )


class _GeneratorEntry(_Entry):
    """A generator: its kind and model, and overrides of the stages that train and use it."""

    base: Name | None = Field(None, description="the generator whose settings this one starts from")


class _ExpertEntry(_Entry):
    """Experts: overrides of the stage of that name."""

    base: Name | None = Field(None, description="the experts whose settings these start from")


class _ProtocolEntry(_Entry):
    """How distilled images are labelled and students trained on them."""

    base: Name | None = Field(None, description="the protocol whose settings this one starts from")


def _model(name: str, base: Any, fields: Mapping[str, Any]) -> Any:
    return create_model(name, __base__=base, __doc__=base.__doc__, **fields)


TeacherEntry: Any = create_model(
    "Teacher", __base__=(_TeacherEntry, _partial(TeacherSettings)), __doc__=_TeacherEntry.__doc__
)
_Generator: Any = create_model("Generator", __base__=(_GeneratorEntry, _partial(GeneratorSettings)))
GeneratorEntry: Any = _model("Generator", _Generator, {stage: _OVERRIDES[stage] for stage in _OF_GENERATORS})
ExpertEntry: Any = create_model(
    "Experts", __base__=(_ExpertEntry, _partial(ExpertSettings)), __doc__=_ExpertEntry.__doc__
)
StudentEntry: Any = _partial(NetworkSettings)
DatasetEntry: Any = _model("Dataset", _DatasetEntry, _OVERRIDES)
MethodEntry: Any = _model("Method", _MethodEntry, _SWEEPS)
ProtocolEntry: Any = _model("Protocol", _ProtocolEntry, {stage: _OVERRIDES[stage] for stage in _OF_PROTOCOLS})


class Matrix(_Entry):
    """The product of these lists is run."""

    name: Name | None = Field(
        None, description="of a table of these runs alone, which Snakemake makes as a target of that name"
    )
    datasets: Names
    teachers: Names = ["resnet18"]
    methods: Names
    ipc: list[Count] = Field([1, 10], min_length=1, description="images per class")
    seeds: list[Annotated[int, Field(ge=0)]] = Field([0], min_length=1, description="of the distillation")
    students: Names = ["resnet18"]
    protocols: Names = ["paper"]
    runs: Count = Field(1, description="students trained on each distilled set, with different seeds")


def _devices() -> list[str]:
    from wmdd.cost import rates  # which stands above this module

    return list(rates.table()["devices"])


def _listed(device: str) -> str:
    if device not in _devices():
        raise ValueError(f"there is no such device; known: {', '.join(_devices())}")
    return device


DeviceName = Annotated[
    str, AfterValidator(_listed), Field(json_schema_extra=lambda schema: schema.update(enum=list[Any](_devices())))
]


class Jobs(_Entry):
    """The size of jobs, and the device that it is reckoned for. No result depends on these, nor on where Snakemake runs."""

    minutes: Positive = Field(
        15, description="that recover takes for a block of classes, at most unless a single class takes longer"
    )
    device: DeviceName | None = Field(
        None,
        description="of wmdd/cost/rates.yaml, for which blocks, time limits and memory are reckoned; unless set a100, or with "
        "engine.device cpu a core of a CPU in the engine's precision",
    )


class Tracking(_Entry):
    """wandb; the environment variables WANDB_MODE and WANDB_PROJECT win over these."""

    mode: Literal["offline", "online", "disabled"] = "offline"
    project: str = "wmdd"


def _engine(value: Any) -> Any:
    """Take `engine: plain` for `engine: {mode: plain}`."""
    return {"mode": value} if isinstance(value, str) else value


_EXPERIMENT: dict[str, Any] = {
    "experiment": (Name, Field("wmdd", description="name of the experiment: the group of its runs on the dashboard")),
    "matrix": (list[Matrix], Field([], description="what is run")),
    "teacher_seed": (
        Annotated[int, Field(ge=0)] | Literal["same"],
        Field(0, description="one teacher for all seeds of the distillation, or `same`: one for each"),
    ),
    "runs_per_job": (
        Count,
        Field(
            1,
            description="students of a distilled set that one job trains side by side; matrix.runs is a multiple of it",
        ),
    ),
    "engine": (
        Annotated[EngineSettings, BeforeValidator(_engine, json_schema_input_type=EngineSettings | Mode)],
        EngineSettings(),
    ),
    "distances": (
        bool,
        Field(
            False,
            description="measure W2 of every distilled set to the real data in the teacher's features; of the family latent "
            "always",
        ),
    ),
    "embedding": (
        bool,
        Field(
            False,
            description="draw a map (t-SNE) of real and distilled images in the teacher's features into the report",
        ),
    ),
    "jobs": (Jobs, Jobs()),
    "tracking": (Tracking, Tracking()),
    "datasets": (dict[Name, DatasetEntry], {}),
    "teachers": (dict[Name, TeacherEntry], {}),
    "generators": (dict[Name, GeneratorEntry], {}),
    "experts": (dict[Name, ExpertEntry], {}),
    "methods": (dict[Name, MethodEntry], {}),
    "protocols": (dict[Name, ProtocolEntry], {}),
    "students": (dict[Name, StudentEntry], {}),
}
ExperimentFile: Any = create_model(
    "Experiment", __base__=_Entry, __doc__="An experiment file of wmdd.", **(_EXPERIMENT | _OVERRIDES)
)


def parse(content: Mapping[str, Any], name: str = "configuration") -> Any:
    """Check the content of an experiment file.

    Raises:
        WmddError: one line for the first mistake; for an unknown key it names the nearest known one.
    """
    try:
        # Strict, so that `true` is no number and "1" is none; as JSON, where a list may be a tuple even then.
        return ExperimentFile.model_validate_json(json.dumps(_plain(content)), strict=True)
    except ValidationError as error:
        raise WmddError(f"{name}: {_explain(error)}") from None
    except WmddError as error:
        raise WmddError(f"{name}: {error}") from None


def _plain(value: Any, path: tuple[str, ...] = ()) -> Any:
    """Return the content of a YAML file as JSON has it; a float that is an integer becomes one (`epochs: 50.0`).

    Raises:
        WmddError: YAML reads a key as something else than text, or a value as a date or the like.
    """
    if isinstance(value, Mapping):
        for key in value:
            if not _is_text(key):
                raise WmddError(f"{_dotted((*path, str(key)))}: YAML does not read this key as text; put it in quotes")
        return {str(key): _plain(part, (*path, key)) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part, (*path, str(place))) for place, part in enumerate(value)]
    if isinstance(value, float):
        return int(value) if value.is_integer() and 0 < abs(value) < 2**53 else value
    if value is None or isinstance(value, int) or _is_text(value):
        return value
    raise WmddError(f"{_dotted(path)}: YAML reads {str(value)!r} neither as text nor as a number; put it in quotes")


def _is_text(value: Any) -> bool:
    """Return whether a value is text that a command can take: without a null byte, and no half of a character."""
    return isinstance(value, str) and not re.search("[\0\ud800-\udfff]", value)


def _dotted(path: Iterable[str]) -> str:
    """Return a path as one line of text, whatever a key holds."""
    return repr(".".join(path))[1:-1]


def _explain(error: ValidationError) -> str:
    """Return one line for the first mistake. Where several types are allowed, it speaks for the one that came furthest."""
    mistakes = [(*_follow(each["loc"]), each) for each in error.errors()]
    field = list(mistakes[0][0])
    while field and field[-1].isdigit():
        field.pop()
    about = [m for m in mistakes if m[0][: len(field)] == field and m[2]["type"] != "tuple_type"] or mistakes
    path, model, mistake = max(about, key=lambda m: len(m[0]))
    where = _dotted(path)
    if mistake["type"] == "extra_forbidden":
        known = sorted(model.model_fields)
        nearest = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.0)
        return f"unknown key {where}; did you mean {nearest[0]!r}? Known here: {', '.join(known)}"
    reasons = dict.fromkeys(_reason(m[2]) for m in about if m[0] == path)
    return f"{where}: {', or: '.join(reasons)} (got {mistake['input']!r})"


def _reason(mistake: Any) -> str:
    if mistake["type"] in ("int_type", "float_type") and isinstance(mistake["input"], str):
        return "Input should be a number, but YAML reads this as text; write 0.001 or 1.0e-3, not 1e-3, without quotes"
    message = mistake["msg"].replace("an object", "a mapping of settings").replace("a valid array", "a valid list")
    return str(message.removeprefix("Value error, "))


def _follow(location: tuple[int | str, ...]) -> tuple[list[str], Any]:
    """Return the path of a mistake as the user knows it, and the last model on it.

    Pydantic's names for the members of a union (`constrained-int`) and for a bad key (`[key]`) are left out.
    """
    model: Any = ExperimentFile
    kind: Any = model
    path: list[str] = []
    for part in location:
        members = [member for member in get_args(kind) if member is not type(None)]
        if get_origin(kind) not in (dict, list) and len(members) == 1:  # an optional section
            kind = members[0]
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            model = kind
            kind = kind.model_fields[str(part)].annotation if part in kind.model_fields else None
        elif get_origin(kind) in (dict, list):
            kind = members[-1]
        elif isinstance(part, str):
            continue
        if part != "[key]":
            path.append(str(part))
    return path, model


@cache
def presets() -> Any:
    """Return the datasets, teachers, methods, protocols and students that come with the package."""
    path = Path(__file__).with_name("presets.yaml")
    datasets = {name: entry.settings() for name, entry in catalogue.table().items() if entry.data}
    return parse(yaml.safe_load(path.read_text()) | {"datasets": datasets}, f"{path.name}, datasets.yaml")


def _chosen(entry: BaseModel | None) -> dict[str, Any]:
    """Return what was set in `entry`, without what was left out."""
    if entry is None:
        return {}
    return {k: v for k in type(entry).model_fields if (v := getattr(entry, k)) is not None}


def _expand(methods: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Turn every method that holds lists of values into one method per combination; return them and the names made.

    Each is based on the method without its lists, which keeps its name (and with it a preset of that name).

    Raises:
        WmddError: two methods would have the same name, or one a name too long for a file.
    """
    flat: dict[str, Any] = {}
    sweeps: dict[str, list[str]] = {}
    for name, entry in methods.items():
        content = entry.model_dump(exclude_none=True)
        axes = [
            [(stage, key, value) for value in dict.fromkeys(content[stage].pop(key))]
            for stage in _SWEEPS
            for key, values in _chosen(getattr(entry, stage)).items()
            if isinstance(values, list)
        ]
        made = {name: MethodEntry.model_validate(content)} if axes else {name: entry}
        for point in itertools.product(*axes) if axes else ():
            overrides: dict[str, dict[str, Any]] = {}
            for stage, key, value in point:
                overrides.setdefault(stage, {})[key] = value
            member = "-".join([name, *(f"{key}{_label(value)}" for _, key, value in point)])
            if len(member) > NAME_LENGTH:
                raise WmddError(
                    f"methods.{name}: its sweep makes a name of {len(member)} characters, more than {NAME_LENGTH}: "
                    f"{member[:60]}...; write a method for each value instead"
                )
            if member in made:
                raise WmddError(
                    f"methods.{name}: its sweep makes the name {member} twice; write a method for each value instead"
                )
            made[member] = MethodEntry.model_validate({"base": name, **overrides})
            sweeps.setdefault(name, []).append(member)
        for taken in (flat.keys() | methods.keys() - {name}) & made.keys():
            raise WmddError(f"methods.{name}: its sweep makes {taken}, which stands there already; rename one of them")
        flat |= made
    return flat, sweeps


def _label(value: Any) -> str:
    """Return a value as a part of a name: letters without accents, and `-` for what a name may not have."""
    label = "-".join(str(v).removesuffix(".0") for v in (value if isinstance(value, tuple) else (value,)))
    if re.fullmatch(r"[A-Za-z0-9_.+-]*", label):
        return label
    letters = unicodedata.normalize("NFKD", label).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9_.+-]+", "-", letters).strip("-")


@dataclass(frozen=True)
class _Layer:
    """One source of settings (the presets or the user's file) with its sweeps expanded."""

    content: Any
    methods: dict[str, Any]

    def entry(self, kind: str, name: str) -> Any:
        return self.methods.get(name) if kind == "methods" else getattr(self.content, kind).get(name)


class Experiment:
    """A checked experiment file over the presets; resolves the settings of any stage of any run."""

    def __init__(self, content: Mapping[str, Any], name: str = "configuration") -> None:
        self.file = parse(content, name)
        methods, self.sweeps = _expand(self.file.methods)
        self._layers = [_Layer(presets(), _expand(presets().methods)[0]), _Layer(self.file, methods)]
        self._resolved: dict[tuple[Any, ...], Any] = {}
        self._check()

    @classmethod
    def read(cls, path: Path) -> "Experiment":
        """Read an experiment file (YAML)."""
        try:
            content = yaml.safe_load(path.read_text())
        except OSError as error:
            raise WmddError(f"cannot read the experiment file {path}: {error.strerror}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise WmddError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
        if not isinstance(content, dict):
            found = "nothing" if content is None else f"a {type(content).__name__}"
            raise WmddError(f"{path} must hold a mapping of settings (key: value), but it holds {found}")
        return cls(content, path.name)

    def names(self, kind: str) -> list[str]:
        """Return the known names of a kind: datasets, teachers, methods, protocols or students."""
        layers = [layer.methods if kind == "methods" else getattr(layer.content, kind) for layer in self._layers]
        return sorted(set().union(*layers))

    def runs(self) -> Iterator[Cell]:
        """Yield every cell of the matrix once: one student on one distilled set."""
        seen = set()
        for m in self.file.matrix:
            for run in self._product(m):
                if run not in seen:
                    seen.add(run)
                    yield run

    def named(self) -> dict[str, list[Cell]]:
        """Return the runs of the entries of the matrix that have a name; entries of one name are one table."""
        found: dict[str, dict[Cell, None]] = {}
        for m in self.file.matrix:
            if m.name:
                found.setdefault(m.name, {}).update(dict.fromkeys(self._product(m)))
        return {name: list(runs) for name, runs in found.items()}

    def _product(self, m: Matrix) -> Iterator[Cell]:
        """Yield the cells of an entry of the matrix."""
        methods = [member for name in m.methods for member in self.sweeps.get(name, [name])]
        axes = (m.datasets, m.teachers, methods, m.ipc, m.seeds, m.students, m.protocols, range(m.runs))
        return (Cell(*cell) for cell in itertools.product(*axes))

    def runs_of_jobs(self) -> list[list[int]]:
        """Return the runs that a job trains side by side, for each job of a distilled set."""
        size = self.file.runs_per_job
        most = max((m.runs for m in self.file.matrix), default=1)
        return [list(range(first, first + size)) for first in range(0, most, size)]

    def family(self, method: str) -> str:
        """Return the chain of rules that makes a method's images: recover, select or latent."""
        if found := self._of("methods", method, "family"):
            return str(found)
        raise WmddError(f"method {method} has no family; give it a base, one of {', '.join(self.names('methods'))}")

    def methods(self) -> list[str]:
        """Return the methods whose images are made: those of the matrix, and what they start from."""
        todo = list(dict.fromkeys((r.dataset, r.method) for r in self.runs()))
        for dataset, method in todo:
            if self.family(method) == "recover":
                start = self.resolve("recover", dataset=dataset, method=method).start
                todo += [(dataset, start)] if start and (dataset, start) not in todo else []
        return sorted({method for _, method in todo})

    def generator(self, method: str) -> str:
        """Return the generator of a method of the family latent.

        Raises:
            WmddError: it names none.
        """
        if found := self._of("methods", method, "generator"):
            return str(found)
        raise WmddError(f"method {method} has no generator; set it to one of {', '.join(self.names('generators'))}")

    def expert(self, method: str) -> str:
        """Return the experts whose trajectories a method of the family match needs.

        Raises:
            WmddError: it names none.
        """
        if found := self._of("methods", method, "expert"):
            return str(found)
        raise WmddError(f"method {method} has no experts; set expert to one of {', '.join(self.names('experts'))}")

    def trajectories(self, dataset: str, method: str) -> int:
        """Return how many experts a method of the family match needs on a dataset."""
        settings = self.resolve("match", dataset=dataset, method=method)
        return int(settings.trajectories) if settings.objective == "mtt" else 0

    def encoder(self, generator: str, dataset: str) -> str:
        """Return the generator whose latents a generator decodes: itself, or the one that it is a diffusion model for."""
        settings = self.resolve("generator", dataset=dataset, generator=generator)
        return settings.encoder if settings.kind == "latent-diffusion" else generator

    def labelled(self, dataset: str, method: str, protocol: str) -> str:
        """Return the protocol whose soft labels students of another learn from: the first of its bases that makes the same."""
        wanted = self.resolve("relabel", dataset=dataset, method=method, protocol=protocol)
        return next(
            name
            for name in self._chain("protocols", protocol)
            if self.resolve("relabel", dataset=dataset, method=method, protocol=name) == wanted
        )

    def teacher_seed(self, seed: int) -> int:
        """Return the seed of the teacher used by a distillation with this seed."""
        return seed if self.file.teacher_seed == "same" else int(self.file.teacher_seed)

    def _of(self, kind: str, name: str, key: str) -> Any:
        """Return a setting of the workflow that stands in an entry, or in what it is based on."""
        entries = [layer.entry(kind, each) for layer in self._layers[::-1] for each in self._chain(kind, name)[::-1]]
        return next((getattr(e, key) for e in entries if e is not None and getattr(e, key)), None)

    def gpus(self, teacher: str) -> int:
        """Return on how many GPUs a teacher is trained."""
        return self._of("teachers", teacher, "gpus") or 1

    @cached_property
    def device(self) -> "Device":
        """The device that jobs are sized for, in the precision that the engine computes in on it."""
        from wmdd.cost import rates

        return rates.device_of(self.file.jobs.device, self.file.engine)

    def classes_per_block(self, dataset: str, teacher: str, method: str, ipc: int) -> int:
        """Return how many classes a barycenter or recover job takes: what the dataset says, or `wmdd.cost.blocks`."""
        from wmdd.cost import blocks

        chosen = self._of("datasets", dataset, "classes_per_block")
        return blocks.classes_per_block(self, dataset, teacher, method, ipc, chosen)

    def features_blocks(self, dataset: str) -> list[str]:
        """Return the class blocks of the jobs that share a pass over the training set; one block: no sharing."""
        classes = self.resolve("data", dataset=dataset).classes
        jobs = min(self._of("datasets", dataset, "features_jobs") or 1, classes)
        cuts = [job * classes // jobs for job in range(jobs + 1)]
        return [block_of(a, b - 1) for a, b in itertools.pairwise(cuts)]

    def blocks(self, dataset: str, teacher: str, method: str, ipc: int) -> list[str]:
        """Return the class blocks of a method, e.g. `["classes0-4", "classes5-9"]`."""
        classes = self.resolve("data", dataset=dataset).classes
        size = self.classes_per_block(dataset, teacher, method, ipc)
        return [block_of(a, min(a + size, classes) - 1) for a in range(0, classes, size)]

    def resolve(self, stage: str, **of: str) -> Any:
        """Return the settings of a stage; `of` names its dataset, teacher, generator, expert, method, protocol and student."""
        key = (stage, *sorted(of.items()))
        if key not in self._resolved:
            self._resolved[key] = self._resolve(stage, of)
        return self._resolved[key]

    def settings(self, stage: str, cell: Cell) -> Any:
        """Return the settings of a stage for a cell, which has what they depend on (`stages.KEYS`).

        A cell without a generator or experts has those of its method.
        """
        keys = {key: getattr(cell, key) for key in KEYS[stage]}
        if "generator" in keys and cell.generator is None:
            keys["generator"] = self.generator(cell.method)
        if "expert" in keys and cell.expert is None:
            keys["expert"] = self.expert(cell.method)
        return self.resolve(stage, **keys)

    def cells(self, stage: str, run: Cell) -> list[Cell]:
        """Return the cells whose settings of a stage a run of the matrix depends on: none, where it does without the stage.

        The generators and experts of its method are filled in.
        """
        families = STAGES[stage].families if stage in STAGES else ("latent",)
        if families and self.family(run.method) not in families:
            return []
        if "expert" in KEYS[stage]:
            used = self.trajectories(run.dataset, run.method)
            return [run.having(expert=self.expert(run.method))] if used else []
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

    def replaced(self) -> list[str]:
        """Say which settings of the presets of methods the file's more general sections replace, a line each.

        A file wins over presets, so that the lambda of a dataset, meant for WMDD, is SRe2L's, too.
        """
        presets, file = self._layers
        found = []
        for dataset, method in dict.fromkeys((run.dataset, run.method) for run in self.runs()):
            chain = self._chain("methods", method)
            for stage in _OF_METHODS:
                preset, own = (
                    {
                        k: v
                        for each in chain
                        for k, v in _chosen(getattr(layer.entry("methods", each), stage, None)).items()
                    }
                    for layer in (presets, file)
                )
                now = self.resolve(stage, dataset=dataset, method=method).model_dump() if preset else {}
                for key in (k for k in preset if k not in own and now[k] != preset[k]):
                    remedy = f"to choose, say methods: {{{method}: {{{stage}: {{{key}: ...}}}}}}"
                    found.append(
                        f"{method} on {dataset}: {stage}.{key} is {now[key]} by a general section of the file, in place of "
                        f"the preset's {preset[key]}; {remedy}"
                    )
        return found

    def _resolve(self, stage: str, of: Mapping[str, str]) -> Any:
        merged: dict[str, Any] = {}
        for layer in self._layers:
            merged |= _chosen(getattr(layer.content, stage))
            for kind in ("dataset", "teacher", "generator", "expert", "method", "protocol", "student"):
                for name in self._chain(kind + "s", of[kind]) if kind in of else ():
                    merged |= _chosen(self._section(layer.entry(kind + "s", name), kind, stage))
        known = SETTINGS[stage].model_fields  # entries have keys of the workflow beside those of the stage
        try:
            return SETTINGS[stage](**{name: value for name, value in merged.items() if name in known})
        except ValidationError as error:
            raise WmddError(f"settings of {stage} for {', '.join(of.values())}: {_explain(error)}") from None

    def _check_device(self) -> None:
        """Refuse jobs that are sized for a kind of device that the engine is told not to use."""
        wanted, kind = self.file.engine.device, self.device.kind
        if wanted not in ("auto", kind):
            remedy = "leave jobs.device out, or change one of them"
            raise WmddError(f"jobs.device {self.device.name} is of kind {kind} but engine.device is {wanted}; {remedy}")

    def _check_latent(self, dataset: str, method: str) -> None:
        """Refuse a method whose latents, atoms or decoder can't be made."""
        name, where = self.generator(method), f"method {method} on {dataset}: "
        settings = self.resolve("generator", dataset=dataset, generator=name)
        settings.check(f"{where}generator {name}: ")
        if settings.kind == "ldm":
            self._check_model(settings, self.resolve("data", dataset=dataset).side, f"{where}generator {name}: ")
        encoder = self.encoder(name, dataset)
        kind = self.resolve("generator", dataset=dataset, generator=encoder).kind
        if encoder != name and kind != "vae":
            raise WmddError(f"{where}generator {name}: its encoder {encoder} is of kind {kind}; name one of kind vae")
        for stage in _OF_GENERATORS:
            self.resolve(stage, dataset=dataset, generator=name, method=method)
        self.resolve("quantize", dataset=dataset, method=method).check(f"{where}quantize: ")

    def _check_match(self, dataset: str, method: str) -> None:
        """Refuse a method whose network can't be matched, or whose experts are too short."""
        settings, where = self.resolve("match", dataset=dataset, method=method), f"method {method} on {dataset}: "
        if self.trajectories(dataset, method):
            name = self.expert(method)
            experts = self.resolve("expert", dataset=dataset, expert=name)
            experts.check(f"{where}experts {name}: ")
            self._check_whiten(dataset, experts.whiten, f"{where}experts {name}: ")
            needed = settings.start_epochs - 1 + settings.expert_epochs
            if needed > experts.epochs:
                raise WmddError(
                    f"{where}match begins at up to {settings.start_epochs - 1} epochs of an expert and goes on for "
                    f"{settings.expert_epochs}, but the experts {name} have {experts.epochs}; raise their epochs to {needed}"
                )
        else:
            settings.check(f"{where}match: ")

    def _check_whiten(self, dataset: str, whiten: bool, where: str) -> None:
        """Refuse whitened images that are too large for it, as far as their side is known."""
        side = self.resolve("data", dataset=dataset).side
        if whiten and side > LARGEST_WHITENED:
            raise WmddError(
                f"{where}whitening takes images of at most {LARGEST_WHITENED} px, not of {side} px; set whiten: false"
            )

    @staticmethod
    def _check_model(settings: GeneratorSettings, side: int, where: str) -> None:
        """Refuse a pipeline that is not there, or not whole; of a hub id nothing is asked here."""
        from wmdd.generators import pipeline_folder

        try:
            pipeline_folder.check(settings, side or settings.size)
        except WmddError as error:
            raise WmddError(f"{where}{error}") from None

    def _check_start(self, dataset: str, method: str) -> None:
        """Refuse a method that would start from itself, through others or not."""
        chain = [method]
        while self.family(chain[-1]) == "recover":
            start = self.resolve("recover", dataset=dataset, method=chain[-1]).start
            if not start:
                return
            if start in chain:
                raise WmddError(
                    f"method {method} on {dataset}: recover.init goes round: {' -> '.join([*chain, start])}"
                )
            chain.append(start)
            if self.family(start) == "latent":
                self._check_latent(dataset, start)
            if self.family(start) == "match":
                self._check_match(dataset, start)

    @staticmethod
    def _section(entry: Any, kind: str, stage: str) -> Any:
        if kind == stage or kind in (
            "teacher",
            "expert",
            "student",
        ):  # flat entries that belong to the stage of the same name
            return entry if kind == stage else None
        return getattr(entry, stage, None)

    def _chain(self, kind: str, name: str) -> list[str]:
        """Return a name and what it is based on, the root first."""
        chain: list[str] = []
        step: str | None = name
        while step is not None:
            if step in chain:
                raise WmddError(f"{kind}: {' -> '.join([*chain, step])} goes round in a circle")
            chain.append(step)
            entries = [layer.entry(kind, step) for layer in self._layers[::-1]]
            if not any(entries):
                near = difflib.get_close_matches(step, self.names(kind), n=1, cutoff=0.0)
                raise WmddError(
                    f"unknown name {step!r} in {kind}; did you mean {near[0]!r}? Known: {', '.join(self.names(kind))}"
                )
            step = next((e.base for e in entries if e is not None and getattr(e, "base", None)), None)
        return chain[::-1]

    def _check(self) -> None:
        """Resolve every run once, so that a mistake shows before anything is computed."""
        for kind, name in ((kind, name) for kind, names in RESERVED.items() for name in names):
            if name in self.names(kind):
                raise WmddError(f"{kind}.{name}: the name is taken; choose another")
        self._check_device()
        for name in self.named():
            if stage_of(name) in (*STAGES, *TARGETS):
                raise WmddError(f"matrix: the name {name} is that of a rule; choose another")
        for m in self.file.matrix:
            if m.runs % self.file.runs_per_job:
                raise WmddError(
                    f"matrix: runs {m.runs} is not a multiple of runs_per_job {self.file.runs_per_job}; change one of them"
                )
        for name, entry in self.file.methods.items():
            if entry.base in self.sweeps and entry.base not in presets().methods:
                members = ", ".join(self.sweeps[entry.base])
                raise WmddError(f"methods.{name}: its base {entry.base} is a sweep; name one of its members: {members}")
        for d, t in sorted({(r.dataset, r.teacher) for r in self.runs()}):
            _check_teacher(self.resolve("teacher", dataset=d, teacher=t), f"teacher {t} on {d}: ")
        for d, m, p, s in sorted({(r.dataset, r.method, r.protocol, r.student) for r in self.runs()}):
            for stage in ("data", "features"):
                self.resolve(stage, dataset=d)
            solver, recover, _ = (self.resolve(s, dataset=d, method=m) for s in ("barycenter", "recover", "select"))
            if self.family(m) == "recover" and recover.feature_weight > 0:
                solver.check(f"barycenter for {d}, {m}: ")
            if self.family(m) == "latent":
                self._check_latent(d, m)
            if self.family(m) == "match":
                self._check_match(d, m)
            self._check_start(d, m)
            labels = self.resolve("relabel", dataset=d, method=m, protocol=p)
            student = self.resolve("student", dataset=d, method=m, protocol=p, student=s)
            self._check_whiten(d, student.whiten, f"protocol {p} on {d}: ")
            if student.labels == "soft":
                _check_labels(labels, student, f"protocol {p} on {d}: ")


def _check_teacher(settings: TeacherSettings, where: str) -> None:
    if settings.weights:
        from wmdd.networks.checkpoint_file import check

        try:
            check(settings)
        except WmddError as error:
            raise WmddError(f"{where}{error}") from None


def _check_labels(labels: RelabelSettings, student: StudentSettings, where: str) -> None:
    if labels.store != "online" and student.epochs > labels.epochs:
        raise WmddError(
            f"{where}student.epochs {student.epochs} exceeds relabel.epochs {labels.epochs}; raise the latter"
        )
    if labels.store == "pruned" and student.temperature != labels.temperature:
        raise WmddError(
            f"{where}the labels are pruned for relabel.temperature {labels.temperature:g} but student.temperature is "
            f"{student.temperature:g}; make them agree"
        )


def schema() -> dict[str, Any]:
    """Return the JSON schema of experiment files (draft 2020-12)."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | ExperimentFile.model_json_schema()
