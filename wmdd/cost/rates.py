"""Rates: how fast a device runs each stage, where that was measured, and what it can do at most (rates.yaml)."""

import json
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from wmdd.base.errors import WmddError, first_mistake
from wmdd.settings.base import Count, Positive
from wmdd.settings.engine import EngineSettings
from wmdd.workflow.stages import NETWORK


@cache
def table() -> Any:
    """Return what was measured, and what the data sheets say."""
    return yaml.safe_load(Path(__file__).with_name("rates.yaml").read_text(encoding="utf-8"))


def _rated(rates: dict[str, dict[int, float]]) -> dict[str, dict[int, float]]:
    if unknown := sorted(rates.keys() - set(NETWORK)):
        raise ValueError(f"no stage {unknown[0]!r} runs a network; give rates of {', '.join(NETWORK)}")
    return {stage: measured for stage, measured in rates.items() if measured}


class Peak(BaseModel):
    """What a device can do at most: FLOP/s as it usually computes and in other precisions, bytes/s of its memory."""

    flops: Positive
    bytes_per_s: Positive
    fp32: Positive | None = None
    tf32: Positive | None = None


class Device(BaseModel):
    """A CPU core or a GPU."""

    model_config = ConfigDict(frozen=True)

    name: str  # as it is asked for
    machine: str  # what it is
    kind: Literal["cpu", "cuda"] = Field(alias="device")
    peak: Peak
    rates: Annotated[
        dict[str, dict[Count, Positive]], AfterValidator(_rated)
    ] = {}  # FLOP/s by stage and side in pixels
    preliminary: tuple[str, ...] = ()  # stages whose rates are to be measured again
    width: Count = 64  # of the network that the rates are of
    narrow: float = 0.0  # exponent by which they fall for narrower ones

    def computing(self, precision: str) -> "Device":
        """Return the device in a precision whose peak the data sheet tells; else as it is.

        Rates that were measured are of the usual precision, so they don't count for another.
        """
        if (flops := getattr(self.peak, precision, None)) is None:
            return self
        return self.model_copy(update={"peak": self.peak.model_copy(update={"flops": flops}), "rates": {}})

    def rate(self, stage: str, resolution: int, width: int = 0) -> tuple[float, str]:
        """Return the FLOP/s of a stage, and how they are known: measured, scaled (to a width), preliminary or assumed.

        That of the resolution nearest in logarithm. A stage of which nothing was measured takes the slowest that was, or
        `share` of the peak.

        Args:
            stage: one of `NETWORK`.
            resolution: side of the images; 0 if it is not known.
            width: of the network; 0 where it has none.
        """
        factor = min(1.0, width / self.width) ** self.narrow if width else 1.0
        if stage in self.rates:
            how = "preliminary" if stage in self.preliminary else "measured" if factor == 1 else "scaled"
            return factor * nearest(self.rates[stage], resolution), how
        measured = [nearest(rates, resolution) for rates in self.rates.values()]
        return factor * min(measured) if measured else table()["share"] * self.peak.flops, "assumed"


def nearest(rates: Mapping[int, float], resolution: int) -> float:
    """Return the entry of the resolution nearest in logarithm; NaN where that is 0, not known."""
    return rates[min(rates, key=lambda known: abs(math.log(known / resolution)))] if resolution else math.nan


@cache
def device(name: str) -> Device:
    """Return a device of the table.

    Raises:
        WmddError: there is none of this name.
    """
    known = table()["devices"]
    if name not in known:
        raise WmddError(f"unknown device {name!r}; known: {', '.join(known)}; for one of your own give --rates FILE")
    return Device.model_validate(known[name] | {"name": name})


def device_of(name: str | None, engine: EngineSettings) -> Device:
    """Return the device `jobs.device`, or else the usual one of an engine, in the precision that the engine computes in on it.

    Raises:
        WmddError: there is none of this name, or it is of a kind that the engine is told not to use.
    """
    if name is not None and name not in (names := table()["devices"]):
        raise WmddError(f"jobs.device: there is no device {name!r}; known: {', '.join(names)}")
    exact = engine.precision == "fp32" or (engine.mode == "plain" and engine.precision == "auto")
    core = "cpu-core-fp32" if exact else "cpu-core"
    chosen = device(name or (core if engine.device == "cpu" else "a100"))
    if engine.device not in ("auto", chosen.kind):
        remedy = "leave jobs.device out, or change one of them"
        raise WmddError(f"jobs.device {name} is of kind {chosen.kind} but engine.device is {engine.device}; {remedy}")
    return chosen.computing("fp32" if exact else engine.precision)


def read(path: Path) -> Device:
    """Read the rates of a machine of one's own (JSON; docs/use/cost.md has the shape).

    Raises:
        WmddError: the file can't be read, or is not of that shape.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Device.model_validate(content | {"name": path.stem} if isinstance(content, dict) else content)
    except OSError as error:
        raise WmddError(f"cannot read the rates {path}: {error.strerror}") from None
    except ValidationError as error:
        fault = f"does not hold the rates of a device ({first_mistake(error)})"
        raise WmddError(f"{path.name} {fault}; docs/use/cost.md has the shape") from None
    except ValueError as error:
        raise WmddError(f"{path} is not valid JSON: {error}") from None
