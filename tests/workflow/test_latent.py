"""The latent family in the real workflow: DDOQ and D4M end in images with weights, and a change reruns what it must."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from wmdd.artifacts.atomic_files import read_json
from wmdd.artifacts.hdf5 import load, load_meta
from wmdd.datasets.loader import opened, read
from wmdd.report import thumbnails

from .conftest import ENTRY, TINY, Workspace, run_of

pytestmark = [pytest.mark.workflow, pytest.mark.slow]

CELL = "results/digits/nano/{}/ipc2/seed0"
CONFIG = TINY | {
    "matrix": [ENTRY | {"methods": ["ddoq", "d4m-vae", "ddoq-recover"], "protocols": ["short-hard"]}],
    "generators": {
        "vae": {"autoencoder": {"width": 8, "epochs": 3, "batch_size": 24}},
        "latent-diffusion": {"diffusion": {"width": 8, "layers": 1, "epochs": 2}, "decode": {"steps": 4}},
    },
    "decay": {"most": 8, "classes": 3},
}
# one block of classes that takes its latents from two jobs
SIZES = {"features_jobs": 2, "classes_per_block": 10, "recover": {"iterations": 5, "lr": 0.001}}
CONFIG["datasets"] = {"digits": TINY["datasets"]["digits"] | SIZES}
REPORT = {"report": 1, "page": 1, "all": 1}
AFTER_DDOQ = {"recover": 1, "join": 2, "distance": 1, "student": 2, "grid": 2, "distances": 1, **REPORT}


@pytest.fixture(scope="module")
def latent(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The tiny workflow of the latent family, run to the end. Never to be changed: use `run`."""
    return run_of(CONFIG, tmp_path_factory)


@pytest.fixture
def run(latent: Workspace, tmp_path: Path) -> Workspace:
    return latent.copy(tmp_path / "run")


def test_atoms_images_and_weights_belong_together(latent: Workspace) -> None:
    for method in "ddoq", "d4m-vae":
        folder = latent.root / CELL.format(method)
        atoms = [load(path)[0] for path in sorted((folder / "quantize").glob("*.h5"))]
        images, meta = load(folder / "images.h5")
        assert images["images"].shape == (10, 2, 3, 16, 16)
        weights = np.concatenate([part["weights"] for part in atoms])
        assert np.array_equal(images["weights"], weights)
        assert weights.sum(1) == pytest.approx(np.ones(10))
        assert (weights == 0.5).all() == (method == "d4m-vae")
        assert meta["decode"]["settings"]["kind"] == {"ddoq": "latent-diffusion", "d4m-vae": "vae"}[method]
        assert len({image.tobytes() for image in images["images"].reshape(20, -1)}) == 20
        assert images["images"].std() > 1, "three epochs leave them grey, but not all the same"


def test_what_is_shared_is_made_once_and_parts_are_deleted(latent: Workspace) -> None:
    latents = latent.contents("results/digits/latent/*/seed0/latents/*.h5")
    assert sorted(Path(name).name for name in latents) == ["classes0-4.h5", "classes5-9.h5"]
    assert [load_meta(latent.root / name)["shape"] for name in latents] == [[4, 4, 4]] * 2
    assert len(latent.contents("results/digits/latent/*/seed0/*.safetensors")) == 2
    assert latent.contents("results/**/features/*.h5", "results/**/decode/*.h5") == {}
    assert len(latent.contents("results/**/features/*.cost.json", "results/**/decode/*.cost.json")) == 4


def test_distances_say_that_masses_help(latent: Workspace) -> None:
    text = (latent.root / "results/report/distances.md").read_text()
    assert "d4m-vae" in text
    assert "ddoq-recover" not in text, "of other families only where distances: true asks for it"
    for path in (latent.root / CELL.format("ddoq") / "quantize").glob("*.h5"):
        quality = load(path)[0]
        assert (quality["quality/cost"] <= quality["quality/uniform_cost"] * (1 + 1e-6)).all()
    distance = read_json(latent.root / CELL.format("ddoq") / "distance.json")["distance"]
    assert len(distance["cost"]) == 10
    assert min(distance["cost"]) > 0
    decay = read_json(latent.root / "results/digits/latent/vae/seed0/decay.json")["decay"]
    assert [row["atoms"] for row in decay] == [[1, 2, 4, 8]] * 3
    assert (latent.root / "results/report/distances.png").stat().st_size > 10_000


