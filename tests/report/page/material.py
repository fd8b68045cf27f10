"""An experiment that never ran, with everything that a page can show."""

import itertools
import math
from pathlib import Path

import numpy as np
import pandas as pd

from wmdd.report import published
from wmdd.report.by_class import Students, by_class
from wmdd.report.overview import Overview, Thumbnails, overviews
from wmdd.report.page import Material
from wmdd.report.results import jobs, kind_of, rows, set_of
from wmdd.report.tables import Price
from wmdd.report.thumbnails import Strip, strip
from wmdd.workflow.layout import CELL, Cell, cost_of, path_of
from wmdd.workflow.stages import STAGES

ROOT = Path(__file__).parents[3]
METHODS = ("random", "kmeans-medoid", "wmdd", "wmdd-ce", "sre2l", "wmdd-lambda-regularisation1", "ddoq")
SCORES = {"random": 0.30, "kmeans-medoid": 0.33, "wmdd": 0.42, "wmdd-ce": 0.40, "sre2l": 0.25, "ddoq": 0.36}
FAMILIES = {"random": "select", "kmeans-medoid": "select", "ddoq": "latent"}
STEPS = {
    "select": ["select"],
    "latent": ["quantize", "decode", "join"],
    "recover": ["barycenter", "recover", "join"],
}
NAMES = ["tench", '<b>&"quotes"', "français", "cassette player"]


def results() -> list:
    """Scores of students: seeds 0 and 1, soft and hard labels, two kinds of students."""
    found = []
    for method, ipc, seed, labels, student in itertools.product(
        METHODS, (1, 10), (0, 1), ("soft", "hard"), ("resnet18", "convnet3")
    ):
        protocol, less = ("paper", 0) if labels == "soft" else ("paper-hard", 0.05)
        cell = Cell("imagenette", "resnet18", method, ipc, seed, student, protocol, run=0)
        top1 = SCORES.get(method, 0.38) + 0.02 * math.log(ipc) + 0.01 * seed - less
        scores = {"top1": top1, "top5": 0.9, "best_top1": top1, "best_epoch": 30}
        found.append((Path(path_of("student", cell)), {"settings": {"labels": labels}, "result": scores}))
    return found


def cells_of(found: list) -> pd.DataFrame:
    """A row a student, each with the family of its method."""
    places = rows(found).to_dict("records")
    known = {set_of(Cell.of({k: place[k] for k in CELL if place[k] != ""})): place["method"] for place in places}
    return rows(found, {cell: FAMILIES.get(method, "recover") for cell, method in known.items()})


def histories(cells: pd.DataFrame) -> pd.DataFrame:
    """Three measurements and thirty losses of each student."""
    epochs = pd.DataFrame({"epoch": np.arange(1, 31), "loss": 1 / np.arange(1, 31)})
    table = cells[[*CELL, "labels", "top1"]].merge(epochs, how="cross")
    return table.assign(top1=(table["top1"] * table["epoch"] / 30).where(table["epoch"] % 10 == 0))


def job(stage: str, seconds: float, **parts: object) -> tuple[Path, dict]:
    """The cost of a job; of a GPU where a student was trained."""
    parts = {"dataset": "imagenette", "block": "classes0-3", "seed": 0} | parts
    cost = {
        "stage": stage,
        "seconds": seconds,
        "bytes": 1000 * seconds,
        "peak_memory_mb": 500,
        "machine": "A processor",
    }
    gpu = {"peak_gpu_memory_mb": 900.0} if stage == "student" else {}
    return Path(cost_of(path_of(STAGES[stage].file, Cell(**parts)))), cost | gpu


def costs() -> pd.DataFrame:
    """Jobs of every kind."""
    found = [
        job(stage, seconds, teacher="resnet18") for stage, seconds in (("data", 5), ("teacher", 100), ("features", 10))
    ]
    found += [job(stage, 50, generator="vae") for stage in ("autoencoder", "encode")]
    found += [job("diffusion", 300, generator="latent-diffusion")]
    place = {"teacher": "resnet18", "student": "resnet18", "protocol": "paper", "run": 0}
    for method, ipc, seed in itertools.product(METHODS, (1, 10), (0, 1)):
        for stage in (*STEPS[FAMILIES.get(method, "recover")], "relabel", "student"):
            found.append(job(stage, 7 * ipc, **place, method=method, ipc=ipc, seed=seed))
    return jobs(found)


def kind(method: str) -> str:
    """Whether the images of a method are real or distilled."""
    return kind_of(FAMILIES.get(method, "recover"))


def noise(*shape: int) -> np.ndarray:
    """Random pixels."""
    return np.random.default_rng(shape).integers(0, 256, shape, dtype=np.uint8)


def strips() -> list[Strip]:
    """Noise of every method."""
    found = []
    for label, method, ipc in itertools.product(range(len(NAMES)), METHODS, (1, 10)):
        source, side = strip(noise(ipc, 3, 16, 16))
        nearest = strip(noise(ipc + 1, 3, 16, 16)[1:])[0] if kind(method) == "distilled" else ""
        found.append(
            Strip("imagenette", "resnet18", method, kind(method), ipc, NAMES[label], ipc, side, source, nearest)
        )
    return found


