"""The commands of the latent family fit each other's files, and a user's mistake ends in one line."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from wmdd.artifacts.atomic_files import read_json
from wmdd.artifacts.hdf5 import load, load_meta
from wmdd.artifacts.hdf5_writer import save
from wmdd.generators.vae import Vae

CPU = "--device cpu --precision fp32"
DATA = "data --name pictures --output data.h5 --source imagefolder --root pictures --classes 3 --resolution 8"
TEACHER = (
    f"teacher --data data.h5 --output model.safetensors --seed 0 --architecture resnet18 --width 4 --epochs 1 {CPU}"
)
FEATURES = f"features --data data.h5 --teacher model.safetensors --output features.h5 --statistics statistics.h5 {CPU}"
AUTOENCODER = f"autoencoder --data data.h5 --output a.safetensors --seed 0 --width 4 --factor 2 --epochs 1 {CPU}"
ENCODE = f"encode --data data.h5 --autoencoder a.safetensors --output {{}}.h5 --block {{}} {CPU}"
LATENTS = "classes0-0.h5 classes1-2.h5"
DIFFUSION = (
    f"diffusion --latents {LATENTS} --autoencoder a.safetensors --data data.h5 --output d.safetensors --seed 0 --width 8 "
    f"--layers 1 --epochs 1 {CPU}"
)
QUANTIZE = f"quantize --latents {LATENTS} --output q.h5 --block classes0-2 --k 2 --seed 0"
THROUGH = "--kind latent-diffusion --encoder vae --autoencoder a.safetensors --diffusion d.safetensors --steps 3"
DECODE = f"decode --atoms q.h5 --output i.h5 --seed 0 {CPU} {THROUGH}"
IMAGES = "join --blocks i.h5 --output images.h5"
DISTANCE = (
    f"distance --images images.h5 --teacher model.safetensors --features features.h5 --output distance.json {CPU}"
)
DECAY = f"decay --latents {LATENTS} --output decay.json --most 4"
CHAIN = [
    DATA, TEACHER, FEATURES, AUTOENCODER, ENCODE.format("classes0-0", "classes0-0"), ENCODE.format("classes1-2", "classes1-2"),
    DIFFUSION, QUANTIZE, DECODE, IMAGES, DISTANCE, DECAY,
]  # fmt: skip


@pytest.fixture(scope="module")
def family(chained):
    """Every file of the family. Never to be changed: use `here`."""
    return chained("latent", CHAIN)


@pytest.fixture
def here(family, linked):
    """A folder that has links to these files, to work in."""
    return linked(family)


# The files fit each other


def test_latents_of_all_pictures(family):
    parts = [load(family / name) for name in LATENTS.split()]
    assert [len(arrays["labels"]) for arrays, _ in parts] == [8, 16]
    assert {tuple(meta["shape"]) for _, meta in parts} == {(4, 4, 4)}
    assert parts[0][0]["latents"].dtype == np.float16
    spread = np.concatenate([arrays["latents"] for arrays, _ in parts]).astype(float).std()
    assert spread == pytest.approx(1, abs=0.1), "latents are standardised"


def test_images_say_what_made_them(family):
    arrays, meta = load(family / "images.h5")
    assert arrays["images"].shape == (3, 2, 3, 8, 8)
    assert meta["decode"]["settings"]["steps"] == 3
    assert meta["classes"] == ["ant", "bee", "cat"]
    inputs = load_meta(family / "i.h5")["inputs"]
    assert set(inputs) == {"atoms", "autoencoder", "diffusion"}
    assert inputs["atoms"] == load_meta(family / "q.h5")["digest"]
    assert len(read_json(family / "distance.json")["distance"]["cost"]) == 3
    assert [row["atoms"] for row in read_json(family / "decay.json")["decay"]] == [[1, 2, 4]] * 3


def test_blocks_have_the_bits_of_the_whole(here, run):
    assert run(ENCODE.format("whole", "classes0-2"))[0] == 0
    whole = load(here / "whole.h5")[0]["latents"]
    assert np.array_equal(np.concatenate([load(here / name)[0]["latents"] for name in LATENTS.split()]), whole)
    assert run(QUANTIZE.replace("classes0-2", "classes1-2").replace("q.h5", "part.h5"))[0] == 0
    assert np.array_equal(load(here / "part.h5")[0]["atoms"], load(here / "q.h5")[0]["atoms"][1:])
    assert run(DECODE.replace("q.h5", "part.h5").replace("i.h5", "p.h5"))[0] == 0
    assert np.array_equal(load(here / "p.h5")[0]["images"], load(here / "i.h5")[0]["images"][1:])


def test_the_same_command_gives_the_same_bytes(here, run):
    for line, name in (AUTOENCODER, "a.safetensors"), (DIFFUSION, "d.safetensors"), (DECODE, "i.h5"):
        before = Path(name).read_bytes()
        Path(name).unlink()
        assert run(line)[0] == 0
        assert Path(name).read_bytes() == before


def test_a_vae_decodes_atoms_as_they_are(here, run):
    line = f"decode --atoms q.h5 --output v.h5 --seed 0 --autoencoder a.safetensors {CPU}"
    assert run(line)[0] == 0
    first = load(here / "v.h5")[0]["images"]
    assert run(line.replace("--seed 0", "--seed 1").replace("v.h5", "w.h5"))[0] == 0
    assert np.array_equal(load(here / "w.h5")[0]["images"], first)
    assert not np.array_equal(load(here / "i.h5")[0]["images"], first)


def test_recover_begins_at_a_distilled_set(here, run):
    line = (
        "recover --teacher model.safetensors --class-statistics statistics.h5 --output r.h5 --block classes0-2 --ipc 2"
    )
    line = f"{line} --seed 0 --iterations 1 --lr 1e-9 --feature-weight 0 {CPU} --init method:ddoq"
    assert run(f"{line} --start images.h5")[0] == 0
    found, start = (load(here / name)[0]["images"].astype(int) for name in ("r.h5", "images.h5"))
    assert np.abs(found - start).max() <= 1


# Mistakes


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (ENCODE.format("x", "classes0-2").replace("--autoencoder a.safetensors ", ""), "of kind vae needs --autoencoder"),
        (ENCODE.format("x", "classes0-2").replace("a.safetensors", "model.safetensors"), "of the stage teacher; give the auto"),
        (ENCODE.format("x", "classes0-3"), "no block 'classes0-3'; name the classes as in classes0-2"),
        (QUANTIZE.replace("--k 2", "--k 9").replace("q.h5", "x.h5"), "'ant'.* has 8 training images, fewer than the 9"),
        (QUANTIZE.replace(LATENTS, "classes1-2.h5").replace("q.h5", "x.h5"), "hold not all classes of classes0-2"),
        (QUANTIZE.replace(LATENTS, "features.h5").replace("q.h5", "x.h5"), "features.h5 lacks latents"),
        (QUANTIZE.replace("q.h5", "x.h5 --solver stream --weights uniform"), "stream has free weights only"),
        (DECODE.replace("--diffusion d.safetensors ", ""), "needs --diffusion"),
        (DECODE.replace("--diffusion d.safetensors", "--diffusion a.safetensors"), "of the stage autoencoder; give the diff"),
        (DECODE.replace("--atoms q.h5", "--atoms images.h5"), "images.h5 lacks atoms"),
        (AUTOENCODER.replace("--factor 2", "--factor 16").replace("a.safe", "x.safe"), "8 px can't be divided.*factor 16"),
        (f"encode --data data.h5 --output x.h5 --block classes0-2 --kind ldm --model ./none {CPU}", "no folder ./none"),
        (DISTANCE.replace("features.h5", "statistics.h5"), "statistics.h5 lacks features"),
        (
            "recover --teacher model.safetensors --class-statistics statistics.h5 --output x.h5 --block classes0-2 --ipc 2 "
            f"--seed 0 --feature-weight 0 {CPU} --init method:ddoq",
            "init method:ddoq takes --start",
        ),
        (
            "recover --teacher model.safetensors --class-statistics statistics.h5 --output x.h5 --block classes0-2 --ipc 3 "
            f"--seed 0 --feature-weight 0 {CPU} --init method:ddoq --start images.h5",
            "has 2 images per class of 8 px, but 3 of 8 px are to begin with",
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(here, mistake, line, said):
    Path("i.h5").unlink()  # so that a decoder that goes on leaves no file in the others' folder
    assert re.search(said, mistake(line, begun=True))


def test_latents_that_are_no_numbers_are_named(here, mistake, monkeypatch):
    monkeypatch.setattr(Vae, "encode", lambda self, images: torch.full((len(images), 4, 4, 4), float("nan")))
    assert "training image 0 holds NaN" in mistake(ENCODE.format("x", "classes0-2"), begun=True)
    assert not Path("x.h5").exists()


def test_files_cut_short_or_of_another_teacher_or_other_classes_are_refused(here, mistake, run):
    Path("short.h5").write_bytes(Path("classes0-0.h5").read_bytes()[:-100])
    line = QUANTIZE.replace("classes0-0.h5", "short.h5").replace("q.h5", "x.h5")
    assert "short.h5 is not a whole HDF5 file" in mistake(line)
    assert run(TEACHER.replace("model", "other").replace("--seed 0", "--seed 1"))[0] == 0
    assert "features.h5 is of another teacher" in mistake(DISTANCE.replace("model.safetensors", "other.safetensors"))
    content, meta = load(Path("q.h5"), "labels", "atoms", "weights")
    save(Path("other.h5"), content, meta | {"classes": ["ant", "bee", "dog"]})
    said = mistake(DECODE.replace("q.h5", "other.h5").replace("i.h5", "x.h5"), begun=True)
    assert "class 2 is 'cat' in a.safetensors but 'dog'" in said
