"""Published results, to stand beside ours: config/published.yaml, checked, as one row a number."""

from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from wmdd.base.errors import WmddError, first_mistake, one_line

COLUMNS = ["dataset", "method", "ipc", "student", "labels", "protocol", "published", "table", "source", "url"]
KEY = COLUMNS[:6]  # what must agree for two numbers to stand side by side
Percent = Annotated[float, Field(ge=0, le=100)]
Kind = Literal["paper", "quoted", "repository", "secondary"]
KINDS: dict[Kind, str] = {
    "paper": "the paper's own table",
    "quoted": "quoted there from other papers",
    "repository": "from its authors' repository",
    "secondary": "read in a secondary source, not checked",
}


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Source(_Model):
    """Where numbers are from."""

    title: str
    url: str = ""


class Dataset(_Model):
    """A published dataset, and which of ours are comparable with it."""

    ours: list[str] = Field(alias="as")


class Block(_Model):
    """Some numbers of one table: a list over `ipc` for each method."""

    source: str
    kind: Kind = Field(description="how the numbers came into the file")
    dataset: str
    student: str = "resnet18"
    protocol: str = Field(description="one of ours, or in words whose it is")
    labels: Literal["soft", "hard"]
    ipc: list[int]
    table: Literal["main", "ablation", "architectures"] = "main"
    methods: dict[str, list[Percent | None]]
    full: Percent | None = Field(None, description="accuracy on the whole training set")

    @model_validator(mode="after")
    def _complete(self) -> "Block":
        for method, values in self.methods.items():
            if len(values) != len(self.ipc):
                raise ValueError(f"{method} has {len(values)} numbers for {len(self.ipc)} numbers of images per class")
        return self


class Published(_Model):
    """The whole file."""

    datasets: dict[str, Dataset]
    sources: dict[str, Source]
    results: list[Block]

    @model_validator(mode="after")
    def _defined(self) -> "Published":
        for block in self.results:
            if block.source not in self.sources:
                raise ValueError(f"there is no source {block.source}; known: {', '.join(self.sources)}")
            if block.dataset not in self.datasets:
                raise ValueError(f"there is no dataset {block.dataset}; known: {', '.join(self.datasets)}")
        return self


def read(path: Path) -> pd.DataFrame:
    """Return the numbers of a file, a row each, for every one of our datasets that is comparable (columns: `COLUMNS`).

    Raises:
        WmddError: the file cannot be read or is not as it should be.
    """
    try:
        content = Published.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise WmddError(f"cannot read the published numbers {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise WmddError(f"{path} is not valid YAML: {one_line(error)}") from None
    except ValidationError as error:
        raise WmddError(f"{path}: {first_mistake(error)}; correct it") from None
    rows = [row for block in content.results for row in _rows(content, block)]
    return pd.DataFrame(rows, columns=COLUMNS).sort_values([*KEY, "table"], ignore_index=True)


def _rows(content: Published, block: Block) -> list[dict[str, Any]]:
    source = content.sources[block.source]
    common = {"student": block.student, "labels": block.labels, "protocol": block.protocol, "table": block.table}
    common |= {"source": f"{source.title}: {KINDS[block.kind]}", "url": source.url}
    return [
        common | {"dataset": ours, "method": method, "ipc": ipc, "published": value}
        for ours in content.datasets[block.dataset].ours
        for method, values in block.methods.items()
        for ipc, value in zip(block.ipc, values, strict=True)
        if value is not None
    ]


def beside(summary: pd.DataFrame, published: pd.DataFrame) -> pd.DataFrame:
    """Return our summary with the columns published, source and url, NaN where nothing is published under the same key.

    Numbers under others' protocols stand beside none of ours: no name of ours has a blank or an apostrophe, as theirs do.
    """
    numbers = published.drop_duplicates(KEY)[[*KEY, "published", "source", "url"]]
    return summary.merge(numbers, on=KEY, how="left")
