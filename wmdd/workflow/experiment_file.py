"""The experiment file: which keys may stand in it and which values they take, made from the settings of the stages.

What the values mean together is resolved in `wmdd.workflow.experiment`.
"""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model, field_validator

from wmdd.base.errors import WmddError, one_line
from wmdd.settings import catalogue
from wmdd.settings.base import NAME, Count, Positive, Settings
from wmdd.settings.engine import EngineSettings, Mode
from wmdd.settings.latent import GeneratorSettings
from wmdd.settings.match import ExpertSettings
from wmdd.settings.network import NetworkSettings
from wmdd.settings.student import WeightsSettings
from wmdd.settings.teacher import TeacherSettings
from wmdd.workflow import strict_yaml
from wmdd.workflow.mistakes import as_json, first_mistake
from wmdd.workflow.stages import KEYS, SETTINGS, STAGES, Family

NAME_LENGTH = 200  # of the 255 characters that a file system allows, what is left beside suffixes
Name = Annotated[str, Field(pattern=f"^{NAME}$", max_length=NAME_LENGTH)]
Names = Annotated[list[Name], Field(min_length=1)]
Tag = Annotated[str, Field(pattern="^[^,]+$", max_length=64)]  # wandb's limit; WANDB_TAGS joins them with commas

METHOD_STAGES = tuple(stage for stage, keys in KEYS.items() if "method" in keys and "protocol" not in keys)
SWEPT_STAGES = (*METHOD_STAGES, "student")
GENERATOR_STAGES = tuple(stage for stage, keys in KEYS.items() if "generator" in keys and stage != "generator")
PROTOCOL_STAGES = tuple(stage for stage, keys in KEYS.items() if "protocol" in keys)


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)


def _overrides(model: type[Settings], sweep: bool = False) -> Any:
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


def _with_sections(base: Any, sections: Mapping[str, Any]) -> Any:
    """Return a model with an optional section for each stage."""
    fields: dict[str, Any] = {stage: (section | None, None) for stage, section in sections.items()}
    return create_model("Sections", __base__=base, **fields)


_OVERRIDES = {stage: _overrides(model) for stage, model in SETTINGS.items()}
_SWEEPS = {stage: _overrides(SETTINGS[stage], sweep=True) for stage in METHOD_STAGES}
_SWEEPS["student"] = _overrides(WeightsSettings, sweep=True)  # a method decides only how much its images count

_OfAllStages: Any = _with_sections(_Entry, _OVERRIDES)
_OfMethodStages: Any = _with_sections(_Entry, _SWEEPS)
_OfProtocolStages: Any = _with_sections(_Entry, {stage: _OVERRIDES[stage] for stage in PROTOCOL_STAGES})
_OfGenerator: Any = _with_sections(
    _overrides(GeneratorSettings), {stage: _OVERRIDES[stage] for stage in GENERATOR_STAGES}
)
_OfTeacher: Any = _overrides(TeacherSettings)
_OfExpert: Any = _overrides(ExpertSettings)
StudentEntry: Any = _overrides(NetworkSettings)


class DatasetEntry(_OfAllStages):
    """A dataset: its `data` section, and overrides of any stage for it."""

    classes_per_block: Count | None = Field(
        None,
        description="classes of a barycenter or recover job; unless set, as many as take `jobs.minutes`, or 1000 images' "
        "worth where the side of the images or the network's FLOP is not known beforehand",
    )
    features_jobs: Count | None = Field(
        None,
        description="jobs that share a pass over the training set (features, encode), each a range of classes; 1 unless set",
    )


class TeacherEntry(_OfTeacher):
    """A teacher: overrides of the stage of that name, and how it is trained."""

    gpus: Count | None = Field(
        None, description="processes that train it together, one a GPU; 1 unless set. Changing it reruns nothing"
    )


class GeneratorEntry(_OfGenerator):
    """A generator: its kind and model, and overrides of the stages that train and use it."""

    base: Name | None = Field(None, description="the generator whose settings this one starts from")


class ExpertEntry(_OfExpert):
    """Experts: overrides of the stage of that name."""

    base: Name | None = Field(None, description="the experts whose settings these start from")


