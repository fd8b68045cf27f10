"""The machine that benchmarks run on: its name and its peaks, a clock, and both sides' settings of the whole process."""

import argparse
import ast
import importlib
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

import wmdd.settings
from wmdd.networks.engine import Engine, has_fast_bf16


def processor() -> str:
    """Return the name of the CPU."""
    names = Path("/proc/cpuinfo")
    lines = names.read_text().splitlines() if names.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def named(options: argparse.Namespace) -> str:
    """Return the name of the device that the options ask for, of a CPU with its threads."""
    return torch.cuda.get_device_name() if options.device == "cuda" else f"{processor()}, {options.threads} thread(s)"


def synchronise() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


# Wall seconds, or CPU seconds of all threads, for a machine that others use too.
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def seconds(act: Callable[[], Any], clock: str = "wall") -> float:
    """Return the seconds of an act by a clock."""
    synchronise()
    start = CLOCKS[clock]()
    act()
    synchronise()
    return CLOCKS[clock]() - start


def as_installed(options: argparse.Namespace, tf32: bool = False) -> None:
    """Undo what an engine of ours changed for the whole process, before the published way has its turn."""
    torch.set_deterministic_debug_mode("default")
    torch.set_num_threads(options.threads)
    for products in torch.backends.cuda.matmul, torch.backends.cudnn.conv:
        products.fp32_precision = "tf32" if tf32 else "ieee"
    torch.backends.cudnn.benchmark = True  # as the published scripts have it


def engine_of(options: argparse.Namespace, **changes: Any) -> Engine:
    """Return an engine of ours, which sets what it needs for the whole process."""
    torch.backends.cudnn.benchmark = False
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # an engine asks how much memory is free
    return Engine.of(settings("EngineSettings", device=options.device, **changes), options.threads)


def matrix_rates(options: argparse.Namespace) -> dict[str, float]:
    """Return the FLOP/s of a large product by type."""
    side, repeats = (8192, 10) if options.device == "cuda" else (2048, 5)
    found = {}
    cuda = options.device == "cuda"
    names = {"fp32": True, "tf32": cuda, "bf16": has_fast_bf16(cuda)}  # emulated, a product of this size takes minutes
    for name in (name for name, possible in names.items() if possible):
        as_installed(options, tf32=name == "tf32")
        a = torch.randn(side, side, device=options.device, dtype=torch.bfloat16 if name == "bf16" else torch.float32)
        spent = [seconds(lambda a=a: a @ a, options.clock) for _ in range(repeats + 2)][2:]
        found[name] = 2 * side**3 / statistics.median(spent)
    return found


def copy_rate(options: argparse.Namespace) -> float:
    """Return the bytes a second that a large copy reads and writes."""
    source = torch.ones(2**27, device=options.device)
    target = torch.empty_like(source)
    spent = [seconds(lambda: target.copy_(source), options.clock) for _ in range(7)][2:]
    return 2 * source.nbytes / statistics.median(spent)


def settings(name: str, **changes: Any) -> Any:
    """Return settings of `wmdd.settings`; where pydantic is missing, unchecked ones of the same text."""
    try:
        module = importlib.import_module(f"wmdd.settings.{defining(name).stem}")
    except ModuleNotFoundError as error:
        if error.name not in ("pydantic", "cyclopts"):
            raise
        return unchecked(name, **changes)
    return getattr(module, name)(**changes)


def unchecked(name: str, **changes: Any) -> Any:
    """Return a namespace with the defaults and the properties of a class of settings, without importing it."""
    values, properties = {}, {"math": math}
    for node in reversed(list(ancestry(name))):
        for item in node.body:
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and item.value is not None:
                value = item.value.args[0] if isinstance(item.value, ast.Call) else item.value
                values[item.target.id] = ast.literal_eval(value)
            if isinstance(item, ast.FunctionDef) and "property" in map(ast.unparse, item.decorator_list):
                item.returns = None
                exec(compile(ast.Module([item], []), name, "exec"), properties)
    return type(name, (SimpleNamespace,), properties)(**values | changes)


def ancestry(name: str) -> Iterator[ast.ClassDef]:
    """Yield the text of a class of settings and of those that it is derived from, the nearest first."""
    node = next(n for n in ast.parse(defining(name).read_text()).body if isinstance(n, ast.ClassDef) and n.name == name)
    yield node
    for base in node.bases:
        if isinstance(base, ast.Name) and base.id not in ("BaseModel", "Settings"):
            yield from ancestry(base.id)


def defining(name: str) -> Path:
    """Return the file of `wmdd.settings` that defines a class."""
    return next(file for file in Path(wmdd.settings.__path__[0]).glob("*.py") if f"class {name}(" in file.read_text())
