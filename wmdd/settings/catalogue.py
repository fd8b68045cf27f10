"""The datasets that are known by name: where their pictures come from and the settings that go with them (`datasets.yaml`)."""

import difflib
from collections.abc import Mapping
from functools import cache
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from wmdd.base.errors import WmddError

Text = Annotated[str, Field(min_length=1)]
Section = dict[str, Any]  # settings of a stage, checked in wmdd.workflow.experiment with everyone else's


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class Archive(_Entry):
    """A published file, which unpacks to a folder."""

    name: Text
    url: str = Field("", description="where it can be fetched; empty: only by hand, behind a form")
    size: int = Field(0, ge=0, description="bytes; 0: not known")
    sha256: str = Field("", pattern=r"^([0-9a-f]{64})?$")
    md5: str = Field("", pattern=r"^([0-9a-f]{32})?$")
    folder: str = Field("", description="its top folder; empty: it is read as it is")

    @field_validator("name", "folder")
    @classmethod
    def _plain(cls, value: str) -> str:
        if value and (PurePosixPath(value).name != value or value in (".", "..")):
            raise ValueError("the name of a file or folder, without a path")
        return value

    @property
    def checksum(self) -> tuple[str, str]:
        """The best checksum that is known: the algorithm's name in `hashlib`, and the digest; both empty if none is."""
        kinds = ("sha256", self.sha256), ("md5", self.md5)
        return next((kind for kind in kinds if kind[1]), ("", ""))


class Rows(_Entry):
    """CIFAR's binary files: rows of label bytes, the last of which counts, and 3072 pixels."""

    train: tuple[Text, ...] = Field(min_length=1)
    test: tuple[Text, ...] = Field(min_length=1)
    classes: Text = Field(description="the file that names the classes")
    label_bytes: int = Field(ge=1)


class Known(_Entry):
    """A dataset of the table. What it has beside these fields are settings of stages, by stage."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, Section]

    title: Text
    homepage: str = ""
    licence: str = Field("", description="one line")
    layout: Literal["digits", "cifar", "folders", "tiny-imagenet", "imagenet"]
    variant: Text = Field(description="which of the things that go by this name it is, for the report")
    archives: tuple[Archive, ...] = ()
    subset: tuple[Text, ...] = Field((), description="the class folders that are kept; empty: all")
    rows: Rows | None = None
    data: Section = {}
    classes_per_block: int | None = None

    @model_validator(mode="after")
    def _whole(self) -> "Known":
        if (self.layout == "cifar") != (self.rows is not None):
            raise ValueError("rows belong to the layout cifar")
        if len(set(self.subset)) != len(self.subset):
            raise ValueError("a class stands twice in subset")
        return self

    def archive(self, suffix: str) -> Archive:
        """Return the archive whose name ends so."""
        return next(archive for archive in self.archives if archive.name.endswith(suffix))

    def pictures(self) -> str:
        """Return what decides which pictures it has, as JSON; settings come as flags, and addresses decide nothing."""
        archives = {"__all__": {"name", "sha256", "md5", "folder"}}
        return self.model_dump_json(include={"layout": True, "subset": True, "rows": True, "archives": archives})

    def settings(self) -> dict[str, Any]:
        """Return the entry of `datasets:` in an experiment file that this stands for."""
        entry = {"data": self.data, "classes_per_block": self.classes_per_block} | (self.model_extra or {})
        return {name: dict(value) if isinstance(value, dict) else value for name, value in entry.items() if value}


@cache
def table() -> Mapping[str, Known]:
    """Return the datasets that come with the package, by name."""
    content = yaml.safe_load(Path(__file__).with_name("datasets.yaml").read_text(encoding="utf-8"))
    return MappingProxyType({source: Known.model_validate(entry) for source, entry in content.items()})


def known(source: str) -> Known:
    """Return one dataset of the table.

    Raises:
        WmddError: there is none of this name; names the nearest.
    """
    if source in table():
        return table()[source]
    near = difflib.get_close_matches(source, table(), n=1, cutoff=0.0)
    raise WmddError(f"unknown source {source!r}; did you mean {near[0]!r}? Known: {', '.join(table())}")