class MethodEntry(_OfMethodStages):
    """A method: a base and overrides. A list of values is a sweep: one method for each."""

    base: Name | None = Field(None, description="the method whose settings this one starts from")
    family: Family | None = Field(None, description="its chain of rules; inherited from base")
    generator: Name | None = Field(
        None, description="latent: what encodes the images and decodes the atoms; inherited from base"
    )
    expert: Name | None = Field(
        None, description="match, of objective mtt: the experts whose trajectories are matched; inherited from base"
    )


class ProtocolEntry(_OfProtocolStages):
    """How distilled images are labelled and students trained on them."""

    up_to_64px: _OfProtocolStages | None = Field(
        None, description="what differs where the side of the data's images is known to be at most 64 pixels"
    )
    up_to_32px: _OfProtocolStages | None = Field(None, description="what differs from that at up to 32 pixels")
    base: Name | None = Field(None, description="the protocol whose settings this one starts from")


class Matrix(_Entry):
    """The product of these lists is run."""

    name: Name | None = Field(
        None, description="of a table of these runs alone, which Snakemake makes as a target of that name"
    )
    datasets: Names
    teachers: Names = ["resnet18"]
    methods: Names
    controls: bool = Field(
        False,
        description="run `random` and `whole` beside the methods: as many real images, and the whole training set, for the "
        "steps that a distilled set of this size gets",
    )
    ipc: list[Count] = Field([1, 10], min_length=1, description="images per class")
    seeds: list[Annotated[int, Field(ge=0)]] = Field([0], min_length=1, description="of the distillation")
    students: Names = ["resnet18"]
    protocols: Names = ["paper"]
    runs: Count = Field(1, description="students trained on each distilled set, with different seeds")


class Jobs(_Entry):
    """How large jobs are, and for which device that is estimated. No result depends on these, nor on where Snakemake runs."""

    minutes: Positive = Field(
        15, description="that recover takes for a block of classes, at most unless a single class takes longer"
    )
    device: str | None = Field(
        None,
        description="of wmdd/cost/rates.yaml, for which blocks, time limits and memory are estimated; unless set a100, or "
        "with engine.device cpu a core of a CPU in the engine's precision",
    )


class Tracking(_Entry):
    """wandb; its environment variables, such as WANDB_MODE and WANDB_TAGS, win over these."""

    mode: Literal["offline", "online", "disabled"] = "offline"
    project: str = "wmdd"
    entity: str | None = Field(None, description="the user or team whose project it is; unless set, that of the key")
    tags: list[Tag] = Field([], description="of every run; no commas")
    notes: str = Field("", description="a text beside every run")
    stages: list[str] | None = Field(None, description="the stages whose jobs are runs; null: all of them")
    code: bool = Field(False, description="upload the sources of wmdd too, once an experiment, with its scoreboard")

    @field_validator("stages")
    @classmethod
    def _are_stages(cls, names: list[str] | None) -> list[str] | None:
        for name in names or []:
            if name not in STAGES:
                raise ValueError(f"there is no stage {name!r}; stages are {', '.join(STAGES)}")
        return names

    def follows(self, stage: str) -> bool:
        """Return whether the jobs of a stage are runs."""
        return self.mode != "disabled" and (self.stages is None or stage in self.stages)

    def environment(self) -> dict[str, str]:
        """Return the environment variables that tell jobs of this: wandb's own, and those of `wmdd.tracking.tracker`."""
        stages = None if self.stages is None else " ".join(self.stages)
        variables = {
            "WANDB_MODE": self.mode,
            "WANDB_PROJECT": self.project,
            "WANDB_ENTITY": self.entity or None,
            "WANDB_TAGS": ",".join(self.tags) or None,
            "WANDB_NOTES": self.notes or None,
            "WMDD_TRACKED_STAGES": stages,
            "WMDD_TRACKED_CODE": "1" if self.code else None,
        }
        return {name: value for name, value in variables.items() if value is not None}


class Report(_Entry):
    """What the page of results is told beside the results. Changing it reruns that page alone."""

    price_per_gpu_hour: Positive | None = Field(
        None, description="what an hour of a GPU costs; the page then has the money beside the GPU-hours"
    )
    currency: Annotated[str, Field(min_length=1)] = Field("USD", description="of that price, as the page writes it")


