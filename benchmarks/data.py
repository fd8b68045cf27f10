"""The features pass, end to end from JPEG files: ours against plain PyTorch and against the published recipe, in one run.

- plain: `ImageFolder` and a `DataLoader` with as many workers as threads, float32, a hook on each BatchNorm layer that sums
  each image's mean and mean square by class; features gathered and written once with h5py.
- published: as WMDD's released code goes about it, twice over the data: once for the features, and once with a loader for
  each class, whose hooks take mean and variance of each batch.
- ours: the features stage on the `data.h5` of the data stage with the files' own bytes, written to features.h5 and
  statistics.h5; in float32 (`exact: true`) and in bfloat16 (as it is by default on hardware that has it).

All see the same pictures and the same network; that features and statistics agree is checked first. Then they take turns;
medians of the pairs are reported. Where our time goes is measured by running each part alone.

    python -m benchmarks.data --root FOLDER [--resolution 64] [--width 64] [--images 100] [--repeats 5] [--threads 2]
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import h5py
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from benchmarks.machine import processor
from benchmarks.published_students import MEAN, STD
from wmdd.artifacts import hdf5, hdf5_writer
from wmdd.artifacts.partial_output import Pieces
from wmdd.datasets.loader import Resident, opened, read
from wmdd.networks.batchnorm import layers
from wmdd.networks.engine import Engine, plain
from wmdd.networks.models import Network, build
from wmdd.networks.normalisation import Normalisation
from wmdd.settings.data import DataSettings
from wmdd.settings.network import NetworkSettings
from wmdd.settings.teacher import FeaturesSettings
from wmdd.stages.data import pack
from wmdd.stages.feature_files import join_features, join_statistics, keep
from wmdd.stages.features import extract

Hook = Callable[[str, Tensor, Tensor], None]


def hooked(network: Network, loader: DataLoader, hook: Hook) -> Tensor:
    """Pass a loader through the network; `hook` gets layer, input and labels. Return the features."""
    labels = torch.empty(0)
    handles = [
        layer.register_forward_pre_hook(lambda _, inputs, name=name: hook(name, inputs[0], labels))
        for name, layer in layers(network).items()
    ]
    features = []
    with torch.no_grad():
        for images, batch_labels in loader:
            labels = batch_labels
            features.append(network.embed(images))
    for handle in handles:
        handle.remove()
    return torch.cat(features)


def plain_pass(network: Network, data: Subset, classes: int, options: argparse.Namespace, output: Path) -> dict:
    """One pass with a loader and hooks."""
    sums: dict[str, list[Tensor]] = {}

    def hook(name: str, x: Tensor, labels: Tensor) -> None:
        if name not in sums:
            sums[name] = [torch.zeros(classes, x.shape[1]) for _ in range(2)]
        sums[name][0].index_add_(0, labels, x.mean((2, 3)))
        sums[name][1].index_add_(0, labels, x.square().mean((2, 3)))

    loader = DataLoader(data, batch_size=options.batch, num_workers=options.threads)
    features = hooked(network, loader, hook)
    with h5py.File(output, "w") as file:
        file["features"] = features.numpy()
    return {"features": features, "sums": sums}


def published_pass(network: Network, data: Subset, classes: int, options: argparse.Namespace, output: Path) -> dict:
    """Two passes, the second with a loader for each class."""
    loader = DataLoader(data, batch_size=options.batch, num_workers=options.threads)
    features = hooked(network, loader, lambda *_: None)
    targets = torch.tensor([data.dataset.targets[i] for i in data.indices])
    found: dict[int, dict[str, list[Tensor]]] = {}
    for label in range(classes):
        mine = Subset(data.dataset, [data.indices[i] for i in torch.nonzero(targets == label).flatten().tolist()])
        batches = found[label] = {}

        def hook(name: str, x: Tensor, _: Tensor, batches: dict[str, list[Tensor]] = batches) -> None:
            variance = x.permute(1, 0, 2, 3).reshape(x.shape[1], -1).var(1, unbiased=False)
            batches.setdefault(name, []).append(torch.stack([x.mean((0, 2, 3)), variance]))

        hooked(network, DataLoader(mine, batch_size=options.batch, num_workers=options.threads), hook)
    with h5py.File(output, "w") as file:
        file["features"] = features.numpy()
    return {"features": features, "batches": found}


def our_pass(network: Network, path: Path, settings: FeaturesSettings, engine: Engine, folder: Path) -> Path:
    """The features stage, as its command runs it."""
    pieces = Pieces(folder / "ours.h5", "benchmark")
    with opened(path, "train", once=True) as (pictures, _):
        for shard in extract(network, pictures, Normalisation(MEAN, STD), settings, engine):
            keep(pieces, shard)
    classes = len(hdf5.load_meta(path)["classes"])
    join_statistics(pieces.files, folder / "statistics.h5", {}, classes)
    join_features(pieces.files, folder / "ours.h5", {})
    pieces.remove()
    return folder / "ours.h5"


def parts(network: Network, path: Path, settings: FeaturesSettings, engine: Engine, folder: Path) -> dict[str, float]:
    """Return the seconds of decoding, of the forward passes with their moments and of writing, each alone."""
    with opened(path, "train", once=True) as (pictures, _):
        start = time.perf_counter()
        images = read(pictures, torch.arange(len(pictures.labels)))
        decode = time.perf_counter() - start
        start = time.perf_counter()
        found = list(extract(network, Resident(images, pictures.labels), Normalisation(MEAN, STD), settings, engine))
        forward = time.perf_counter() - start
    start = time.perf_counter()
    pieces = Pieces(folder / "parts.h5", "benchmark")
    for shard in found:
        keep(pieces, shard)
    join_features(pieces.files, folder / "parts.h5", {})
    pieces.remove()
    return {"decode": decode, "forward": forward, "write": time.perf_counter() - start}


def subset_of(root: Path, options: argparse.Namespace) -> tuple[Subset, int]:
    """Return the first pictures of each class, as `images_per_class` keeps them."""
    transform = transforms.Compose(
        [
            transforms.Resize(options.resolution),
            transforms.CenterCrop(options.resolution),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    folder = ImageFolder(str(root / "train"), transform)
    targets = torch.tensor(folder.targets)
    kept = [torch.nonzero(targets == label).flatten()[: options.images] for label in range(len(folder.classes))]
    return Subset(folder, torch.cat(kept).tolist()), len(folder.classes)


def check(reference: dict, found: Path, classes: int, network: nn.Module) -> None:
    """Refuse to time ways that disagree."""
    features = torch.from_numpy(hdf5.load(found, "features")[0]["features"])
    off = float((features - reference["features"]).norm() / reference["features"].norm())
    assert off < 1e-3, off
    moments, _ = hdf5.load(found.with_name("statistics.h5"))
    count = torch.from_numpy(moments["count"])[:, None]
    for name in layers(network):
        mean = reference["sums"][name][0] / count
        assert float((mean - moments[f"mean/{name}"]).abs().max()) < 1e-3 * float(mean.abs().max()), name


def main() -> None:
    """Check that all agree, time them in turn, print and keep the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, help="folder with train/ and val/")
    for name, default in (
        ("resolution", 64),
        ("width", 64),
        ("images", 100),
        ("repeats", 5),
        ("threads", 2),
        ("batch", 128),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data, classes = subset_of(options.root, options)
    network = build(NetworkSettings(width=options.width), classes, options.resolution, torch.Generator()).eval()
    engines = {"fp32": plain(), "bf16": Engine(torch.device("cpu"), torch.bfloat16)}
    exact = FeaturesSettings(batch_size=options.batch, exact=True)
    with TemporaryDirectory() as name:
        folder = Path(name)
        source = DataSettings(
            root=str(options.root.resolve()), classes=classes, resolution=options.resolution, storage="encoded",
            images_per_class=options.images,
        )  # fmt: skip
        start = time.perf_counter()
        with hdf5_writer.writing(folder / "data.h5") as writer:
            writer.meta = pack(source, writer)
            total = sum(map(sum, writer.meta["counts"].values()))
        packing = total / (time.perf_counter() - start)
        fast = build(NetworkSettings(width=options.width), classes, options.resolution, torch.Generator()).eval()
        fast = plain().place(fast)
        ways = {
            "plain, fp32": lambda: plain_pass(network, data, classes, options, folder / "plain.h5"),
            "published, fp32": lambda: published_pass(network, data, classes, options, folder / "plain.h5"),
            "wmdd, fp32": lambda: our_pass(fast, folder / "data.h5", exact, engines["fp32"], folder),
            "wmdd, bf16": lambda: our_pass(
                fast, folder / "data.h5", exact.model_copy(update={"exact": False}), engines["bf16"], folder
            ),
        }
        check(ways["plain, fp32"](), ways["wmdd, fp32"](), classes, network)
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(options.repeats):
            for name, way in ways.items():
                start = time.perf_counter()
                way()
                times[name].append(time.perf_counter() - start)
        spent = [parts(fast, folder / "data.h5", exact, engines["fp32"], folder) for _ in range(options.repeats)]
    shares = {part: statistics.median(one[part] / sum(one.values()) for one in spent) for part in spent[0]}
    result = {
        "machine": f"{processor()}, {options.threads} thread(s)",
        "torch": torch.__version__,
        "options": {k: v for k, v in vars(options).items() if k != "root"} | {"data": options.root.name},
        "pictures": len(data),
        "data stage, pictures a second": round(packing),
        "share of our time (fp32)": {part: round(share, 3) for part, share in shares.items()},
        "rows": {},
    }
    for name, values in times.items():
        ratio = statistics.median(r / v for r, v in zip(times["plain, fp32"], values, strict=True))
        rate = round(len(data) / statistics.median(values), 1)
        result["rows"][name] = {"pictures a second": rate, "times plain": round(ratio, 2), "n": len(values)}
        print(f"{name:16} {result['rows'][name]}")
    print(
        result["share of our time (fp32)"], "data stage:", result["data stage, pictures a second"], "pictures a second"
    )
    output = Path(__file__).parent / "results" / f"data-cpu-w{options.width}-{options.resolution}px.json"
    output.write_text(json.dumps(result, indent=2) + "\n")
    print(f"kept in {output}")


if __name__ == "__main__":
    main()
