"""Rates: how fast a device runs each stage, where that was measured, and what it can do at most (rates.yaml)."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from wmdd.errors import WmddError
from wmdd.settings import EngineSettings
from wmdd.workflow.stages import NETWORK


@cache
def table() -> Any:
    """Return what was measured, and what the data sheets say."""
    return yaml.safe_load(Path(__file__).with_name("rates.yaml").read_text())


@dataclass(frozen=True)
class Device:
    """A CPU core or a GPU.

    Attributes:
        name: as it is asked for.
        machine: what it is.
        kind: cpu or cuda.
        flops: peak, FLOP/s.
        bandwidth: of memory, bytes/s.
        rates: FLOP/s reached, by stage and side in pixels; a stage of which nothing was measured has no entry.
        preliminary: stages whose rates are to be measured again.
        width: of the network that the rates are of.
        narrow: exponent by which they fall for narrower ones.
        peaks: FLOP/s in other precisions, by name.
    """

    name: str
    machine: str
    kind: str
    flops: float
    bandwidth: float
    rates: Mapping[str, Mapping[int, float]]
    preliminary: tuple[str, ...] = ()
    width: int = 64
    narrow: float = 0.0
    peaks: Mapping[str, float] = field(default_factory=dict)

    def computing(self, precision: str) -> "Device":
        """Return the device in a precision whose peak the data sheet tells; else as it is.

        Rates that were measured are of the usual precision, so they don't count for another.
        """
        if precision not in self.peaks:
            return self
        return replace(self, flops=self.peaks[precision], rates={}, preliminary=())

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
        return factor * min(measured) if measured else table()["share"] * self.flops, "assumed"


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
    return _device(name, known[name], "rates.yaml")


def device_of(name: str | None, engine: EngineSettings) -> Device:
    """Return the device of a name, or else the usual one of an engine, in the precision that the engine computes in on it."""
    exact = engine.precision == "fp32" or (engine.mode == "plain" and engine.precision == "auto")
    core = "cpu-core-fp32" if exact else "cpu-core"
    found = device(name or (core if engine.device == "cpu" else "a100"))
    return found.computing("fp32" if exact else engine.precision)


def read(path: Path) -> Device:
    """Read the rates of a machine of one's own (JSON; docs/cost.md has the shape).

    Raises:
        WmddError: the file can't be read, or is not of that shape.
    """
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise WmddError(f"cannot read the rates {path}: {error.strerror}") from None
    except ValueError as error:
        raise WmddError(f"{path} is not valid JSON: {error}") from None
    return _device(path.stem, content, path.name)


def _device(name: str, content: Any, where: str) -> Device:
    try:
        found = {stage: _by_side(rates) for stage, rates in content.get("rates", {}).items() if rates}
        made = Device(
            name,
            str(content["machine"]),
            content["device"],
            _positive(content["peak"]["flops"]),
            _positive(content["peak"]["bytes_per_s"]),
            found,
            tuple(content.get("preliminary", ())),
            int(_positive(content.get("width", 64))),
            float(content.get("narrow", 0)),
            {name: _positive(peak) for name, peak in content["peak"].items() if name in ("fp32", "tf32")},
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else error
        raise WmddError(f"{where} does not hold the rates of a device ({what}); docs/cost.md has the shape") from None
    if made.kind not in ("cpu", "cuda"):
        raise WmddError(f"{where}: device is {made.kind!r}; give cpu or cuda")
    if unknown := sorted(found.keys() - set(NETWORK)):
        raise WmddError(f"{where}: no stage {unknown[0]!r} runs a network; give rates of {', '.join(NETWORK)}")
    return made


def _by_side(rates: Mapping[Any, Any]) -> dict[int, float]:
    return {int(_positive(int(side))): _positive(rate) for side, rate in rates.items()}


def _positive(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{value!r} is not a number above 0")
    return float(value)
