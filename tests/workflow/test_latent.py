"""The latent family in the real workflow: DDOQ and D4M end in images with weights, and a change reruns what it must."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from wmdd.artifacts.atomic_files import read_json
from wmdd.artifacts.hdf5 import load, load_meta

from .conftest import TINY, Workspace, workspace

pytestmark = [pytest.mark.workflow, pytest.mark.slow]

CELL = "results/digits/nano/{}/ipc2/seed0"
CONFIG = TINY | {
    "matrix": [
        TINY["matrix"][0] | {"methods": ["ddoq", "d4m-vae", "ddoq-recover"], "protocols": ["short-hard"]},
    ],
    "generators": {
        "vae": {"autoencoder": {"width": 8, "epochs": 3, "batch_size": 24}},
        "latent-diffusion": {"diffusion": {"width": 8, "layers": 1, "epochs": 2}, "decode": {"steps": 4}},
    },
    "decay": {"most": 8, "classes": 3},
}
# one block of classes that takes its latents from two jobs
SIZES = {"features_jobs": 2, "classes_per_block": 10, "recover": {"iterations": 5, "lr": 0.001}}
CONFIG["datasets"] = {"digits": TINY["datasets"]["digits"] | SIZES}
AFTER = {
    "images",
    "distance",
    "student",
    "grid",
    "report",
    "page",
    "distances",
    "all",
}  # what follows from decoded images


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The tiny workflow of the latent family, run to the end. Never to be changed: use `run`."""
    there = workspace(tmp_path_factory.mktemp("latent") / "made", CONFIG)
    there.snakemake()
    return there


@pytest.fixture
def run(made: Workspace, tmp_path: Path) -> Workspace:
    shutil.copytree(made.root, tmp_path / "run", symlinks=True)
    return Workspace(tmp_path / "run")


def test_atoms_images_and_weights_belong_together(made: Workspace) -> None:
    for method in "ddoq", "d4m-vae":
        folder = made.root / CELL.format(method)
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


def test_latents_and_networks_are_made_once(made: Workspace) -> None:
    latents = made.contents("results/digits/latent/*/seed0/latents/*.h5")
    assert sorted(Path(name).name for name in latents) == ["classes0-4.h5", "classes5-9.h5"]
    assert {Path(name).parts[-3] for name in latents} == {"seed0"}
    shapes = [load_meta(made.root / name)["shape"] for name in latents]
    assert shapes == [[4, 4, 4]] * 2
    assert len(made.contents("results/digits/latent/*/seed0/*.safetensors")) == 2


def test_distances_say_that_masses_help(made: Workspace) -> None:
    text = (made.root / "results/report/distances.md").read_text()
    assert "d4m-vae" in text
    assert "ddoq-recover" not in text, "of other families only where distances: true asks for it"
    atoms = [load(path)[0] for path in (made.root / CELL.format("ddoq") / "quantize").glob("*.h5")]
    for part in atoms:
        assert (part["quality/cost"] <= part["quality/uniform_cost"] * (1 + 1e-6)).all()
    found = read_json(made.root / CELL.format("ddoq") / "distance.json")["distance"]
    assert len(found["cost"]) == 10
    assert min(found["cost"]) > 0
    (decay,) = made.root.glob("results/digits/latent/vae/seed0/decay.json")
    assert [row["atoms"] for row in read_json(decay)["decay"]] == [[1, 2, 4, 8]] * 3
    assert (made.root / "results/report/distances.png").stat().st_size > 10_000


def test_recover_begins_at_the_images_of_ddoq(made: Workspace) -> None:
    (block, *_) = sorted((made.root / CELL.format("ddoq-recover") / "recover").glob("*.h5"))
    start = load_meta(made.root / CELL.format("ddoq") / "images.h5")["digest"]
    assert load_meta(block)["inputs"]["start"] == start
    begun, _ = load(made.root / CELL.format("ddoq") / "images.h5", "images")
    ended, _ = load(made.root / CELL.format("ddoq-recover") / "images.h5", "images")

    def off(a: np.ndarray, b: np.ndarray) -> float:  # either image of a class may have taken either place
        return float(min(np.abs(a - b[order]).mean() for order in ([0, 1], [1, 0])))

    pairs = zip(ended["images"].astype(int), begun["images"].astype(int), strict=True)
    assert max(off(mine, start) for mine, start in pairs) < 1, "five steps of a small rate lead nowhere"


def test_a_finished_run_has_nothing_to_do(run: Workspace) -> None:
    assert run.pending() == {}


def test_the_reverse_diffusion_reruns_decode_and_what_follows(run: Workspace) -> None:
    pending = run.changed("methods", value={"ddoq": {"decode": {"strength": 0.4}}})
    assert pending == {
        "decode": 1, "recover": 1, "images": 2, "distance": 1, "student": 2, "grid": 2, "report": 1, "page": 1, "distances": 1,
        "all": 1,
    }  # fmt: skip


def test_weights_of_a_student_rerun_students_alone(run: Workspace) -> None:
    assert run.changed("methods", value={"ddoq": {"student": {"weights": "mass"}}}) == {
        "student": 1,
        "report": 1,
        "page": 1,
        "all": 1,
    }


def test_the_diffusion_reruns_no_encoder(run: Workspace) -> None:
    pending = run.changed("generators", "latent-diffusion", "diffusion", "epochs", value=3)
    assert set(pending) == {"diffusion", "decode", "recover", *AFTER}
    assert pending["decode"] == 1, "only of the method that goes through it"


def test_the_autoencoder_reruns_all_of_its_family_and_no_teacher(run: Workspace) -> None:
    pending = run.changed("generators", "vae", "autoencoder", "epochs", value=4)
    assert set(pending) == {"autoencoder", "encode", "diffusion", "quantize", "decode", "decay", "recover", *AFTER}


def test_another_number_of_images_makes_no_latents_anew(run: Workspace) -> None:
    config = run.config
    config["matrix"][0]["ipc"] = [2, 3]
    run.config = config
    pending = run.pending()
    assert pending["quantize"] == pending["decode"] == 2
    assert not {"data", "teacher", "features_part", "autoencoder", "encode", "diffusion", "decay"} & set(pending)


def test_a_pipeline_is_another_generator_and_looked_for_before_anything_runs(run: Workspace) -> None:
    config = run.config
    config["generators"]["mine"] = {"kind": "ldm", "model": "./nothing-here"}
    config["methods"] = {"ddoq-mine": {"base": "ddoq", "generator": "mine"}}
    config["matrix"][0]["methods"] = ["ddoq-mine"]
    run.config = config
    failed = run.snakemake("--dry-run", check=False)
    assert failed.returncode
    said = failed.stdout + failed.stderr
    assert "method ddoq-mine on digits: generator mine: model: there is no folder ./nothing-here" in said
    assert "Traceback" not in said
    config["generators"]["mine"] = {"kind": "ldm", "model": "somebody/something"}  # which only the job looks for
    run.config = config
    assert not {"autoencoder", "diffusion"} & set(run.pending())
