"""What it costs to check what is read: seconds to read arrays of artifacts with checksums and, in turn, by h5py alone.

    python -m benchmarks.checksums [--repeats 5]

Files are in the cache of the operating system, so that the disk hides nothing. Writing hashes each byte twice, for the digest
and for the checksums.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import h5py
import numpy as np
from tabulate import tabulate

from wmdd.artifacts import hdf5, hdf5_writer
from wmdd.jobs.provenance import processor

ROOT = Path(__file__).parents[1]
ARRAYS = {  # what stages read: pictures of CIFAR-10's training set, features of as many, labels of 100 epochs
    "pictures": (np.uint8, (50_000, 3, 32, 32), 1.0),
    "features of a tenth of the classes": (np.float32, (50_000, 512), 0.1),
    "labels of an epoch": (np.float16, (100, 1_000, 100), 0.01),
}


def seconds(read: Callable[[], object]) -> float:
    """Return the CPU seconds of a call."""
    begun = time.process_time()
    read()
    return time.process_time() - begun


def checked(path: Path, rows: slice) -> np.ndarray:
    """Read rows, checked."""
    with hdf5.reading(path, "array") as file:
        return file["array"][rows]


def plain(path: Path, rows: slice) -> np.ndarray:
    """Read rows by h5py alone."""
    with h5py.File(path) as file:
        return file["array"][rows]


def main() -> None:
    """Measure, print and keep the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/checksums.json")
    options = parser.parse_args()
    rows = []
    with TemporaryDirectory() as folder:
        for name, (dtype, shape, share) in ARRAYS.items():
            path, draws = Path(folder, "x.h5"), np.random.default_rng(0)
            array = draws.integers(0, 256, shape).astype(dtype)
            with hdf5_writer.writing(path) as writer:
                writer.meta = {}
                writer.append("array", array)
            part = slice(0, max(1, round(share * len(array))))
            ways = {"checked": checked, "h5py": plain}
            times: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(options.repeats):
                for way, read in ways.items():
                    times[way].append(seconds(lambda read=read, path=path, part=part: read(path, part)))
            size = array[part].nbytes / 2**20
            medians = {way: statistics.median(values) for way, values in times.items()}
            rows.append({"read": name, "MB": size} | {f"{way}, ms": 1000 * value for way, value in medians.items()})
            rows[-1]["added, ms a MB"] = 1000 * (medians["checked"] - medians["h5py"]) / size
    print(tabulate(rows, headers="keys", floatfmt=".3g"))
    content = {"machine": processor(), "n": options.repeats, "rows": rows}
    options.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
