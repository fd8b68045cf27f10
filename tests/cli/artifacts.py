"""One small artifact of each kind, written by hand, and the commands that read them."""

import numpy as np

from wmdd.artifacts.hdf5 import load_meta
from wmdd.artifacts.hdf5_writer import save
from wmdd.artifacts.model_files import load_model, save_model
from wmdd.base.rng import generator
from wmdd.networks.models import build
from wmdd.settings.network import NetworkSettings
from wmdd.settings.student import RelabelSettings

SIDE, IPC = 8, 2
NAMES = ["ant", "bee", "cat"]
NETWORK = NetworkSettings(architecture="resnet18", width=4)
TRAINING = "--architecture resnet18 --width 4 --epochs 2 --batch-size 8 --evaluate-every 1"
CPU = "--device cpu --precision fp32"


def manifest(names=NAMES):
    return {
        "classes": names,
        "names": [name.title() for name in names],
        "resolution": SIDE,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
    }


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8)


def write_data(path, names=NAMES, seed=0):
    labels = np.repeat(np.arange(len(names)), 4)
    splits = {s: pixels(len(labels), 3, SIDE, SIDE, seed=seed + i) for i, s in enumerate(("train", "val"))}
    arrays = {f"{s}/images": images for s, images in splits.items()} | {f"{s}/labels": labels for s in splits}
    noticed = {
        "variant": "drawn",
        "counts": {s: [4] * len(names) for s in splits},
        "duplicates": {"train": 0, "val": 0, "val in train": 0},
        "skipped": [],
        "enlarged": {"count": 0, "smallest": None},
    }
    save(path, arrays, manifest(names) | noticed | {"inputs": {}})


def write_teacher(path, names=NAMES, width=4, seed=0):
    settings = NETWORK.model_copy(update={"width": width})
    network = build(settings, len(names), SIDE, generator("teacher of the test", seed))
    meta = manifest(names) | {"settings": settings.model_dump(), "accuracy": {"top1": 0.5, "top5": 1.0}}
    save_model(path, network.state_dict(), meta)


def write_features(path, statistics, teacher, data, names=NAMES):
    """What the features stage makes of any teacher, with made-up numbers."""
    state, meta = load_model(teacher)
    layers = [name.removesuffix(".running_mean") for name in state if name.endswith(".running_mean")]
    widths = {layer: len(state[f"{layer}.running_mean"]) for layer in layers}
    inputs = {"inputs": {"teacher": meta["digest"], "data": load_meta(data)["digest"]}}
    moments = {f"{kind}/{n}": np.ones((len(names), w)) for kind in ("mean", "variance") for n, w in widths.items()}
    save(statistics, moments, manifest(names) | inputs | {"layers": layers})
    labels = np.repeat(np.arange(len(names)), 4)
    values = np.random.default_rng(0).random((len(labels), state["head.weight"].shape[1]), dtype=np.float32)
    save(path, {"features": values, "labels": labels}, manifest(names) | inputs)


def write_barycenter(path, labels=(0, 1, 2), ipc=IPC, width=32, names=NAMES):
    shape = (len(labels), ipc)
    arrays = {"labels": np.array(labels), "atoms": np.ones((*shape, width), np.float32)}
    save(path, arrays | {"weights": np.full(shape, 1 / ipc, np.float32)}, manifest(names) | {"inputs": {}})


def write_images(path, labels=None, names=NAMES, seed=0):
    labels = list(range(len(names))) if labels is None else labels
    arrays = {"images": pixels(len(labels), IPC, 3, SIDE, SIDE, seed=seed), "labels": np.array(labels)}
    weights = np.full((len(labels), IPC), 1 / IPC, np.float32)
    meta = manifest(names) | {"stage": "recover", "inputs": {}, "settings": {}, "identity": {}, "code": ""}
    save(path, arrays | {"weights": weights}, meta, chunked=("images",))


def write_labels(path, images, epochs=2):
    settings = RelabelSettings(epochs=epochs).model_dump(mode="json")
    arrays = {"logits": np.zeros((epochs, len(NAMES) * IPC, len(NAMES)), np.float16), "seeds": np.arange(epochs)}
    save(path, arrays, manifest() | {"settings": settings, "inputs": {"images": load_meta(images)["digest"]}})


def write_all(folder):
    """One artifact of each kind, all of which belong together."""
    write_data(folder / "data.h5")
    write_teacher(folder / "model.safetensors")
    write_features(folder / "features.h5", folder / "statistics.h5", folder / "model.safetensors", folder / "data.h5")
    write_barycenter(folder / "barycenter.h5")
    write_images(folder / "images.h5")
    write_labels(folder / "labels.h5", folder / "images.h5")


DATA = "--data data.h5"
TEACHER = "--teacher model.safetensors"
COMMANDS = {
    "teacher": f"teacher {DATA} --output o/model.safetensors --seed 0 {TRAINING} {CPU}",
    "features": f"features {DATA} {TEACHER} --output o/features.h5 --statistics o/statistics.h5 {CPU}",
    "barycenter": f"barycenter --features features.h5 --output o/b.h5 --block classes0-2 --k {IPC} --seed 0",
    "recover": (
        f"recover {TEACHER} --class-statistics statistics.h5 --barycenter barycenter.h5 --output o/r.h5"
        f" --block classes0-2 --ipc {IPC} --seed 0 --iterations 2 {CPU}"
    ),
    "join": "join --blocks images.h5 --output o/images.h5",
    "select": (
        f"select {DATA} --features features.h5 --output o/images.h5 --ipc {IPC} --seed 0 --strategy kmeans-medoid"
    ),
    "relabel": f"relabel --images images.h5 {TEACHER} --output o/labels.h5 --seed 0 --epochs 2 {CPU}",
    "student": (
        f"student --images images.h5 {DATA} --soft-labels labels.h5 --output o/run0.json --seed 0 --run 0 {TRAINING} {CPU}"
    ),
    "grid": "grid --images images.h5 --output o/x.png",
}
