"""All that a few minutes of a GPU can tell, the most needed first: is it right, how fast is it, and what students learn.

- checks: every way in which the engine computes against the reference, `plain`: recover, a student, a teacher's answers, with
  CUDA graphs, compiled, in bf16; students side by side; batches as memory allows (`benchmarks.gpu_checks`).
- stages: the rows of `benchmarks.stages`, one resolution after the other, then students and labels.
- study: students at full width on random real images, `wmdd-plus`, `wmdd` and the whole training set, under the presets
  of protocols (`benchmarks.gpu_study`).

Each result is written as soon as it is there, so that what ends early has lost nothing: `gpu-DEVICE.json` (checks, study) and
`stages-DEVICE.json` in the output folder. A part is not begun when the minutes are over. The last line says what was left out.

    python -m benchmarks.gpu --minutes 10 --data cifar10.tar.gz [--output FOLDER] [--parts checks stages study]

The data are a folder with train/ and test/ or val/, and a folder a class, or a tar archive of one. Needs torch, torchvision,
numpy and h5py; the study also needs scipy and PyYAML. `--toy` is a rehearsal with networks and steps of no use.
"""

import argparse
import json
import os
import sys
import tarfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

if __name__ == "__main__" and not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import gpu_checks, gpu_study, stages
from benchmarks.machine import named

PARTS = ("checks", "stages", "study")
RESERVE = 20  # seconds at the end in which nothing is begun


@dataclass
class Report:
    """What was found, in a file that is whole at any moment, and how much time is left."""

    path: Path
    ends: float  # by `time.monotonic`
    content: dict[str, Any] = field(default_factory=dict)

    @property
    def left(self) -> float:
        """Seconds in which something can be begun."""
        return self.ends - RESERVE - time.monotonic()

    def add(self, part: str, row: dict[str, Any]) -> None:
        """Keep a row of a part, and print it."""
        self.content.setdefault(part, []).append(row)
        self.write()
        print(f"{part}: {row}", flush=True)

    def write(self) -> None:
        """Write the file anew, as a whole."""
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.content, indent=1) + "\n")
        os.replace(part, self.path)

    def room(self, what: str, seconds: float = 0) -> bool:
        """Return whether there is time for what may take some seconds; if not, say so in the file."""
        if self.left > seconds:
            return True
        self.content.setdefault("left out", []).append(what)
        self.write()
        return False


@contextmanager
def unpacked(data: Path) -> Iterator[Path]:
    """Yield the folder that has the folder train/: of a folder or an archive."""
    with TemporaryDirectory() as name:
        if not data.exists():
            raise SystemExit(f"there is no {data}; name a folder or a tar archive of pictures")
        if data.is_file() and not tarfile.is_tarfile(data):
            raise SystemExit(f"{data} is no tar archive; name one, or a folder of pictures")
        if data.is_file():
            with tarfile.open(data) as archive:
                archive.extractall(name, filter="data")
            data = Path(name)
        roots = [data, *sorted(path for path in data.iterdir() if path.is_dir())]
        root = next((path for path in roots if (path / "train").is_dir()), None)
        if root is None:
            raise SystemExit(f"{data} has no folder train/, nor has a folder in it")
        yield root


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--data", type=Path, help="folder or archive of pictures; without, no students are trained")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="folder")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--modes", nargs="+", choices=["eager", "compile"], default=["eager", "compile"])
    parser.add_argument("--seeds", type=int, default=3, help="study: of the distillation")
    parser.add_argument("--toy", action="store_true")
    return parser.parse_args(arguments)


def time_stages(options: argparse.Namespace, data: Path | None, report: Report) -> None:
    """Run the sections of `benchmarks.stages`, each of which keeps its rows."""
    common = ["--device", options.device, "--threads", str(options.threads)]
    common += ["--output", str(options.output / f"stages-{options.device}.json")]
    toy = ["--width", "4", "--iterations", "2", "--repeats", "1", "--warm", "1"] if options.toy else []
    calls = [["recover", "--resolutions", side, *toy] for side in (["8"] if options.toy else ["32", "64", "224"])]
    if data is not None:
        students = ["--student-width", "4", "--epochs", "1", "--seeds", "1", "--ipc", "1", "--teacher-epochs", "1"]
        calls += [[part, "--data", str(data), *(students if options.toy else ["--epochs", "30"]), *toy[4:]]
                  for part in ("student", "labels")]  # fmt: skip
    for call in calls:
        name = " ".join(["stages", *call[:3]])
        if report.room(name, 30):
            start = time.monotonic()
            row: dict[str, Any] = {"call": name}
            try:
                stages.main([*call, *common])
            except Exception as error:  # as in the checks: what follows still tells something
                row["error"] = "".join(traceback.format_exception_only(error)).strip()[:500]
            report.add("stages", row | {"seconds": round(time.monotonic() - start, 1)})


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the parts, as far as the minutes go."""
    options = parsed(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU is visible; run on a machine with one, or rehearse with --device cpu --toy")
    options.output.mkdir(parents=True, exist_ok=True)
    report = Report(options.output / f"gpu-{options.device}.json", time.monotonic() + 60 * options.minutes)
    report.content = {"machine": named(options), "torch": torch.__version__, "minutes": options.minutes}
    with unpacked(options.data) if options.data else TemporaryDirectory() as folder:
        data = folder if isinstance(folder, Path) else None
        if "checks" in options.parts:
            gpu_checks.run(options, report)
        if "stages" in options.parts:
            time_stages(options, data, report)
        if "study" in options.parts and data is not None:
            gpu_study.run(options, data, report)
    report.content["finished"] = True
    report.write()
    wrong = [row["check"] for row in report.content.get("checks", []) if not row["right"]]
    print(f"kept in {report.path}; wrong: {', '.join(wrong) or 'nothing'}")
    print(f"left out for want of time: {', '.join(report.content.get('left out', [])) or 'nothing'}")


if __name__ == "__main__":
    main()
