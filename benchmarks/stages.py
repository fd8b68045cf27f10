"""Recover, student and labels: ours against the published code's way, in pairs of one run.

- recover: one iteration on 100 images, 10 classes of 10, of ResNet-18 with fresh weights, by WMDD's loop, by its later revision
  with weights, and by SRe2L's (`benchmarks.published`). That ours has the same trace of losses (SRe2L's without priors) is
  checked first, on a small problem.
- student: ResNet-18 on random real images with a teacher's soft labels: seconds of the training, seconds of the evaluation,
  accuracy. The published way is timed without loader processes and with some, which begin anew with each epoch; ratios are
  against the faster of the two. Ours also trains several students of one set side by side, each of which counts for its part
  of the seconds. What ours holds in memory is decoded beforehand, as its data stage does once for all students.
- labels: bytes of a view and seconds of an epoch's labels in each store, and the accuracy of students that learn from them.

The ways take turns after a warm-up; medians of the pairs are reported, with quartiles. The share of the matrix rate is that of
a large product in the same type, measured in the same run. `--clock cpu` counts CPU seconds, for a machine that others use too.
Rows are kept in results/stages-{cpu,cuda}.json beside those of other sections and sizes; `wmdd plan --rates` reads its `rates`
and `peak`, which are of the machine with `threads` threads.

    python -m benchmarks.stages [recover|student|labels ...] [--device cuda] [--data FOLDER] [--teacher model.safetensors]

FOLDER has train/ and test/ or val/, with a folder a class. Runs where pydantic, snakemake, POT and wandb are missing.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

if __name__ == "__main__" and not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.machine import copy_rate, engine_of, matrix_rates, named
from benchmarks.rows import Row, merged, rates_of, same
from benchmarks.stages_labels import time_labels
from benchmarks.stages_recover import time_recover
from benchmarks.stages_student import time_student

SECTIONS: dict[str, Callable[[argparse.Namespace, dict[str, float]], list[Row]]] = {
    "recover": time_recover,
    "student": time_student,
    "labels": time_labels,
}


def default_ways(options: argparse.Namespace) -> dict[str, str]:
    """Return which of our rows a run with default settings is."""
    dtype = engine_of(options).dtype
    return {"recover": "wmdd, bf16" if dtype == torch.bfloat16 else "wmdd, fp32", "student": "wmdd, auto"}


def keep(section: str, rows: list[Row], options: argparse.Namespace, peak: dict[str, float]) -> None:
    """Write the rows of a section into the results."""
    path = options.output or Path(__file__).parent / "results" / f"stages-{options.device}.json"
    given = {name: value.name if isinstance(value, Path) else value for name, value in vars(options).items()}
    of = {"machine": named(options), "torch": torch.__version__, "threads": options.threads}
    kept = merged(json.loads(path.read_text()) if path.exists() else {}, section, of | {"options": given, "rows": rows})
    kept["rates"] = {
        stage: rates_of(kept["sections"][stage]["rows"], way)
        for stage, way in default_ways(options).items()
        if stage in kept["sections"] and same(kept["sections"][stage], of)
    }
    kept |= {"device": options.device, "peak": peak, "width": options.width} | of
    kept["preliminary"] = ["student"] if options.student_width != options.width else []  # a narrow network is slower
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(kept, indent=2) + "\n")
    print(f"kept in {path}", flush=True)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "sections", nargs="*", help="recover, student, labels; all by default, student if there is --data"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    for name, default, help in (
        ("threads", 2, "of the CPU"),
        ("width", 64, "recover: of the ResNet-18"),
        ("iterations", 0, "recover: timed in a turn; 2, or 20 on a GPU"),
        ("warm", 0, "recover: iterations before them; 1, or 5 on a GPU"),
        ("repeats", 0, "recover, labels: turns; 3, or 5 on a GPU"),
        ("student-width", 16, "student, labels: of the ResNet-18, and of a teacher that is trained here"),
        ("epochs", 100, "student, labels"),
        ("seeds", 3, "student, labels"),
        ("together", 3, "student: that are trained side by side"),
        ("teacher-epochs", 3, "of a teacher that is trained here"),
        ("workers", 2, "student: of the published loaders, beside none"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=help)
    parser.add_argument("--resolutions", type=int, nargs="+", default=[32, 64, 128, 224], help="recover")
    parser.add_argument("--ipc", type=int, nargs="+", default=[10, 50], help="student, labels (the least of them)")
    parser.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall", help="recover, and the machine's peaks: wall or CPU seconds"
    )
    parser.add_argument("--ways", nargs="+", default=[], help="recover: those of the names of rows; all by default")
    parser.add_argument("--compile", action="store_true", help="recover: also compiled, which takes a minute a turn")
    parser.add_argument("--data", type=Path, help="student, labels: folder of pictures")
    parser.add_argument("--teacher", type=Path, help="student, labels: model.safetensors; else one is trained here")
    parser.add_argument("--output", type=Path, help="JSON that the rows are kept in; results/stages-DEVICE.json")
    options = parser.parse_args(arguments)
    if unknown := set(options.sections) - set(SECTIONS):
        parser.error(f"unknown section {min(unknown)!r}; known: {', '.join(SECTIONS)}")
    if "student" in options.sections and not options.data:
        parser.error("student needs --data FOLDER, with train/ and test/ or val/")
    cuda = options.device == "cuda"
    options.iterations = options.iterations or (20 if cuda else 2)
    options.warm = options.warm or (5 if cuda else 1)
    options.repeats = options.repeats or (5 if cuda else 3)
    options.sections = options.sections or [name for name in SECTIONS if options.data or name != "student"]
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the sections that are asked for, print their rows and keep them."""
    options = parsed(arguments)
    matrices = matrix_rates(options)
    peak = {"flops": max(matrices.values()), "bytes_per_s": copy_rate(options)}
    print(
        {name: f"{rate:.3g} FLOP/s" for name, rate in matrices.items()},
        f"{peak['bytes_per_s']:.3g} bytes/s",
        flush=True,
    )
    for section in options.sections:
        keep(section, SECTIONS[section](options, matrices), options, peak)


if __name__ == "__main__":
    main()