def test_the_page_shows_the_nearest_real_images(latent: Workspace) -> None:
    nearest = read_json(latent.root / CELL.format("ddoq") / "distance.json")["nearest"]
    with opened(latent.root / "data/digits.h5", "train") as (pictures, _):
        rows = torch.tensor(nearest)
        assert torch.equal(pictures.labels[rows], torch.arange(10)[:, None].expand_as(rows)), "of its own class"
        strips = [thumbnails.strip(read(pictures, several).numpy())[0] for several in rows]
    shown = re.findall(r'data-nearest="([^"]+)"', (latent.root / "results/report/index.html").read_text())
    assert {*strips} < {*shown}


def test_recover_begins_at_the_images_of_ddoq(latent: Workspace) -> None:
    begun, start = load(latent.root / CELL.format("ddoq") / "images.h5")
    ended, meta = load(latent.root / CELL.format("ddoq-recover") / "images.h5")
    assert meta["recover"]["inputs"]["start"] == [start["digest"]]

    def off(a: np.ndarray, b: np.ndarray) -> float:  # either image of a class may have taken either place
        return float(min(np.abs(a - b[order]).mean() for order in ([0, 1], [1, 0])))

    grey = begun["images"].mean(2, keepdims=True)  # as the digits are, of which recover makes grey images
    pairs = zip(ended["images"].astype(int), grey, strict=True)
    assert max(off(mine, start) for mine, start in pairs) < 1, "five steps of a small rate lead nowhere"


CHANGES = [
    ("experiment", "tiny", {}),  # as it was
    ("methods", {"ddoq": {"decode": {"strength": 0.4}}}, {"decode": 1, **AFTER_DDOQ}),
    ("methods", {"ddoq": {"student": {"weights": "mass"}}}, {"student": 1, **REPORT}),
    ("generators.latent-diffusion.diffusion.epochs", 3, {"diffusion": 1, "decode": 1, **AFTER_DDOQ}),
    ("generators.vae.autoencoder.epochs", 4,
     {"autoencoder": 1, "encode": 2, "diffusion": 1, "quantize": 2, "decode": 2, "decay": 1, "recover": 1, "join": 3,
      "distance": 2, "student": 3, "grid": 3, "distances": 1, **REPORT}),
]  # fmt: skip


def test_a_setting_reruns_the_stages_that_use_it(run: Workspace) -> None:
    assert run.pending_after(CHANGES) == [jobs for _, _, jobs in CHANGES]


def test_another_number_of_images_makes_no_latents_anew(run: Workspace) -> None:
    pending = run.changed("matrix", [run.config["matrix"][0] | {"ipc": [2, 3]}])
    assert pending["quantize"] == pending["decode"] == 2
    assert not {"data", "teacher", "features_part", "autoencoder", "encode", "diffusion", "decay"} & set(pending)


def test_a_pipeline_is_another_generator_and_looked_for_before_anything_runs(run: Workspace) -> None:
    run.change("matrix", [run.config["matrix"][0] | {"methods": ["ddoq-mine"]}])
    run.change("methods", {"ddoq-mine": {"base": "ddoq", "generator": "mine"}})
    run.change("generators.mine", {"kind": "ldm", "model": "./nothing-here"})
    said = run.mistake()
    assert "method ddoq-mine on digits: generator mine: model: there is no folder ./nothing-here" in said
    pending = run.changed("generators.mine.model", "somebody/something")  # which only the job looks for
    assert not {"autoencoder", "diffusion"} & set(pending)
