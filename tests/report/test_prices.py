"""What a set took to make: its own jobs and all that it was made from, by digests; and the bytes of its own labels."""

import math
from pathlib import Path

from tests.report.test_results import result
from wmdd.report.prices import priced
from wmdd.report.results import jobs, rows, summary
from wmdd.workflow.layout import Cell, cost_of, path_of
from wmdd.workflow.stages import STAGES


class World:
    """An experiment as files with digests, and as jobs with seconds."""

    def __init__(self):
        self.files, self.jobs, self.students = [], {}, []

    def make(self, stage, seconds, digest, inputs=(), size=1000, **parts):
        path = path_of(STAGES[stage].file, Cell(dataset="d", **parts))
        self.files.append(
            (path, {"stage": stage, "digest": digest, "inputs": {str(n): of for n, of in enumerate(inputs)}})
        )
        cost = {"stage": stage, "seconds": seconds, "peak_memory_mb": 1, "bytes": size}
        self.jobs[Path(cost_of(path))] = cost
        return digest

    def student(self, images, labels=None, **parts):
        path, content = result(0.5, dataset="d", **parts)
        self.students.append((path, content))
        taught = {"images": images} | ({"labels": labels} if labels else {})
        self.files.append((str(path), {"stage": "student", "inputs": taught}))

    def prices(self):
        table = summary(priced(rows(self.students), jobs([*self.jobs.items()]), self.files))
        return table.set_index(["teacher", "method", "protocol"])


def made(world, teacher="t", method="m", seed=0, ipc=10, statistics="f"):
    """A recovered set in two blocks, of 3 + 4 seconds each, and its joining."""
    parts = {"teacher": teacher, "method": method, "ipc": ipc, "seed": seed}
    name = f"{teacher}{method}{seed}"
    for block in ("classes0-4", "classes5-9"):
        barycenter = world.make("barycenter", 3, f"atoms{block}", [statistics], **parts, block=block)
        world.make("recover", 4, f"{name}{block}", [barycenter, statistics], **parts, block=block)
    return world.make("images", 1, name, [f"{name}classes0-4", f"{name}classes5-9"], size=70, **parts)


def teacher(world, name, seconds, seed=0):
    data = world.make("data", 5, "data")
    weights = world.make("teacher", seconds, f"w{name}{seed}", [data], teacher=name, seed=seed)
    return world.make("features", 2, f"f{name}{seed}", [data, weights], teacher=name, seed=seed)


def test_a_set_pays_for_its_own_teacher():
    world = World()
    for name, seed, seconds in (("A", 0, 10), ("B", 0, 1000), ("t", 0, 10), ("t", 1, 30)):
        features = teacher(world, name, seconds, seed)
        world.student(made(world, name, seed=seed, statistics=features), teacher=name, method="m", seed=seed)
    spent = world.prices()["seconds"]
    assert spent["A", "m", "paper"] == 5 + 10 + 2 + 15
    assert spent["B", "m", "paper"] == 5 + 1000 + 2 + 15
    assert spent["t", "m", "paper"] == 5 + (10 + 30) / 2 + 2 + 15, "of each seed its own"


def test_a_barycenter_that_two_methods_share_is_paid_by_each_alone():
    world = World()
    features = teacher(world, "t", 10)
    for method in ("wmdd", "wmdd-ce"):
        world.student(made(world, method=method, statistics=features), teacher="t", method=method)
    assert world.prices()["seconds"].tolist() == [5 + 10 + 2 + 15] * 2


def test_a_set_pays_for_the_experts_or_the_generator_that_it_uses_and_for_no_others():
    world = World()
    data = world.make("data", 5, "data")
    experts = [world.make("expert", 1000 * (n + 1), f"e{n}", [data], expert="small", seed=n) for n in range(3)]
    parts = {"teacher": "t", "ipc": 10, "seed": 0}
    block = world.make("match", 7, "m0", [data, *experts[:2]], method="mtt", **parts, block="classes0-9")
    world.student(world.make("images", 1, "m0", [block], method="mtt", **parts), teacher="t", method="mtt")
    for name, seconds in (("vae", 50), ("other", 500)):
        coder = world.make("autoencoder", seconds, name, [data], generator=name, seed=0)
        latents = world.make("encode", 2, f"z{name}", [coder, data], generator=name, seed=0, block="classes0-9")
        world.make("decay", 9999, f"decay{name}", [latents], generator=name, seed=0)
        atoms = world.make("quantize", 3, f"a{name}", [latents], method=name, **parts, block="classes0-9")
        block = world.make("decode", 4, f"p{name}", [coder, atoms], method=name, **parts, block="classes0-9")
        world.student(world.make("images", 1, f"p{name}", [block], method=name, **parts), teacher="t", method=name)
    spent = world.prices()["seconds"]
    assert spent["t", "mtt", "paper"] == 5 + 1000 + 2000 + 7 + 1
    assert spent["t", "vae", "paper"] == 5 + 50 + 2 + 3 + 4 + 1
    assert spent["t", "other", "paper"] == 5 + 500 + 2 + 3 + 4 + 1


def test_the_bytes_are_of_the_images_and_of_the_labels_that_were_learned_from():
    world = World()
    images = made(world, statistics=teacher(world, "t", 1))
    parts = {"teacher": "t", "method": "m", "ipc": 10, "seed": 0}
    for protocol, size in (("paper", 400), ("long", 9000)):
        world.make("relabel", 100, f"l{protocol}", [images], size=size, **parts, protocol=protocol)
    for protocol, labels in (("paper", "lpaper"), ("mine", "lpaper"), ("long", "llong"), ("hard", None)):
        world.student(images, labels, teacher="t", method="m", protocol=protocol)
    assert world.prices()["bytes"].to_dict() == {
        ("t", "m", "hard"): 70, ("t", "m", "long"): 9070, ("t", "m", "mine"): 470, ("t", "m", "paper"): 470
    }  # fmt: skip


def test_a_coded_set_has_the_bytes_of_its_files():
    world = World()
    images = made(world, statistics=teacher(world, "t", 1))
    place, meta = next((path, meta) for path, meta in world.files if meta["digest"] == images)
    meta["coded"] = {"bytes": 33}
    world.student(images, teacher="t", method="m", protocol="hard")
    assert place.endswith("images.h5")
    assert world.prices()["bytes"].to_dict() == {("t", "m", "hard"): 33}


def test_a_price_that_is_not_known_is_not_zero():
    world = World()
    world.student("x", teacher="t", method="m")
    world.make("data", 5, "data")
    (price,) = world.prices()[["seconds", "bytes"]].to_dict("records")
    assert math.isnan(price["seconds"])
    assert math.isnan(price["bytes"])
