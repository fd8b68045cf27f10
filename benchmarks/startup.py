"""What it takes to start: CPU seconds and memory of `--help`, of each command's, of what is read often, and of tiny jobs.

Each line is a process of its own, started in turn with the others; beside them `import torch`, which no job that computes can
do without. The jobs have next to nothing to do: the digits, two images a class, networks of width 4, one epoch or iteration.

    python -m benchmarks.startup [--repeats 5]
"""

import argparse
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tabulate import tabulate

from wmdd.cli.commands import app
from wmdd.jobs.provenance import processor  # without torch, whose memory would count for what is started from here

ROOT = Path(__file__).parents[1]
NETWORK = "--architecture resnet18 --width 4"
TRAINING = f"{NETWORK} --epochs 1 --evaluate-every 1"
CPU = "--device cpu --precision fp32"
TEACHER = "--teacher model.safetensors"
READ = [
    "config {config}",
    "schema",
    "plan {config}",
    "status {config}",
]
JOBS = [
    "data --name digits --output data.h5 --source digits --classes 10 --resolution 8 --images-per-class 2",
    f"teacher --data data.h5 --output model.safetensors --seed 0 {TRAINING} {CPU}",
    f"features --data data.h5 {TEACHER} --output features.h5 --statistics statistics.h5 {CPU}",
    "barycenter --features features.h5 --output barycenter.h5 --block classes0-9 --k 1 --seed 0",
    f"recover {TEACHER} --class-statistics statistics.h5 --barycenter barycenter.h5 --output block.h5 --block classes0-9"
    f" --ipc 1 --seed 0 --iterations 1 {CPU}",
    "join --blocks block.h5 --output images.h5",
    "select --data data.h5 --output selected.h5 --ipc 1 --seed 0 --strategy random",
    f"relabel --images images.h5 {TEACHER} --output labels.h5 --seed 0 --epochs 1 {CPU}",
    f"student --images images.h5 --data data.h5 --soft-labels labels.h5 --output run0.json --seed 0 --run 0 {TRAINING} {CPU}",
    "grid --images images.h5 --output grid.png",
]


def spent(command: list[str], folder: str) -> tuple[float, float]:
    """Return the CPU seconds and the MB of a process, with those of what it starts.

    Raises:
        SystemExit: it fails.
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # what is compiled is kept, as usual
    with Path(folder, "log").open("w+") as log:
        process = subprocess.Popen([sys.executable, *command], stdout=log, stderr=log, cwd=folder, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            sys.exit(f"{shlex.join(command)}:\n{log.read()}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def lines(config: Path) -> dict[str, list[str]]:
    """Return what is started, by the name of its row."""
    commands = [name for name in app if not name.startswith("-")]
    rows = ["--help", *(f"{name} --help" for name in commands), *(line.format(config=config) for line in READ), *JOBS]
    names = [line if line.endswith("--help") else line.split()[0] for line in rows]
    started = {name: ["-m", "wmdd", *shlex.split(line)] for name, line in zip(names, rows, strict=True)}
    return {"import torch": ["-c", "import torch"]} | started


def main() -> None:
    """Start all of it, print and keep the seconds and the memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="", help="rows that this expression matches, which are printed only")
    options = parser.parse_args()
    started = lines(ROOT / "config/config.yaml")
    chosen = [name for name in started if re.search(options.only, name) or name in [line.split()[0] for line in JOBS]]
    figures: dict[str, list[tuple[float, float]]] = {name: [] for name in chosen}
    with TemporaryDirectory() as folder:
        for _ in range(options.repeats):
            for name in chosen:
                figures[name].append(spent(started[name], folder))
    rows: list[dict[str, Any]] = [
        {
            "row": name,
            "cpu_seconds": round(statistics.median(cpu for cpu, _ in values), 3),
            "fastest": round(min(cpu for cpu, _ in values), 3),
            "slowest": round(max(cpu for cpu, _ in values), 3),
            "mb": round(statistics.median(mb for _, mb in values)),
        }
        for name, values in figures.items()
    ]
    print(tabulate(rows, headers="keys"))
    if not options.only:
        versions = {name: version(name) for name in ("torch", "cyclopts", "pydantic", "snakemake")}
        result = {"machine": processor(), "python": sys.version.split()[0], "n": options.repeats} | versions
        output = Path(__file__).parent / "results" / "startup.json"
        output.write_text(json.dumps(result | {"rows": rows}, indent=2) + "\n")
        print(f"kept in {output}")


if __name__ == "__main__":
    main()
