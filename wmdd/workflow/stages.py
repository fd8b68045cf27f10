"""The stages of the workflow, a row each: the one list that all others are derived from.

A new stage is a row here, the path of what it makes in `layout.FILES`, a function, a command and a rule. A law in
`wmdd.cost` says what its jobs cost; without one, plans call it unknown.
"""

import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from wmdd.settings.barycenter import BarycenterSettings
from wmdd.settings.base import Settings
from wmdd.settings.data import DataSettings
from wmdd.settings.imported import ImportSettings
from wmdd.settings.latent import (
    AutoencoderSettings,
    DecaySettings,
    DecodeSettings,
    DiffusionSettings,
    EncodeSettings,
    GeneratorSettings,
    QuantizeSettings,
)
from wmdd.settings.match import ExpertSettings, MatchSettings
from wmdd.settings.recover import RecoverSettings
from wmdd.settings.select import SelectSettings
from wmdd.settings.student import RelabelSettings, StudentSettings
from wmdd.settings.teacher import FeaturesSettings, TeacherSettings
from wmdd.workflow.layout import FILES, log_of, wildcards_of

DATASET, TEACHER = ("dataset",), ("dataset", "teacher")
METHOD, GENERATOR = ("dataset", "method"), ("dataset", "generator")
Family = Literal["recover", "select", "latent", "match", "import"]
REAL: tuple[Family, ...] = ("select",)  # the families whose images are real ones: the controls of a table
# The methods that `controls: true` adds: real images at as many steps, few ones drawn at random, and all of them in turn.
CONTROLS = RANDOM, WHOLE = "random", "whole"


@dataclass(frozen=True)
class Stage:
    """A stage, which is a rule and a command of the same name.

    Attributes:
        name: of rule, command, log and row of a table.
        file: the kind of file that it makes, of `layout.FILES`; "" where it makes a report.
        settings: the model of its settings; None where it has none of its own.
        keys: the fields of a cell that its settings depend on.
        families: of the methods whose images it helps to make; empty: of all.
        network: whether it runs a network, on a GPU where there is one.
        section: the stage whose settings and code it uses in place of its own.
        block: whether it makes the images of a block of classes; the blocks are joined to a distilled set.
        after: whether it comes after the images, so that their price leaves it out.
    """

    name: str
    file: str = ""
    settings: type[Settings] | None = None
    keys: tuple[str, ...] = ()
    families: tuple[Family, ...] = ()
    network: bool = False
    section: str = ""
    block: bool = False
    after: bool = False

    @property
    def output(self) -> str:
        """The pattern of the path of what it makes."""
        return FILES[self.file]

    @property
    def wildcards(self) -> tuple[str, ...]:
        """The wildcards of that path."""
        return wildcards_of(self.file) if self.file else ()

    @property
    def log(self) -> str:
        """The pattern of the path of its log."""
        return log_of(self.name, self.output if self.file else "report/")


_ROWS = (
    Stage("data", "data", DataSettings, DATASET),
    Stage("teacher", "teacher", TeacherSettings, TEACHER, network=True),
    Stage("features_part", "features_part", section="features", network=True),
    Stage("gather", "features"),
    Stage("features", "features", FeaturesSettings, DATASET, network=True),
    Stage("autoencoder", "autoencoder", AutoencoderSettings, GENERATOR, ("latent",), network=True),
    Stage("encode", "latents", EncodeSettings, GENERATOR, ("latent",), network=True),
    Stage("diffusion", "diffusion", DiffusionSettings, GENERATOR, ("latent",), network=True),
    Stage("quantize", "quantize", QuantizeSettings, METHOD, ("latent",)),
    Stage("decode", "decode", DecodeSettings, (*GENERATOR, "method"), ("latent",), network=True, block=True),
    Stage("barycenter", "barycenter", BarycenterSettings, METHOD, ("recover", "select")),
    Stage("recover", "recover", RecoverSettings, METHOD, ("recover",), network=True, block=True),
    Stage("expert", "expert", ExpertSettings, ("dataset", "expert"), ("match",), network=True),
    Stage("match", "match", MatchSettings, METHOD, ("match",), network=True, block=True),
    Stage("join", "images", families=("recover", "latent", "match")),
    Stage("select", "images", SelectSettings, METHOD, ("select",), network=True),
    Stage("images", "images", ImportSettings, METHOD, ("import",)),
    Stage("distance", "distance", network=True, after=True),
    Stage("decay", "decay", DecaySettings, GENERATOR, ("latent",), after=True),
    Stage("relabel", "labels", RelabelSettings, (*METHOD, "protocol"), network=True, after=True),
    Stage("student", "student", StudentSettings, (*METHOD, "protocol", "student"), network=True, after=True),
    Stage("grid", "grid", after=True),
    Stage("distances", after=True),
    Stage("report", after=True),
    Stage("embedding", "map", after=True),
    Stage("page", after=True),
    Stage("table", after=True),
    Stage("scoreboard", after=True),
)
STAGES = MappingProxyType({stage.name: stage for stage in _ROWS})
# A generator has settings of its own, which `encode` and `decode` share, but it is no stage.
SETTINGS: MappingProxyType[str, type[Settings]] = MappingProxyType(
    {stage.name: stage.settings for stage in _ROWS if stage.settings} | {"generator": GeneratorSettings}
)
KEYS = MappingProxyType({stage.name: stage.keys for stage in _ROWS if stage.settings} | {"generator": GENERATOR})
NETWORK = tuple(stage.name for stage in _ROWS if stage.network and not stage.section)  # stages that run a network
BLOCKS = tuple(stage.name for stage in _ROWS if stage.block)  # stages that make the blocks of a distilled set
# Stages that make the atoms of a block, which its images match.
ATOMS = tuple(stage.name for stage in _ROWS if {"method", "block"} <= {*stage.wildcards} and not stage.block)
ORDER = tuple(STAGES)
TARGETS = ("all", "figures")  # the rules that make nothing themselves


def stage_of(rule: str) -> str:
    """Return the stage of a rule: the rules `student_10`, `student_20`, ... of one experiment are all students."""
    return rule if rule in STAGES else re.sub(r"_\d+$", "", rule)


def rank(stage: str) -> int:
    """Return the place of a stage in a table; anything else comes last."""
    return ORDER.index(stage) if stage in STAGES else len(ORDER)


def makers_of(file: str) -> tuple[str, ...]:
    """Return the stages that make a kind of file."""
    return tuple(stage.name for stage in _ROWS if stage.file == file)