def _engine(value: Any) -> Any:
    """Take `engine: plain` for `engine: {mode: plain}`."""
    return {"mode": value} if isinstance(value, str) else value


class ExperimentFile(_OfAllStages):
    """An experiment file of wmdd."""

    experiment: Name = Field("wmdd", description="name of the experiment: the group of its runs on the dashboard")
    matrix: list[Matrix] = Field([], description="what is run")
    teacher_seed: Annotated[int, Field(ge=0)] | Literal["same"] = Field(
        0, description="one teacher for all seeds of the distillation, or `same`: one for each"
    )
    runs_per_job: Count = Field(
        1, description="students of a distilled set that one job trains side by side; matrix.runs is a multiple of it"
    )
    engine: Annotated[EngineSettings, BeforeValidator(_engine, json_schema_input_type=EngineSettings | Mode)] = (
        EngineSettings()
    )
    delete_blocks: bool = Field(
        False,
        description="delete the blocks of features and of images once they are joined, so that a set is on disk once",
    )
    distances: bool = Field(
        False,
        description="measure W2 of every distilled set to the real data in the teacher's features, and find the nearest "
        "real image of each distilled one, which the page shows; always done for the family latent",
    )
    embedding: bool = Field(
        False, description="draw a map (t-SNE) of real and distilled images in the teacher's features into the report"
    )
    jobs: Jobs = Jobs()
    tracking: Tracking = Tracking()
    report: Report = Report()
    datasets: dict[Name, DatasetEntry] = Field({})
    teachers: dict[Name, TeacherEntry] = Field({})
    generators: dict[Name, GeneratorEntry] = Field({})
    experts: dict[Name, ExpertEntry] = Field({})
    methods: dict[Name, MethodEntry] = Field({})
    protocols: dict[Name, ProtocolEntry] = Field({})
    students: dict[Name, StudentEntry] = Field({})


def parse(content: Mapping[str, Any], name: str = "configuration") -> Any:
    """Check the content of an experiment file.

    Raises:
        WmddError: one line for the first mistake; for an unknown key it names the nearest known one.
    """
    try:
        # Strict, so that `true` is no number and "1" is none; as JSON, where a list may be a tuple even then.
        return ExperimentFile.model_validate_json(json.dumps(as_json(content)), strict=True)
    except ValidationError as error:
        raise WmddError(f"{name}: {first_mistake(error, ExperimentFile)}") from None
    except WmddError as error:
        raise WmddError(f"{name}: {error}") from None


def read(path: Path) -> dict[str, Any]:
    """Return the content of an experiment file (YAML), unchecked.

    Raises:
        WmddError: there is no such file, or it holds no mapping in YAML that is what it looks like (`strict_yaml`).
    """
    try:
        content = strict_yaml.parsed(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WmddError(f"cannot read the experiment file {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise WmddError(f"{path} is not valid YAML: {one_line(error)}") from None
    except WmddError as error:
        raise WmddError(f"{path} {error}") from None
    if not isinstance(content, dict):
        kind = "nothing" if content is None else f"a {type(content).__name__}"
        raise WmddError(f"{path} must hold a mapping of settings (key: value), but it holds {kind}")
    return content


@cache
def presets() -> Any:
    """Return the entries that come with the package: datasets, teachers, generators, experts, methods, protocols, students."""
    path = Path(__file__).with_name("presets.yaml")
    datasets = {name: entry.settings() for name, entry in catalogue.table().items() if entry.data}
    return parse(
        strict_yaml.parsed(path.read_text(encoding="utf-8")) | {"datasets": datasets}, f"{path.name}, datasets.yaml"
    )


def values_set(entry: BaseModel | None) -> dict[str, Any]:
    """Return what is set in an entry or a section, without what is left out."""
    return {} if entry is None else {key: value for key, value in entry if value is not None}


def schema() -> dict[str, Any]:
    """Return the JSON schema of experiment files (draft 2020-12)."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | ExperimentFile.model_json_schema()