def seen(names: list[str], side: int) -> list[Overview]:
    """Noise of every class and method."""
    pixels = noise(len(names), side, side, 3)
    return overviews(Thumbnails("imagenette", "resnet18", m, kind(m), 1, names, pixels) for m in METHODS)


def students(cells: pd.DataFrame, classes: int, few: bool = True) -> list[Students]:
    """Of ten validation pictures of each class, those that are right; `few` classes have what they are taken for."""
    draw, counts = np.random.default_rng(2), []
    for cell in cells.to_dict("records"):
        right = draw.binomial(10, cell["top1"] / 100, classes)
        confusion = np.diag(right) + np.roll(np.diag(10 - right), 1, axis=1)  # each class is taken for the next one
        count = {"right": right.tolist(), "total": [10] * classes}
        counts.append(
            {"by_class": count | ({"confusion": confusion.tolist()} if few else {})} if cell["ipc"] > 1 else {}
        )
    return by_class(counts, cells)


def files() -> list:
    """A chain whose teacher was trained anew after the images were made."""
    engine, versions = {"device": "cpu", "dtype": "float32"}, {"torch": "2.13.0"}
    chain = [
        ("data/imagenette.h5", "data", "d", {}),
        ("teacher", "teacher", "t2", {"data": "d"}),
        ("features", "features", "f", {"data": "d", "teacher": "t2"}),
        ("block", "recover", "i", {"teacher": "t1", "statistics": "f"}),
        ("images", "images", "i", {"0": "i"}),
        ("run0.json", "student", "s", {"images": "i", "data": "d"}),
    ]
    common = {"engine": engine, "versions": versions, "revision": "abc123"}
    metas = [(path, common | {"stage": s, "digest": digest, "inputs": inputs}) for path, s, digest, inputs in chain]
    metas[-1][1]["versions"] = {"torch": "2.12"}
    return metas


def maps() -> pd.DataFrame:
    draw = np.random.default_rng(1)
    rows = [(name, method) for name in NAMES for method in ("", *METHODS) for _ in range(5)]
    table = pd.DataFrame(rows, columns=["name", "method"])
    return table.assign(x=draw.normal(size=len(table)), y=draw.normal(size=len(table)))


def material() -> Material:
    """Everything."""
    cells = cells_of(results())
    counts = {"train": [900, 900, 900, 900], "val": [50, 50, 50, 50]}
    meta = {
        "variant": "test", "classes": ["n1", "n2", "n3", "n4"], "names": NAMES, "counts": counts, "resolution": 64,
        "duplicates": {"val in train": 2}, "skipped": ["a.jpg"], "enlarged": {"count": 0}, "mean": [0.5] * 3, "std": [0.2] * 3,
    }  # fmt: skip
    of = pd.DataFrame(
        [("imagenette", "resnet18", method, ipc, 8.0 / ipc**0.1) for method in ("wmdd", "wmdd-ce") for ipc in (1, 10)],
        columns=["dataset", "teacher", "method", "ipc", "cost"],
    )
    latent = pd.DataFrame(
        [("imagenette", "resnet18", "ddoq", ipc, 200.0 / ipc**0.1, 3.0 / ipc) for ipc in (1, 10)],
        columns=["dataset", "teacher", "method", "ipc", "latents W2^2", "features W2^2"],
    )
    falling = pd.DataFrame({"atoms": [1, 2, 4, 8], "cost": [10.0, 9.0, 8.2, 7.4]})
    rest = '{"recover: iterations": 300}'
    return Material(
        experiment="an <experiment>",
        cells=cells,
        histories=histories(cells),
        costs=costs(),
        files=files(),
        datasets=[("imagenette", meta)],
        teachers={
            path_of("teacher", Cell("imagenette", "resnet18", seed=0)): {
                "accuracy": {"top1": 0.9},
                "settings": {"architecture": "resnet18"},
            },
        },
        barycenters=of,
        distances=latent,
        decays=falling.assign(dataset="imagenette", generator="vae", fitted=12.0, twonn=11.0, mle=math.nan),
        maps={("imagenette", "resnet18"): maps()},
        strips=strips(),
        overviews=seen(NAMES, 16),
        students=students(cells, len(NAMES)),
        command="snakemake --configfile 'my file.yaml'",
        price=Price(2.0, "EUR"),
        settings={
            "wmdd": {"recover: regularisation": 10.0, "recover: lr": 0.1},
            "sre2l": {"recover: regularisation": 0.01, "recover: lr": 0.1},
            "random": {"select: strategy": "random"},
        },
        regularisations={
            ("imagenette", "wmdd"): (rest, 10.0),
            ("imagenette", "wmdd-lambda-regularisation1"): (rest, 1.0),
            ("imagenette", "sre2l"): ("{}", 0.01),
            ("another", "sre2l"): (rest, 5.0),
        },
        published=published.read(ROOT / "config/published.yaml"),
        links=[("results/report/table.md", "table.md")],
    )
