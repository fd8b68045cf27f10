"""The DAG of ImageNet-1K: four numbers of images per class, five methods, three seeds. How many jobs, and how long to build.

A real `snakemake --dry-run` in an empty folder, several times; nothing is downloaded or computed.

    python -m benchmarks.dag [--repeats 5] [--file config/config.yaml]
"""

import argparse
import json
import re
import resource
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from benchmarks.machine import processor
from benchmarks.rows import spread

ROOT = Path(__file__).parents[1]
EXPERIMENT: dict[str, Any] = {
    "experiment": "dag",
    "matrix": [
        {
            "datasets": ["imagenet-1k"],
            "teachers": ["resnet18"],
            "methods": ["wmdd", "wmdd-released", "sre2l", "random", "kmeans-medoid"],
            "ipc": [1, 10, 50, 100],
            "seeds": [0, 1, 2],
            "students": ["resnet18"],
            "protocols": ["paper"],
        }
    ],
    "datasets": {"imagenet-1k": {"features_jobs": 8}},
}


def dry_run(content: dict[str, Any]) -> tuple[dict[str, int], float, float]:
    """Return the jobs of an experiment by rule, and the wall seconds and CPU seconds of the dry run."""
    with TemporaryDirectory() as folder:
        Path(folder, "dag.yaml").write_text(yaml.safe_dump(content))
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", folder]
        begun, before = time.perf_counter(), _spent()
        done = subprocess.run(
            [*command, "--configfile", f"{folder}/dag.yaml", "--cores", "1", "--dry-run"],
            capture_output=True, text=True, check=True, cwd=folder,
        )  # fmt: skip
        spent = time.perf_counter() - begun, _spent() - before
    table = (done.stdout + done.stderr).split("Job stats:")[1].split("total")[0]
    return {rule: int(count) for rule, count in re.findall(r"^(\w+)\s+(\d+)$", table, re.MULTILINE)}, *spent


def _spent() -> float:
    """Return the CPU seconds of the processes that were started and have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Build the DAG, print and keep the jobs and the seconds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--file", type=Path, help="another experiment, whose figures are printed only")
    options = parser.parse_args()
    content = EXPERIMENT if options.file is None else yaml.safe_load(options.file.read_text())
    found = [dry_run(content) for _ in range(options.repeats)]
    jobs = found[0][0]
    wall, cpu = (spread([row[column] for row in found]) for column in (1, 2))
    row = {"jobs": sum(jobs.values()), "seconds": wall, "cpu_seconds": cpu, "n": options.repeats}
    for rule, count in jobs.items():
        print(f"{rule:14} {count:5}")
    print(f"{'total':14} {row['jobs']:5}   seconds {wall}, of CPU {cpu} (median, quartiles; n = {options.repeats})")
    if options.file is None:
        result = {"machine": processor(), "python": sys.version.split()[0], "snakemake": version("snakemake")} | row
        output = Path(__file__).parent / "results" / "dag.json"
        output.write_text(json.dumps(result | {"by rule": jobs, "experiment": content}, indent=2) + "\n")
        print(f"kept in {output}")


if __name__ == "__main__":
    main()
