"""Reading pictures: three JPEG decoders on one thread, and threads on one packed file against processes on many small ones.

- decoders: Pillow, torchvision and (where it is installed) simplejpeg on the same files in memory; CPU microseconds a picture,
  medians of alternating rounds; whether their pixels agree.
- feeding: batches of pixels from `data.h5` by `wmdd.datasets.loader` (threads), and from `ImageFolder` by a `DataLoader` with
  as many worker processes; pictures a second of wall time, medians of alternating rounds, workers' start included as in every
  epoch.

    python -m benchmarks.decode --root FOLDER [--resolution 64] [--images 100] [--repeats 7] [--threads 2]
"""

import argparse
import io
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from benchmarks.machine import processor
from wmdd.artifacts import hdf5_writer
from wmdd.datasets.decode import decode_plain
from wmdd.datasets.loader import opened
from wmdd.settings.data import DataSettings
from wmdd.stages.data import pack

BATCH = 64


def decoders() -> dict[str, Callable[[bytes], np.ndarray]]:
    """Return the decoders that are installed: bytes to [3, H, W] or [H, W, 3] uint8."""
    found: dict[str, Callable[[bytes], np.ndarray]] = {
        "Pillow": lambda data: np.asarray(Image.open(io.BytesIO(data), formats=("JPEG",)).convert("RGB")),
        "torchvision": lambda data: decode_plain(data).transpose(1, 2, 0),
    }
    try:
        import simplejpeg
    except ImportError:
        return found
    return found | {"simplejpeg": lambda data: simplejpeg.decode_jpeg(data, colorspace="RGB")}


def compare_decoders(files: list[bytes], repeats: int) -> dict[str, dict[str, float]]:
    """Return CPU microseconds a picture of each decoder, and the share of pictures with Pillow's pixels."""
    ways = decoders()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, decode in ways.items():
            start = time.process_time()
            for data in files:
                decode(data)
            times[name].append((time.process_time() - start) / len(files) * 1e6)
    same = {
        name: float(np.mean([np.array_equal(decode(data), ways["Pillow"](data)) for data in files]))
        for name, decode in ways.items()
    }
    return {
        name: {"us": round(statistics.median(values), 1), "equal to Pillow": round(same[name], 4)}
        for name, values in times.items()
    }


def compare_feeding(root: Path, options: argparse.Namespace) -> dict[str, float]:
    """Return pictures a second by threads from the packed file and by processes from the folder."""
    folder = ImageFolder(str(root / "train"), transforms.Compose([transforms.PILToTensor()]))
    targets = torch.tensor(folder.targets)
    kept = [torch.nonzero(targets == label).flatten()[: options.images] for label in range(len(folder.classes))]
    subset = Subset(folder, torch.cat(kept).tolist())
    with TemporaryDirectory() as name:
        path = Path(name) / "data.h5"
        settings = DataSettings(
            root=str(root.resolve()), classes=len(folder.classes), resolution=options.resolution, storage="encoded",
            images_per_class=options.images,
        )  # fmt: skip
        with hdf5_writer.writing(path) as writer:
            writer.meta = pack(settings, writer)

        def threads() -> int:
            with opened(path, "train", once=True) as (pictures, _):
                return sum(len(x) for x in pictures.batches(torch.arange(len(pictures.labels)).split(BATCH)))

        def processes() -> int:
            return sum(len(x) for x, _ in DataLoader(subset, batch_size=BATCH, num_workers=options.threads))

        ways = {"threads, data.h5": threads, "processes, ImageFolder": processes}
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(options.repeats):
            for way, run in ways.items():
                start = time.perf_counter()
                count = run()
                rates[way].append(count / (time.perf_counter() - start))
    return {way: round(statistics.median(values)) for way, values in rates.items()}


def main() -> None:
    """Compare, print and keep the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, help="folder with train/ and val/, JPEG files of one size")
    for name, default in ("resolution", 64), ("images", 100), ("repeats", 7), ("threads", 2):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    names = sorted((options.root / "train").rglob("*.JPEG"))[::7][:600]
    result = {
        "machine": f"{processor()}, {options.threads} thread(s)",
        "torch": torch.__version__,
        "options": {k: v for k, v in vars(options).items() if k != "root"} | {"data": options.root.name},
        "decoders, CPU microseconds a picture": compare_decoders([n.read_bytes() for n in names], options.repeats),
        "feeding, pictures a second": compare_feeding(options.root, options),
    }
    output = Path(__file__).parent / "results" / f"decode-cpu-{options.resolution}px.json"
    output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=1))
    print(f"kept in {output}")


if __name__ == "__main__":
    main()
