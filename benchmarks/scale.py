"""Many classes: data, teacher (one epoch), features and barycenters of a made-up image folder, at two sizes, by the commands.

Makes CLASSES x IMAGES tiny JPEG pictures (noise around a colour of the class), then the same with `--times` as many, runs each
stage as a user does, and reports seconds and peak memory of each process, and by how much the larger folder needs more.
Pictures that do not fit into `--resident` MB are streamed (WMDD_RESIDENT_MB), so that memory does not follow their number.

    python -m benchmarks.scale [--classes 1000] [--images 40] [--times 4] [--side 16] [--resident 16]
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image

from benchmarks.machine import processor

NETWORK = "--architecture resnet18 --width 8 --epochs 1 --batch-size 128 --lr 0.1"


def draw(root: Path, classes: int, images: int, side: int) -> None:
    """Write the pictures; a class has one validation picture."""
    draws = np.random.default_rng(0)
    for label in range(classes):
        colour = draws.integers(40, 216, 3)
        for split, count in (("train", images), ("val", 1)):
            folder = root / split / f"c{label:05}"
            folder.mkdir(parents=True)
            pixels = np.clip(colour + draws.integers(-40, 40, (count, side, side, 3)), 0, 255).astype(np.uint8)
            for index, picture in enumerate(pixels):
                Image.fromarray(picture).save(folder / f"{index:05}.jpg")


def stages(root: Path, out: Path, classes: int, side: int) -> dict[str, dict[str, float]]:
    """Run the stages; return the cost of each."""
    data, model, features = out / "data.h5", out / "model.safetensors", out / "features.h5"
    lines = {
        "data": f"data --name scale --output {data} --source imagefolder --root {root} --classes {classes} --resolution {side}"
        " --storage encoded",
        "teacher": f"teacher --data {data} --output {model} --seed 0 {NETWORK}",
        "features": f"features --data {data} --teacher {model} --output {features} --statistics {out}/statistics.h5",
        "barycenter, IPC 1": f"barycenter --features {features} --k 1 --output {out}/k1.h5",
        "barycenter, IPC 10": f"barycenter --features {features} --k 10 --output {out}/k10.h5",
    }
    files = {"data": data, "teacher": model, "features": features}
    found = {}
    for stage, line in lines.items():
        subprocess.run([sys.executable, "-m", "wmdd", *line.split()], check=True, capture_output=True)
        made = files.get(stage, out / ("k1.h5" if stage.endswith(" 1") else "k10.h5"))
        cost = json.loads(made.with_suffix(".cost.json").read_text())
        found[stage] = {name: cost[name] for name in ("seconds", "peak_memory_mb")}
        print(stage, found[stage], flush=True)
    return found


def main() -> None:
    """Run both sizes, print and keep the costs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    defaults = {"classes": 1000, "images": 40, "times": 4, "side": 16, "resident": 16}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    os.environ |= {"WANDB_MODE": "disabled", "WMDD_RESIDENT_MB": str(options.resident)}
    rows = {}
    for images in (options.images, options.images * options.times):
        with TemporaryDirectory() as folder:
            root, out = Path(folder, "pictures"), Path(folder, "out")
            out.mkdir()
            draw(root, options.classes, images, options.side)
            print(f"{options.classes} classes x {images} pictures", flush=True)
            rows[f"{options.classes} x {images}"] = stages(root, out, options.classes, options.side)
    small, large = rows.values()
    growth = {stage: large[stage]["peak_memory_mb"] - small[stage]["peak_memory_mb"] for stage in small}
    result = {
        "machine": f"{processor()}, 1 thread",
        "torch": torch.__version__,
        "options": vars(options),
        "rows": rows,
        "growth of peak memory, MB": growth,
    }
    print("growth of peak memory, MB:", growth)
    output = Path(__file__).parent / "results" / f"scale-cpu-{options.classes}.json"
    output.write_text(json.dumps(result, indent=2) + "\n")
    print(f"kept in {output}")


if __name__ == "__main__":
    main()
