"""The command that takes sets of others: what it makes of them, keeps of them, says of them and refuses."""

import os
import re

import numpy as np
import pytest
import torch

from wmdd.artifacts.hdf5 import load

from .artifacts import NAMES, SIDE

COMMAND = "images --data data.h5 --teacher model.safetensors --output o/images.h5 --ipc 2 --seed 0"
LABELS = np.arange(3).repeat(2)
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, 3, SIDE, SIDE), dtype=np.uint8)


def write(**arrays):
    np.savez("set.npz", **{"images": PIXELS, "labels": LABELS} | arrays)


def test_a_set_becomes_ours_and_says_where_it_is_from(here, run):
    write(images=PIXELS[::-1], labels=LABELS[::-1])
    code, out, err = run(f"{COMMAND} --path set.npz")
    assert code == 0, err
    arrays, meta = load(here / "o/images.h5")
    np.testing.assert_array_equal(arrays["images"], PIXELS.reshape(3, 2, 3, SIDE, SIDE)[:, ::-1])
    assert arrays["weights"].tolist() == [[0.5, 0.5]] * 3
    assert (meta["stage"], meta["imported"]["path"], meta["imported"]["layout"]) == ("images", "set.npz", "arrays")
    assert meta["inputs"]["set"] == meta["imported"]["sha256"]
    assert "The pixels are bytes." in out
    assert "The set numbers its classes" in out


def test_what_was_learned_is_kept_or_dropped(here, run):
    torch.save(torch.rand(6, 3, SIDE, SIDE), "images_best.pt")
    torch.save(
        torch.eye(3).repeat_interleave(2, 0) * 5 + torch.linspace(-2, 0, 18).view(6, 3), "labels_best.pt"
    )  # logits
    torch.save(torch.tensor(0.25), "lr_best.pt")
    code, _, err = run(f"{COMMAND} --path images_best.pt --space unit")
    assert code == 0, err
    arrays, meta = load(here / "o/images.h5")
    assert arrays["images"].dtype == np.float32
    np.testing.assert_allclose(arrays["labels_learned"].sum(-1), 1, rtol=1e-6)
    assert meta["student_lr"] == 0.25
    assert run(f"{COMMAND} --path images_best.pt --space unit --labels ours")[0] == 0
    arrays, meta = load(here / "o/images.h5")
    assert "labels_learned" not in arrays
    assert "student_lr" not in meta


def test_a_text_file_names_the_classes_in_their_order(here, run):
    write()
    order = [NAMES[2], NAMES[0], NAMES[1]]
    (here / "classes.txt").write_text("\n".join(order) + "\n")
    assert run(f"{COMMAND} --path set.npz --classes classes.txt")[0] == 0
    images = load(here / "o/images.h5", "images")[0]["images"]
    np.testing.assert_array_equal(images[[2, 0, 1]].reshape(PIXELS.shape), PIXELS)


def test_classes_that_the_teacher_sees_permuted_are_refused(here, run, mistake, monkeypatch):
    write()
    swapped = np.eye(3)[[1, 0, 2]]
    monkeypatch.setattr("wmdd.cli.images.confidence", lambda *_: swapped)
    said = mistake(f"{COMMAND} --path set.npz", begun=True)
    assert "set.npz are in another order: Ant looks like Bee, Bee looks like Ant." in said
    assert run(f"{COMMAND} --path set.npz --order trusted")[0] == 0


def test_a_file_of_classes_that_cannot_be_read_is_named(here, mistake):
    write()
    (here / "latin1.txt").write_bytes("é".encode("latin-1"))
    for name in "latin1.txt", "none.txt":
        assert f"cannot read the names of classes in {name} (" in mistake(
            f"{COMMAND} --path set.npz --classes {name}", begun=True
        )


def test_what_evaluate_refuses_before_anything_runs_or_is_written(here, mistake):
    evaluate = "evaluate set.npz --dataset digits"
    write()
    for name in "random", "../other":
        assert f"the set cannot be called {name!r}" in mistake(f"{evaluate} --name {name}")
    assert "the set's images are 8 px and those of digits 32 px; add --resize" in mistake(evaluate)
    np.savez("set.npz", images=PIXELS[:1].repeat(501, 0), labels=np.zeros(501, np.int64))
    assert "set.npz has 501 images of a class: is it a whole training set?" in mistake(evaluate)
    assert not (here / "evaluations").exists()


def test_a_set_must_be_named(here, mistake):
    assert mistake(COMMAND) == "--path is missing; name the file or folder of the set"


class Runs:
    """Runs a command where it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch run",)


def test_a_file_of_torch_that_needs_code_is_refused(here, mistake):
    torch.save({"images": Runs(), "labels": torch.arange(3)}, "evil.pt")
    assert "holds more than tensors (posix.system) and is not unpickled" in mistake(f"{COMMAND} --path evil.pt")
    assert not (here / "run").exists()


@pytest.mark.parametrize(
    ("arrays", "options", "says"),
    [
        ({"labels": np.arange(6)}, "", "classes"),
        ({"images": PIXELS[..., :4, :4]}, "", r"4 x 4 px and the data's \d+ px; set resize: true"),
        ({"images": np.full(PIXELS.shape, np.nan, np.float32)}, "", "NaN"),
        ({"images": RNG.normal(size=PIXELS.shape)}, "", "say which by space"),
        ({"labels": np.zeros((6, 3))}, "", "may be one-hot, probabilities or logits"),
        ({"images": PIXELS.repeat(20, 0), "labels": LABELS.repeat(20)}, "", "whole training set"),
        ({"images": PIXELS[:2], "labels": LABELS[:2]}, "", "has no image of"),
        ({"labels": np.eye(9)[LABELS]}, "", r"the labels of set\.npz have 9 columns and the data 3 classes"),
        ({"images": PIXELS[..., :4, :]}, "", r"8 x 4 px and the data's 8 px"),
        ({"images": PIXELS.repeat(2, 0), "labels": LABELS.repeat(2)}, "", "not ipc 2; set ipc: 4"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line_that_names_the_set_or_the_remedy(here, mistake, arrays, options, says):
    write(**arrays)
    line = mistake(f"{COMMAND} --path set.npz {options}", begun=True)

    assert re.search(says, line), line
    assert "delete it and run again" not in line
