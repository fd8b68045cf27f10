"""What a job costs on SLURM: twenty trivial tasks as jobs of their own, as an array, in groups, and in one job as a block.

On the SLURM of `make test-slurm` (tests/cluster), started here for it. Wall seconds of `snakemake`, medians of alternating
rounds; `right`: whether every task's output was there in the end. The first look at submitted jobs is after `--wait` seconds.

    python -m benchmarks.cluster [--tasks 20] [--wait 1 20] [--repeats 3]
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.machine import processor
from tests.cluster import slurm

SNAKEFILE = """
rule all:
    input:
        expand("{way}/{{task}}.txt", task=range({tasks})),

rule task:
    output:
        "{way}/{{task}}.txt",
    group:
        "some"
    shell:
        "echo {{wildcards.task}} > {{output}}"

rule block:
    output:
        expand("block/{{task}}.txt", task=range({tasks})),
    shell:
        "for task in {{output}}; do echo $task > $task; done"
"""
WAYS: dict[str, tuple[str, ...]] = {
    "local": ("--cores", "2"),
    "a job each": ("--executor", "slurm", "--jobs", "100"),
    "an array": ("--executor", "slurm", "--jobs", "100", "--slurm-array-jobs", "task"),
    "groups of five": ("--executor", "slurm", "--jobs", "100", "--group-components", "some=5"),
    "one job, a block": ("--executor", "slurm", "--jobs", "100"),
}


def run(way: str, tasks: int, wait: int) -> dict[str, Any]:
    """Return the wall seconds of one run in a fresh folder, and whether it made what it should."""
    with tempfile.TemporaryDirectory(prefix="wmdd-cluster-") as folder:
        root = Path(folder)
        block = way == "one job, a block"
        text = SNAKEFILE.format(way="block" if block else "task", tasks=tasks)
        grouped = way == "groups of five"
        (root / "Snakefile").write_text(text if grouped else text.replace('    group:\n        "some"\n', ""))
        flags = [*WAYS[way]]
        if way != "local":
            flags += ["--default-resources", "mem_mb=800", "runtime=10", "--slurm-no-account"]
            flags += ["--slurm-init-seconds-before-status-checks", str(wait), "--max-status-checks-per-second", "1"]
        if grouped:
            flags += ["--set-resource-scopes", "mem_mb=local"]
        begun = time.perf_counter()
        result = subprocess.run(
            [sys.executable, "-m", "snakemake", *flags], cwd=root, capture_output=True, check=False,
            env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}, timeout=900,
        )  # fmt: skip
        spent = time.perf_counter() - begun
        made = len(list(root.glob("*/*.txt")))
        return {"seconds": spent, "right": result.returncode == 0 and made == tasks}


def main() -> None:
    """Start a SLURM, measure, and print a table and its JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=20)
    parser.add_argument("--wait", type=int, nargs="+", default=[1, 20])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/cluster.json"))
    options = parser.parse_args()
    if reason := slurm.why_not():
        sys.exit(f"no SLURM here: {reason}")
    folder = Path(tempfile.mkdtemp(prefix="wmdd-slurm-", dir="/run"))
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    try:
        with slurm.cluster(folder):
            for _ in range(options.repeats):
                for way in WAYS:
                    for wait in options.wait if way != "local" else options.wait[:1]:
                        found.setdefault((way, wait), []).append(run(way, options.tasks, wait))
                        print(way, wait, found[way, wait][-1], flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    rows = [
        {
            "way": way,
            "first_look_s": wait if way != "local" else None,
            "seconds": round(statistics.median(each["seconds"] for each in runs), 1),
            "a_task": round(statistics.median(each["seconds"] for each in runs) / options.tasks, 2),
            "right": sum(each["right"] for each in runs),
            "n": len(runs),
        }
        for (way, wait), runs in found.items()
    ]
    content = {
        "machine": f"{processor()}, {os.cpu_count()} cores, SLURM of one node",
        "date": date.today().isoformat(),
        "versions": {n: version(n) for n in ("snakemake", "snakemake-executor-plugin-slurm")},
        "tasks": options.tasks,
        "rows": rows,
    }
    options.output.write_text(json.dumps(content, indent=2) + "\n")
    print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
