"""The commands of the match family fit each other's files and the student's, and a user's mistake ends in one line."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import wmdd
from wmdd.artifacts.atomic_files import read_json
from wmdd.artifacts.hdf5 import load, load_meta
from wmdd.artifacts.hdf5_writer import save
from wmdd.base.errors import WmddError

CPU = "--device cpu --precision fp32"
NET = "--architecture convnet2 --width 4"
DATA = "data --name pictures --output data.h5 --source imagefolder --root pictures --classes 3 --resolution 8"
EXPERT = f"expert --data data.h5 --output e{{0}}.h5 --seed {{0}} {NET} --epochs 3 --batch-size 8 --lr 0.1 {CPU}"
DM = f"match --data data.h5 --output {{}}.h5 --block {{}} --ipc 2 --seed 0 {NET} --iterations 3 --real-batch 4 {CPU}"
DATADAM = f"{DM} --objective datadam --lr 50"
STEPS = "--expert-epochs 1 --start-epochs 2 --student-steps 3 --student-lr 0.05 --rate-lr 1e-3"
MTT = (
    "match --data data.h5 --output t.h5 --block classes0-2 --ipc 2 --seed 0 --objective mtt --experts e0.h5 e1.h5 "
    f"--trajectories 2 --iterations 4 --lr 5 --labels learned --labels-lr 20 {STEPS} {CPU}"
)
JOIN = "join --blocks {} --output {}.h5"
STUDENT = (
    f"student --images {{}} --data data.h5 --output o/run0.json --seed 0 --run 0 {NET} --norm instance --epochs 2 "
    f"--batch-size 3 --evaluate-every 1 --labels hard --store online --views dsa --mix none --schedule step {CPU}"
)
CHAIN = [
    DATA, EXPERT.format(0), EXPERT.format(1),
    DM.format("dm0-1", "classes0-1"), DM.format("dm2-2", "classes2-2"), DATADAM.format("datadam", "classes0-2"), MTT,
    JOIN.format("dm0-1.h5 dm2-2.h5", "dm"), JOIN.format("t.h5", "mtt"),
]  # fmt: skip


@pytest.fixture(scope="module")
def family(chained):
    """Every file of the family. Never to be changed: use `here`."""
    return chained("match", CHAIN)


@pytest.fixture
def here(family, linked):
    """A folder that has links to these files, to work in."""
    return linked(family)


def result(here, run, line):
    """The scores and the history of a student."""
    code, _, err = run(line)
    assert code == 0, err
    return json.loads((here / "o/run0.json").read_text()), pd.read_csv(here / "o/run0.csv")


# The files fit each other


def test_an_expert_says_what_it_was_trained_on_and_how_well(family):
    arrays, meta = load(family / "e1.h5")
    size = 4 * 27 + 4 * 36 + 4 * (2 + 4) + (16 + 1) * 3  # two convolutions, their biases and norms, a head of 2 x 2 x 4
    assert (arrays["parameters"].shape, arrays["parameters"].dtype) == ((4, size), np.float32)
    assert meta["inputs"] == {"data": load_meta(family / "data.h5")["digest"]}
    assert (meta["stage"], meta["identity"]) == ("expert", {"seed": 1})
    assert (meta["classes"], meta["names"], meta["resolution"]) == (["ant", "bee", "cat"], ["ant", "bee", "cat"], 8)
    history = pd.read_csv(family / "e1.csv")
    assert history["epoch"].tolist() == [1, 2, 3]
    assert meta["accuracy"]["top1"] == pytest.approx(history["top1"].iloc[-1])
    assert read_json(family / "e1.cost.json")["stage"] == "expert"
    assert not np.array_equal(arrays["parameters"][0], load(family / "e0.h5")[0]["parameters"][0])


def test_blocks_say_what_made_them(family):
    arrays, meta = load(family / "t.h5")
    assert (arrays["images"].shape, arrays["images"].dtype) == ((3, 2, 3, 8, 8), np.float32)
    assert arrays["labels"].tolist() == [0, 1, 2]
    assert (arrays["weights"] == 0.5).all()
    assert meta["inputs"] == {
        "data": load_meta(family / "data.h5")["digest"],
        **{f"expert{n}": load_meta(family / f"e{n}.h5")["digest"] for n in (0, 1)},
    }
    assert meta["identity"] == {"block": "classes0-2", "ipc": 2, "seed": 0}
    assert meta["settings"]["objective"] == "mtt"
    assert meta["student_lr"] not in (0.05, 0.0)
    for name in "dm0-1", "datadam":
        arrays, meta = load(family / f"{name}.h5")
        assert set(meta["inputs"]) == {"data"}
        assert "labels_learned" not in arrays
        assert "student_lr" not in meta


def test_what_was_learned_reaches_the_joined_set(family):
    block, block_meta = load(family / "t.h5")
    arrays, meta = load(family / "mtt.h5")
    assert np.array_equal(arrays["images"], block["images"])
    assert np.array_equal(arrays["labels_learned"], block["labels_learned"])
    assert (arrays["labels_learned"].shape, arrays["labels_learned"].dtype) == ((3, 2, 3), np.float32)
    np.testing.assert_allclose(arrays["labels_learned"].sum(-1), 1, rtol=1e-6)
    assert meta["student_lr"] == block_meta["student_lr"]
    assert meta["match"]["settings"] == block_meta["settings"]
    arrays, meta = load(family / "dm.h5")
    assert meta["match"]["settings"]["objective"] == "dm"
    assert "student_lr" not in meta
    assert set(arrays) == {"images", "labels", "weights"}


@pytest.mark.parametrize("line", [DM, DATADAM])
def test_blocks_have_the_images_of_the_whole(here, run, line):
    for name, block in ("whole", "classes0-2"), ("part", "classes0-1"):
        assert run(line.format(name, block))[0] == 0
    whole, part = (load(here / f"{name}.h5")[0]["images"].astype(int) for name in ("whole", "part"))
    assert np.abs(whole[:2] - part).max() <= 1


def test_the_same_command_gives_the_same_bytes(here, run):
    for line, name in (EXPERT.format(0), "e0"), (MTT, "t"):
        path = here / f"{name}.h5"
        before = path.read_bytes()
        path.unlink()
        assert run(line)[0] == 0
        assert path.read_bytes() == before


def test_labels_that_are_fixed_and_experts_of_whitened_images(here, run):
    assert run(MTT.replace("--labels learned", "--labels fixed").replace("t.h5", "fixed.h5"))[0] == 0
    arrays, meta = load(here / "fixed.h5")
    assert "labels_learned" not in arrays
    assert meta["student_lr"] > 0
    for seed in 0, 1:
        assert run(EXPERT.format(seed).replace(f"e{seed}", f"w{seed}") + " --whiten")[0] == 0
    assert run(MTT.replace("e0.h5 e1.h5", "w0.h5 w1.h5").replace("t.h5", "white.h5"))[0] == 0
    assert not np.array_equal(load(here / "white.h5")[0]["images"], load(here / "t.h5")[0]["images"])


def test_a_matched_set_is_exported_with_what_was_learned(here, run):
    code, _, err = run("export --images mtt.h5 --output exported --to imagefolder")
    assert code == 0, err
    arrays, meta = load(here / "mtt.h5")
    for distilled in wmdd.load(here / "exported"), wmdd.load(here / "mtt.h5"):
        assert np.array_equal(distilled.soft_labels, arrays["labels_learned"].reshape(-1, 3))
        assert distilled.meta["images"]["student_lr"] == meta["student_lr"]
    card = (here / "exported/README.md").read_text()
    for words in "| stage | match, join |", "objective: mtt", "`soft_label` is what the method learned":
        assert words in card
    assert f"| learned rate of a student | {meta['student_lr']:.6g} |" in card
    assert wmdd.load(here / "dm.h5").soft_labels is None


def test_learned_labels_of_another_shape_are_told(here):
    arrays, meta = load(here / "mtt.h5")
    save(here / "bad.h5", arrays | {"labels_learned": np.ones((3, 1, 3), np.float32)}, meta)
    with pytest.raises(WmddError, match=r"bad\.h5 has labels \[3, 1, 3\] of 3 classes of 2 images"):
        wmdd.load(here / "bad.h5")


# Students


def test_a_student_trains_at_the_rate_that_was_learned(here, run):
    learned = load_meta(here / "mtt.h5")["student_lr"]
    line = f"{STUDENT.format('mtt.h5')} --optimizer sgd --lr 0.3"
    own, _ = result(here, run, line)
    content, history = result(here, run, f"{line} --learned-lr")
    assert (own["settings"]["lr"], content["settings"]["lr"]) == (0.3, learned)
    assert history["lr"].tolist() == pytest.approx([learned, learned / 10])
    _, same = result(here, run, line.replace("--lr 0.3", f"--lr {learned!r}"))
    assert (same["loss"] == history["loss"]).all()
    content, white = result(here, run, line.replace("mtt.h5", "dm.h5") + " --learned-lr --whiten")
    assert (content["settings"]["lr"], content["settings"]["whiten"]) == (0.3, True), "no rate was learned"
    _, plain = result(here, run, line.replace("mtt.h5", "dm.h5"))
    assert not np.allclose(plain["loss"], white["loss"])


def test_hard_labels_are_those_that_were_learned(here, run):
    arrays, meta = load(here / "mtt.h5")
    learned = arrays.pop("labels_learned")
    classes = np.eye(3, dtype=np.float32)[:, None].repeat(2, 1)  # [C, K, C]
    losses = {}
    for name, labels in {
        "none": None,
        "classes": classes,
        "learned": learned,
        "others": np.roll(learned, 1, -1),
    }.items():
        save(here / f"{name}.h5", arrays | ({} if labels is None else {"labels_learned": labels}), meta)
        losses[name] = result(here, run, STUDENT.format(f"{name}.h5"))[1]["loss"].tolist()
    assert losses["none"] == losses["classes"]
    assert losses["learned"] == result(here, run, STUDENT.format("mtt.h5"))[1]["loss"].tolist()
    assert losses["classes"] != losses["learned"] != losses["others"]


@pytest.mark.parametrize("line", [DM.format("begun", "classes1-2"), MTT.replace("t.h5", "begun.h5")])
def test_images_begin_at_those_of_another_set(here, run, line):
    line = line.replace("--lr 5", "").replace("--labels learned --labels-lr 20", "")
    code, _, err = run(f"{line} --lr 1e-9 --init method:dm --start dm.h5")
    assert code == 0, err
    (begun, meta), (start, of) = load(here / "begun.h5"), load(here / "dm.h5")
    np.testing.assert_allclose(begun["images"], start["images"][-len(begun["images"]) :], atol=1e-5)
    assert meta["inputs"]["start"] == of["digest"]


# Mistakes


FEW = "class ant has 8 real images, but 9 are to be drawn at once;"
WHOLE = DM.format("x", "classes0-2")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (WHOLE.replace("--real-batch 4", "--real-batch 9"), f"{FEW} lower match.real_batch"),
        (WHOLE.replace("--ipc 2", "--ipc 9"), f"{FEW} take fewer images per class, or init: noise"),
        (MTT.replace("--ipc 2", "--ipc 9"), f"{FEW} take fewer images per class, or init: noise"),
        (MTT.replace("--experts e0.h5 e1.h5 ", ""), "match with objective mtt takes --experts; make them agree"),
        (f"{WHOLE} --experts e0.h5", "match with objective dm takes no --experts; make them agree"),
        (f"{WHOLE} --init method:other", "match with init method:other takes --start; make them agree"),
        (f"{WHOLE} --start dm.h5", "match with init real takes no --start; make them agree"),
        (
            f"{WHOLE} --init method:dm --start dm.h5".replace("--ipc 2", "--ipc 3"),
            "dm.h5 has 2 images per class of 8 px, but 3",
        ),
        (MTT.replace("classes0-2", "classes0-1"), "mtt does not separate by class: give all of them, classes0-2"),
        (DM.format("x", "classes0-3"), "there is no block 'classes0-3'; name the classes as in classes0-2"),
        (MTT.replace("e1.h5", "e2.h5"), "e2.h5 does not exist; run the stage that makes it first"),
        (MTT.replace("e1.h5", "dm.h5"), "dm.h5 lacks parameters"),
        (MTT.replace("--start-epochs 2", "--start-epochs 4"), "an expert has 3 epochs, but match begins at up to 3 of"),
        (f"{WHOLE} --norm batch", "match: BatchNorm ties the images of a batch to each other; set norm: instance"),
        (
            WHOLE.replace("convnet2", "resnet18"),
            "match: the network must be a ConvNet, not resnet18; set architecture:",
        ),
        (f"{EXPERT.format(5)} --norm batch", "expert: BatchNorm ties the images of a batch to each other"),
        (EXPERT.format(5).replace("convnet2", "convnet4"), "convnet4 halves pictures of 8 px to nothing"),
        (EXPERT.format(5).replace("data.h5", "dm.h5"), "dm.h5 has no split 'train'"),
    ],
)
def test_a_mistake_is_one_line(here, mistake, line, said):
    assert re.match(re.escape(said), mistake(line.replace("t.h5", "x.h5"), begun=True))
    assert not {path.name for path in Path().iterdir()} & {"x.h5", "e5.h5"}


def test_an_expert_of_other_data_or_settings_or_cut_short_is_refused(here, run, mistake):
    assert run(DATA.replace("data.h5", "fewer.h5") + " --images-per-class 5")[0] == 0
    assert run(EXPERT.format(7).replace("data.h5", "fewer.h5"))[0] == 0
    said = "e7.h5 is of other data than data.h5; run the stages that make them again"
    assert mistake(MTT.replace("e1.h5", "e7.h5")) == said
    assert run(EXPERT.format(8).replace("--lr 0.1", "--lr 0.2"))[0] == 0
    assert mistake(MTT.replace("e1.h5", "e8.h5")) == "e8.h5 has lr 0.2, but e0.h5 has 0.1; give experts of one kind"
    (here / "short.h5").write_bytes((here / "e1.h5").read_bytes()[:-100])
    assert "short.h5 is not a whole HDF5 file" in mistake(MTT.replace("e1.h5", "short.h5"))


def test_experts_of_a_later_version_may_have_further_settings(here, run):
    content, meta = load(here / "e1.h5")
    for name in "e8", "e9":
        save(here / f"{name}.h5", content, meta | {"settings": meta["settings"] | {"unheard_of": 1}})
    assert run(MTT.replace("e0.h5 e1.h5", "e8.h5 e9.h5").replace("t.h5", "x.h5"))[0] == 0
