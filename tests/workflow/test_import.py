"""The family import in the real workflow: a set that others made is one more row, and a change of it reruns what follows."""

import re
import subprocess

import numpy as np
import pytest
import yaml
from PIL import Image

from wmdd.artifacts.hdf5 import load, load_meta

from .conftest import ENTRY, TINY, Workspace

pytestmark = [pytest.mark.workflow, pytest.mark.slow]

AFTER = {"relabel": 1, "student": 1, "grid": 1, "report": 1, "page": 1, "all": 1}


def given(run: Workspace) -> np.ndarray:
    """Write an image folder and a file of arrays with the images that the run chose at random; return these [C, K, ...]."""
    random, _ = load(run.root / "results/digits/nano/random/ipc2/seed0/images.h5")
    names = load_meta(run.root / "data/digits.h5")["classes"]
    for name, images in zip(names, random["images"], strict=True):
        folder = run.root / "theirs" / name
        folder.mkdir(parents=True)
        for number, pixels in enumerate(images):
            Image.fromarray(pixels.transpose(1, 2, 0)).save(folder / f"{number}.png")
    floats = random["images"].astype(np.float32) / 255
    floats[0, 0, 0, 0, 0] = -0.5
    np.savez(run.root / "arrays-2.npz", images=floats.reshape(-1, 3, 16, 16), labels=np.arange(10).repeat(2))
    return random["images"]


def test_imported_sets_are_rows_beside_their_controls(run: Workspace) -> None:
    images = given(run)
    methods = {
        "folder": {"family": "import", "images": {"path": "theirs"}},
        "arrays": {"family": "import", "images": {"path": "arrays-{ipc}.npz", "space": "unit"}},
    }
    run.config = TINY | {"methods": methods, "matrix": [ENTRY | {"methods": ["folder", "arrays", "random"]}]}
    run.snakemake()
    place = run.root / "results/digits/nano"
    folder, meta = load(place / "folder/ipc2/seed0/images.h5")
    assert np.array_equal(folder["images"], images)
    assert meta["imported"]["path"] == "theirs"
    assert len(meta["imported"]["sha256"]) == 64
    floats, _ = load(place / "arrays/ipc2/seed0/images.h5")
    assert floats["images"].dtype == np.float32
    assert floats["images"][0, 0, 0, 0, 0] == -0.5
    table = (run.root / "results/report/table.md").read_text()
    assert all(f"| {method}" in table for method in ("folder", "arrays", "random"))
    assert run.pending() == {}

    (run.root / "theirs" / meta["classes"][0] / "0.png").write_bytes(
        (run.root / "theirs" / meta["classes"][0] / "1.png").read_bytes()
    )
    assert run.pending() == {"images": 1} | AFTER, "a picture in the folder is another one"


def test_a_set_that_is_not_there_stops_before_anything_runs(run: Workspace) -> None:
    method = {"family": "import", "images": {"path": "sets/{ipc}.pt"}}
    run.config = TINY | {"methods": {"theirs": method}, "matrix": [ENTRY | {"methods": ["theirs"]}]}
    result = run.snakemake("-n", check=False)
    assert (
        "method theirs on digits: images.path: there is no sets/2.pt; paths are from" in result.stdout + result.stderr
    )


def test_a_set_is_scored_by_one_command_or_from_arrays(run: Workspace) -> None:
    images = given(run)
    run.config = {name: value for name, value in TINY.items() if name != "matrix"}
    choices = (
        "--dataset digits --teacher nano --students nano --protocol short,short-hard --seeds 2 --configfile tiny.yaml"
    )
    run.python("-m", "wmdd", "evaluate", "theirs", *choices.split(), "--", "--dry-run", "--quiet")
    content = yaml.safe_load((run.root / "evaluations/theirs.yaml").read_text())
    assert content["matrix"][0]["ipc"] == [2], "counted"
    assert content["matrix"][0]["methods"] == ["theirs", "random", "kmeans-medoid"]
    assert content["matrix"][0]["protocols"] == ["short", "short-hard"]
    other = (
        run.command("--version")[0],
        "-m",
        "wmdd",
        "evaluate",
        "theirs",
        *choices.replace("--configfile tiny.yaml", "").split(),
    )
    said = subprocess.run(other, cwd=run.root, env=run.environment, capture_output=True, text=True, check=False).stderr
    assert "unknown name 'nano' in teachers" in said
    run.change("datasets.digits.data.resolution", 24)
    other = other[0], *other[1:], "--configfile", "tiny.yaml"
    said = subprocess.run(other, cwd=run.root, env=run.environment, capture_output=True, text=True, check=False).stderr
    assert "the set's images are 16 px and those of digits 24 px; add --resize, or set data: {resolution: 16}" in said
    run.change("datasets.digits.data.resolution", 16)

    np.save(run.root / "given.npy", images.reshape(-1, 3, 16, 16))
    script = """
from pathlib import Path
import re

import numpy as np
import wmdd
table = wmdd.evaluate(
    np.load("given.npy"), np.arange(10).repeat(2), "digits", "short", name="mine", teacher="nano", students=["nano"], seeds=1,
    controls=["random"], configfiles=[Path("tiny.yaml")],
)
print("rows:", *sorted(zip(table["method"], table["mean"].round(9))))
"""
    rows = run.python("-c", script).partition("rows: ")[2]
    scores = dict(re.findall(r"\('(\w+)', (?:np.float64\()?([\d.]+)", rows))
    assert scores["mine"] == scores["random"], "the same images, labels and steps"
