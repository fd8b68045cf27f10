"""What all settings share: their base class, the types of their values, and how they become the flags of a command."""

import shlex
from collections.abc import Collection
from typing import Annotated, Any

from cyclopts import Parameter
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

NAME = r"[A-Za-z0-9][A-Za-z0-9_.+-]*"  # of a dataset, method and so on: a part of a path
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


def _ordered(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError(f"the smaller share first: {value[1]:g} {value[0]:g}")
    return value


Shares = Annotated[tuple[Fraction, Fraction], AfterValidator(_ordered)]


@Parameter(name="*")
class Settings(BaseModel):
    """Base of all settings: immutable; unknown keys are refused, and numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True, allow_inf_nan=False)

    @classmethod
    def unused(cls, values: dict[str, Any]) -> Collection[str]:
        """Return the names of the settings that these values leave without a use."""
        return ()

    @model_validator(mode="before")
    @classmethod
    def _unused_at_default(cls, values: Any) -> Any:
        """Leave settings without a use at their defaults, so that changing them reruns nothing."""
        if not isinstance(values, dict):
            return values
        unused = cls.unused(values)
        return {name: value for name, value in values.items() if name not in unused}


class StartSettings(Settings):
    """Settings of images that are optimised from somewhere, which may be the images of another method."""

    init: str = ""

    @property
    def start(self) -> str:
        """The method whose images are the start, or nothing."""
        return self.init.removeprefix("method:") if self.init.startswith("method:") else ""


def flags(*parts: Settings) -> str:
    """Return settings as sorted command-line flags, so that equal settings are equal text whatever their order in a file.

    What is not set (None) and an empty list have no flag.
    """
    values = {name: value for part in parts for name, value in part.model_dump(mode="json").items()}
    return " ".join(
        _flag(name.replace("_", "-"), values[name]) for name in sorted(values) if values[name] not in (None, [])
    )


def _flag(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    values = value if isinstance(value, list) else [value]
    return f"--{name} {' '.join(shlex.quote(str(v)) for v in values)}"
