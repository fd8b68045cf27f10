"""The commands fit each other's files; files that are damaged or do not belong together end in one line."""

import json
import re
import shutil
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from tests.cli.artifacts import (
    COMMANDS,
    IPC,
    NAMES,
    SIDE,
    write_barycenter,
    write_data,
    write_features,
    write_images,
    write_labels,
    write_teacher,
)
from wmdd.artifacts.hdf5 import load, load_meta
from wmdd.artifacts.hdf5_writer import digest_of, save
from wmdd.artifacts.model_files import load_model, save_model
from wmdd.cli import select
from wmdd.datasets.decode import decode

TEACHER = "--teacher model.safetensors"
SOFT = "--soft-labels labels.h5"
ONLINE = COMMANDS["student"].replace(SOFT, f"{TEACHER} --store online")
INPUTS = [
    (stage, name)
    for stage, line in COMMANDS.items()
    for name in re.findall(r"(?<= )(?!o/)\S+\.(?:h5|safetensors)", line)
]
REPORT = (
    "--table table.md --csv table.csv --cost-table cost.md --barycenter-table b.md --barycenter-csv b.csv"
    " --datasets data.h5 --dataset-table d.md --runs runs.json"
)


def succeeds(run, *lines):
    for line in lines:
        code, _, err = run(line)
        assert code == 0, f"{line}\n{err}"


# The commands fit each other's files


def test_the_whole_chain_and_what_each_file_says_of_itself(here, run):
    for name in ("model.safetensors", "features.h5", "statistics.h5", "barycenter.h5", "images.h5", "labels.h5"):
        (here / name).unlink()
    place = "results/d/t/wmdd/ipc2/seed0"
    blocks = []
    for block in "classes0-1", "classes2-2":
        for stage, output in ("barycenter", "o/b.h5"), ("recover", "o/r.h5"):
            line = COMMANDS[stage].replace("classes0-2", block).replace(output, f"{place}/{stage}/{block}.h5")
            blocks.append(line.replace(" barycenter.h5", f" {place}/barycenter/{block}.h5"))
    students = [f"{place}/student/s/{protocol}" for protocol in ("paper", "paper-hard")]
    succeeds(
        run,
        COMMANDS["teacher"].replace("o/model", "model"),
        COMMANDS["features"].replace("o/", ""),
        *blocks,
        f"join --blocks {place}/recover/classes0-1.h5 {place}/recover/classes2-2.h5 --output images.h5",
        COMMANDS["relabel"].replace("o/", ""),
        COMMANDS["student"].replace("o/", f"{students[0]}/"),
        COMMANDS["student"].replace("o/", f"{students[1]}/") + " --labels hard",
        f"report --students {students[0]}/run0.json {students[1]}/run0.json --teachers model.safetensors {REPORT}"
        f" --costs {place}/recover/classes0-1.cost.json --barycenters {place}/barycenter/classes0-1.h5",
    )

    arrays, meta = load(here / "images.h5")
    assert arrays["images"].shape == (3, IPC, 3, SIDE, SIDE)
    assert arrays["labels"].tolist() == [0, 1, 2]
    assert (meta["classes"], meta["names"]) == (NAMES, ["Ant", "Bee", "Cat"])
    assert meta["recover"]["settings"]["iterations"] == 2
    digests = [load_meta(here / place / f"recover/classes{block}.h5")["digest"] for block in ("0-1", "2-2")]
    assert meta["inputs"] == dict(zip("01", digests, strict=True))
    result = json.loads((here / students[0] / "run0.json").read_text())
    inputs = {name: load_meta(here / f"{name}.h5")["digest"] for name in ("data", "labels")}
    assert result["inputs"] == inputs | {"images": digest_of(arrays)}
    assert result["settings"]["labels"] == "soft"
    assert 0 <= result["result"]["top1"] <= result["result"]["best_top1"] <= 1
    assert {"versions", "revision", "code", "identity", "engine", "stage"} <= set(result)
    arrays, meta = load(here / place / "barycenter/classes0-1.h5")
    assert (arrays["atoms"].shape, arrays["quality/explained"].shape) == ((2, IPC, 32), (2,))
    assert meta["identity"] == {"block": "classes0-1", "k": IPC, "seed": 0}

    table = (here / "table.md").read_text()
    assert "| hard " in table
    assert "- teacher `model.safetensors`: " in table
    assert "| wmdd" in (here / "b.md").read_text()
    (solved,) = pd.read_csv(here / "b.csv").to_dict("records")
    assert (solved["method"], solved["ipc"], solved["solved"]) == ("wmdd", IPC, 2)
    assert solved["cost"] == pytest.approx(arrays["quality/cost"].mean())
    assert solved["seconds"] > 0
    raw = json.loads((here / "runs.json").read_text())
    student = next(each for each in raw["runs"] if each["labels"] == "soft")
    assert (student["method"], student["ipc"], student["seed"]) == ("wmdd", IPC, 0)
    assert student["top1"] == pytest.approx(100 * result["result"]["top1"], abs=1e-4)
    assert raw["teachers"]["model.safetensors"]["top5"] == 100.0
    assert {"file", "stage", "seconds", "machine"} <= set(raw["costs"][0])
    assert raw["versions"] == [result["versions"] | {"revision": result["revision"]}]
    assert not [*here.rglob("*.part"), *here.rglob("*.checkpoint")]


@pytest.mark.parametrize(("stage", "output"), [("recover", "o/r.h5"), ("barycenter", "o/b.h5"), ("grid", "o/x.png")])
def test_equal_commands_give_equal_bytes(here, run, monkeypatch, stage, output):
    monkeypatch.setenv("WMDD_REVISION", "fixed")
    contents = []
    for _ in range(2):
        succeeds(run, COMMANDS[stage])
        contents.append((here / output).read_bytes())
    assert contents[0] == contents[1]


# Labels


@pytest.mark.parametrize(
    ("store", "flags", "arrays"),
    [
        ("stored", "", {"logits": (8, 6, 3)}),
        ("pruned", "", {"values": (2, 6, 3), "low": (2, 6), "high": (2, 6)}),
        (
            "pruned",
            "--top-k 2 --keep-epochs 0.5",
            {"values": (4, 6, 2), "low": (4, 6), "high": (4, 6), "classes": (4, 6, 2), "rest": (4, 6)},
        ),
    ],
)
def test_labels_of_a_store_and_what_they_cost(here, run, store, flags, arrays):
    line = COMMANDS["relabel"].replace("--epochs 2", "--epochs 8").replace("o/", "")
    succeeds(run, f"{line} --store {store} {flags}")
    stored, meta = load(here / "labels.h5")
    seeds = stored.pop("seeds")
    assert {name: array.shape for name, array in stored.items()} == arrays
    assert len(set(seeds)) == len(seeds) == len(next(iter(stored.values())))
    assert meta["teacher_accuracy"] == {"top1": 0.5, "top5": 1.0}
    cost, size = json.loads((here / "labels.cost.json").read_text()), (here / "labels.h5").stat().st_size
    assert cost["bytes_per_image"] == pytest.approx(size / 6, abs=0.5)
    assert cost["bytes_per_image_and_epoch"] == pytest.approx(size / 6 / 8, abs=0.005)
    succeeds(run, COMMANDS["student"].replace("--epochs 2", "--epochs 5") + f" --store {store}")
    result = json.loads((here / "o/run0.json").read_text())
    assert result["inputs"]["labels"] == meta["digest"]
    assert result["settings"]["store"] == store


def losses_of(here, run, line):
    succeeds(run, line)
    return pd.read_csv(here / "o/run0.csv")["loss"].tolist()


def test_a_student_of_online_labels_is_the_one_of_stored_labels(here, run):
    """Of the teacher's own normalisation too, when it is not that of the data."""
    for mean in (0.5, 0.3):
        state, meta = load_model(here / "model.safetensors")
        save_model(here / "model.safetensors", state, meta | {"mean": [mean] * 3})
        succeeds(run, COMMANDS["relabel"].replace("o/", ""))
        assert losses_of(here, run, COMMANDS["student"]) == pytest.approx(losses_of(here, run, ONLINE), rel=2e-3)
        inputs = json.loads((here / "o/run0.json").read_text())["inputs"]
        assert inputs["teacher"] == load_model(here / "model.safetensors")[1]["digest"]
        assert "labels" not in inputs


def test_hard_labels_need_neither_file_nor_teacher(here, run):
    line = COMMANDS["student"].replace(SOFT, "--labels hard")
    losses = losses_of(here, run, line)
    (here / "labels.h5").unlink()
    assert losses_of(here, run, f"{line} --store online") == losses


# Selections


def test_where_only_confident_images_count_the_teacher_says_which(here, run, mistake):
    line = f"{COMMANDS['barycenter'].replace(f'--k {IPC}', '--k 1')} --confident 0.25"  # one of the four of a class
    assert mistake(line, begun=True).startswith("with confident 0.25 give the --teacher whose features features.h5 has")
    succeeds(run, f"{line} {TEACHER}")
    arrays, meta = load(here / "o/b.h5")
    state, teacher_meta = load_model(here / "model.safetensors")
    assert meta["inputs"]["teacher"] == teacher_meta["digest"]
    found, _ = load(here / "features.h5", "features", "labels")
    features, labels = torch.from_numpy(found["features"]), torch.from_numpy(found["labels"])
    logits = torch.nn.functional.linear(features, state["head.weight"], state["head.bias"])
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    for label in range(3):
        surest = min((i for i in range(len(labels)) if labels[i] == label), key=lambda i: float(losses[i]))
        np.testing.assert_allclose(arrays["atoms"][label, 0], found["features"][surest], rtol=1e-6)

    line = COMMANDS["select"].replace(f"--ipc {IPC}", "--ipc 1") + " --confident 0.25"
    assert mistake(line, begun=True) == "select with strategy kmeans-medoid and confident 0.25 needs --teacher"
    succeeds(run, f"{line} {TEACHER}")
    state["head.bias"] += 1
    save_model(here / "other.safetensors", state, {k: v for k, v in teacher_meta.items() if k != "digest"})
    says = "features.h5 has no features of other.safetensors; run the features stage again"
    assert mistake(f"{line} --teacher other.safetensors", begun=True) == says


def test_patches_are_selected_by_the_teacher(here, run, mistake):
    line = COMMANDS["select"].replace(" --features features.h5", "").replace("kmeans-medoid", "patches")
    line = line.replace(f"--ipc {IPC}", "--ipc 1") + " --tiles 2 --crops 3 --crop-scale 0.5 1"
    assert mistake(line, begun=True) == "select with strategy patches needs --teacher"
    succeeds(run, f"{line} {TEACHER}")
    arrays, meta = load(here / "o/images.h5")
    assert arrays["images"].shape == (3, 1, 3, SIDE, SIDE)
    assert arrays["weights"].tolist() == [[1.0]] * 3
    assert [sorted(mine) for mine in meta["positions"]] == [[4 * c, 4 * c + 1, 4 * c + 2, 4 * c + 3] for c in range(3)]
    assert np.array(meta["boxes"]).shape == (3, 4, 4)


def selected(strategy, ipc=IPC):
    return f"select --data data.h5 --output {strategy}/images.h5 --ipc {ipc} --seed 0 --strategy {strategy}"


def taught(strategy, flags=""):
    """The lines that label views of a selection and train a student by them, in batches of five."""
    lines = [COMMANDS["relabel"], f"{COMMANDS['student'].replace(SOFT, f'--soft-labels {strategy}/labels.h5')} {flags}"]
    return [
        line.replace("images.h5", f"{strategy}/images.h5", 1).replace("o/", f"{strategy}/").replace("size 8", "size 5")
        for line in lines
    ]


def test_the_whole_training_set_gets_the_steps_of_a_few_images_a_class(here, run):
    results = {}
    for strategy in "whole", "random":
        succeeds(run, selected(strategy), *taught(strategy))
        results[strategy] = json.loads((here / strategy / "run0.json").read_text())["result"]
    (held, whole), (few, _) = (load(here / name / "images.h5") for name in ("whole", "random"))
    assert held["images"].shape == (3, 4, 3, SIDE, SIDE)
    assert whole["images_per_epoch"] == IPC
    assert [sorted(mine) for mine in whole["positions"]] == [[4 * c, 4 * c + 1, 4 * c + 2, 4 * c + 3] for c in range(3)]
    assert np.array_equal(held["images"][:, :IPC], few["images"]), "the first ones are those of random"
    assert load(here / "whole/labels.h5", "logits")[0]["logits"].shape == (2, 3 * IPC, 3)
    for result in results.values():
        assert (result["steps"], result["images_seen"]) == (2 * 2, 2 * 3 * IPC)
    succeeds(
        run, "grid --images whole/images.h5 --output whole.png", "grid --images random/images.h5 --output random.png"
    )
    sizes = [Image.open(here / f"{name}.png").size for name in ("whole", "random")]
    assert sizes[0] == sizes[1], "the grid shows as many"


def test_a_coded_set_has_more_images_in_the_bytes_of_the_raw_ones(here, run, mistake):
    line = f"{selected('random', 1)} --codec webp --quality"
    code, out, _ = run(f"{line} 0")
    assert code == 0
    arrays, meta = load(here / "random/images.h5")
    held, coded = arrays["images"].shape[1], meta["coded"]
    assert re.search(rf"{held} images of each class in \S+ \S+, where 1 raw ones have 576 B", out)
    assert held > 1 == meta["images_per_epoch"]
    assert (
        coded["bytes"]
        == len(arrays["files/bytes"])
        == arrays["files/offsets"][-1]
        <= coded["budget"]
        == 3 * 3 * SIDE**2
    )
    for image, (a, b) in zip(
        arrays["images"].reshape(-1, 3, SIDE, SIDE), pairwise(arrays["files/offsets"]), strict=True
    ):
        assert np.array_equal(decode(arrays["files/bytes"][a:b].tobytes(), SIDE).pixels, image)
    np.testing.assert_allclose(arrays["weights"].sum(1), 1, rtol=1e-6)
    succeeds(run, *taught("random"))
    result = json.loads((here / "random/run0.json").read_text())["result"]
    assert (result["images_seen"], result["images_held"]) == (2 * 3, held)
    assert mistake(f"{line} 100", begun=True) == (
        "WebP files of quality 100 are larger than raw images; lower select.quality, or set codec: none"
    )


def test_the_whole_training_set_at_its_own_size_is_random_at_that_size(here, run):
    for strategy in "whole", "random":
        succeeds(run, selected(strategy, 4), *taught(strategy))
    contents = [json.loads((here / name / "run0.json").read_text()) for name in ("whole", "random")]
    assert contents[0]["result"] == contents[1]["result"]
    by_class = contents[0]["by_class"]
    assert sum(by_class["right"]) / sum(by_class["total"]) == contents[0]["result"]["top1"]
    assert [sum(row) for row in by_class["confusion"]] == by_class["total"]
    assert contents[0]["history"] == contents[1]["history"], "of the bytes of its file"
    logits = [load(here / name / "labels.h5", "logits")[0]["logits"] for name in ("whole", "random")]
    assert np.array_equal(*logits)


def test_a_training_set_that_has_no_room_is_refused_with_its_size(here, mistake, monkeypatch):
    (here / "whole").mkdir()
    for module, name, where in (
        (select.psutil, "virtual_memory", "4.61 kB of memory"),
        (select.shutil, "disk_usage", "2.3 kB of the disk of whole"),
    ):
        with monkeypatch.context() as context:
            context.setattr(module, name, lambda *_: SimpleNamespace(available=500, free=500))
            text = mistake(selected("whole", 1), begun=True)
        assert text == (
            f"the whole training set is 2.3 kB of pixels and takes {where}, which has 500 B left; make room, or leave this "
            "method out"
        )


def test_a_set_that_shows_more_than_it_holds_is_refused(here, mistake):
    arrays, meta = load(here / "images.h5")
    for shown in 0, IPC + 1, "2":
        save(here / "images.h5", arrays, meta | {"images_per_epoch": shown}, chunked=("images",))
        text = f"images.h5 holds {IPC} images of each class but shows {shown} an epoch; make it again"
        assert mistake(COMMANDS["grid"]) == mistake(COMMANDS["relabel"], begun=True) == text


def test_images_that_the_smallest_class_lacks_are_left_out_and_told(here, run):
    arrays, meta = load(here / "data.h5")
    few = np.arange(len(arrays["train/labels"])) != 0
    arrays = {name: array[few] if name.startswith("train/") else array for name, array in arrays.items()}
    save(here / "data.h5", arrays, {name: value for name, value in meta.items() if name != "digest"})
    code, out, _ = run(selected("whole"))
    assert code == 0
    assert out == "3 images of each class, as many as the smallest has; 2 of 11 training images are left out\n"
    assert load(here / "whole/images.h5", "images")[0]["images"].shape[:2] == (3, 3)


# Files that are missing, cut short or of another kind


@pytest.mark.parametrize(("stage", "name"), INPUTS)
def test_an_input_that_is_missing_cut_short_or_of_another_kind_is_named(here, mistake, stage, name):
    path = here / name
    whole = path.read_bytes()
    path.unlink()
    missing = rf"{name} does not exist; (run the stage that makes it|train the teacher) first"
    assert re.match(missing, mistake(COMMANDS[stage]))
    path.write_bytes(whole[: len(whole) // 2])
    assert re.match(rf"{name} is not a whole .* delete it and run again", mistake(COMMANDS[stage]))
    assert not (here / "o").exists()
    shutil.copy(here / ("data.h5" if name in ("features.h5", "model.safetensors") else "features.h5"), path)
    assert mistake(COMMANDS[stage], begun=True).startswith(name)


def test_results_and_barycenters_that_the_report_lacks(here, mistake):
    result = Path("d/t/wmdd/ipc2/seed0/student/s/paper/run0.json")
    line = f"report --students {result} {TEACHER.replace('teacher', 'teachers')} --costs {result} {REPORT}"
    assert mistake(line).startswith(f"{result} does not exist")
    result.parent.mkdir(parents=True)
    result.write_text('{"result": ')
    assert f"{result} is not a whole JSON file" in mistake(line)
    scores = {"top1": 0.5, "top5": 0.5, "best_top1": 0.5}
    result.write_text(json.dumps({"settings": {"labels": "soft"}, "result": scores}))
    assert mistake(f"{line} --barycenters barycenter.h5") == (
        "barycenter.h5 lacks the quality of its barycenters; delete it and run again to rebuild it"
    )


# Files that do not belong together


@pytest.mark.parametrize(
    ("stage", "other"),
    [("features", "data.h5"), ("relabel", "images.h5"), ("recover", "statistics.h5"), ("recover", "barycenter.h5")],
)
def test_a_teacher_of_other_classes(here, mistake, stage, other):
    for names, says in (
        ([*NAMES, "dog"], "has 3 classes but|has 4 classes but"),
        (["ant", "cat", "bee"], "class 1 is 'b"),
    ):
        if other == "statistics.h5":
            write_features(here / "f.h5", here / other, here / "model.safetensors", here / "data.h5", names)
        else:
            write = {"data.h5": write_data, "images.h5": write_images, "barycenter.h5": write_barycenter}[other]
            write(here / other, names=names)
        message = mistake(COMMANDS[stage])
        assert re.search(says, message)
        assert other in message
        assert "model.safetensors" in message


WRITERS = {
    "data.h5": write_data,
    "images.h5": write_images,
    "barycenter.h5": write_barycenter,
    "model.safetensors": write_teacher,
}
OTHER_BLOCK = f"barycenter.h5 is of other classes or images per class than classes0-2 at ipc {IPC}; rebuild it"
OTHER_WIDTH = "barycenter.h5 is of the features of another teacher than model.safetensors"


@pytest.mark.parametrize(
    ("name", "other", "line", "says"),
    [
        ("barycenter.h5", {"labels": [0, 1]}, COMMANDS["recover"], OTHER_BLOCK),
        ("barycenter.h5", {"labels": [0, 2, 1]}, COMMANDS["recover"], OTHER_BLOCK),
        ("barycenter.h5", {"ipc": IPC + 1}, COMMANDS["recover"], OTHER_BLOCK),
        ("barycenter.h5", {"width": 16}, COMMANDS["recover"], OTHER_WIDTH),
        (
            "model.safetensors",
            {"seed": 1},
            COMMANDS["recover"],
            "statistics.h5 is of another teacher than model.safetensors",
        ),
        ("data.h5", {"seed": 5}, COMMANDS["select"], "features.h5 is of other data than data.h5"),
        (
            "images.h5",
            {"seed": 5},
            COMMANDS["student"],
            "labels.h5 labels other images than those given; run the relabel",
        ),
        ("images.h5", {"names": ["ant", "bee", "cow"]}, COMMANDS["student"], "'cat' in data.h5 but 'cow' in images.h5"),
        (
            "model.safetensors",
            {"names": [*NAMES, "dog"]},
            ONLINE,
            "set has 3 classes but model.safetensors has 4",
        ),
        (
            "model.safetensors",
            {"names": ["ant", "cat", "bee"]},
            ONLINE,
            "'cat' in model.safetensors but 'bee' in the distilled set",
        ),
    ],
)
def test_a_file_of_something_else_is_refused(here, mistake, name, other, line, says):
    WRITERS[name](here / name, **other)
    assert says in mistake(line, begun=True)


def test_a_teacher_whose_weights_do_not_fit_its_own_classes(here, mistake):
    state, meta = load_model(here / "model.safetensors")
    state["head.weight"] = torch.zeros(4, 32)
    save_model(here / "model.safetensors", state, {k: v for k, v in meta.items() if k != "digest"})
    assert "model.safetensors has 4 classes but the data have 3" in mistake(COMMANDS["relabel"])


def test_labels_of_too_few_epochs_of_no_store_or_of_another_temperature(here, run, mistake):
    write_labels(here / "labels.h5", here / "images.h5", epochs=1)
    assert "labels for 1 epochs but the student trains 2" in mistake(COMMANDS["student"], begun=True)
    arrays, meta = load(here / "labels.h5")
    meta["settings"].pop("store")  # as an older version left them
    save(here / "labels.h5", arrays, meta)
    assert "labels.h5 was made with store None, the student asks for stored" in mistake(COMMANDS["student"])
    succeeds(run, COMMANDS["relabel"].replace("o/labels", "labels") + " --store pruned --temperature 4")
    line = COMMANDS["student"] + " --store pruned"
    assert mistake(line) == "labels.h5 was made with temperature 4.0, the student asks for 20.0; make them agree"
    succeeds(run, f"{line} --temperature 4")


def test_labels_of_several_teachers_name_each_by_its_digest(here, run, mistake):
    write_teacher(here / "other.safetensors", seed=1)
    both = f"{TEACHER} other.safetensors --teachers other"
    line = COMMANDS["relabel"].replace("o/labels", "labels").replace(TEACHER, both)
    succeeds(run, f"{line} --statistics batch --statistics-batch 3")
    of = load_meta(here / "labels.h5")["inputs"]
    digests = [load_model(here / f"{name}.safetensors")[1]["digest"] for name in ("model", "other")]
    assert [of["teacher"], of["teacher1"]] == digests
    statistics = " --statistics batch --statistics-batch 3"
    assert "was made with teachers ['other'], the student asks for []; make" in mistake(COMMANDS["student"])
    other_batches = f"{COMMANDS['student']} --teachers other --statistics batch"
    assert "made with statistics_batch 3, the student asks for 8" in mistake(other_batches)
    succeeds(run, f"{COMMANDS['student']} --teachers other{statistics}")
    succeeds(run, ONLINE.replace(TEACHER, both) + statistics)
    says = "--teachers names 1 teachers beside the distillation's own, but --teacher has 1 files; give a file for each"
    assert says in mistake(COMMANDS["relabel"] + " --teachers other")


def test_labels_of_before_there_were_patches_and_committees_are_taken(here, run):
    arrays, meta = load(here / "labels.h5")
    for name in ("patches", "teachers", "statistics", "statistics_batch"):
        del meta["settings"][name]
    save(here / "labels.h5", arrays, meta)
    succeeds(run, COMMANDS["student"])


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (COMMANDS["student"].replace("--run 0", "--run 0 1"), "need one --output each, and none twice"),
        (COMMANDS["student"].replace("--run 0", "--run 0 0 --output o/run1.json"), "need one --output each"),
        (
            f"{COMMANDS['student']} --crop-scale 0.5 1",
            "crop_scale [0.08, 1.0], the student asks for [0.5, 1.0]; make them",
        ),
        (f"{COMMANDS['student']} --no-flip", "labels.h5 was made with flip True, the student asks for False; make"),
        (f"{COMMANDS['student']} --mix none", "labels.h5 was made with mix cutmix, the student asks for none; make"),
        (f"{COMMANDS['student']} --store pruned", "made with store stored, the student asks for pruned; make them"),
        (
            COMMANDS["student"].replace(SOFT, ""),
            "a student with soft labels needs --soft-labels; run the relabel stage",
        ),
        (f"{COMMANDS['student']} {TEACHER} --store online", "the store online takes no labels but labels.h5 is given"),
        (ONLINE.replace(TEACHER, ""), "a student with the store online needs --teacher; give it, or set --store or"),
        (ONLINE.replace("model", "none"), "none.safetensors does not exist"),
        (f"{COMMANDS['relabel']} --store online", "the store online keeps no labels; give the teacher to the student"),
        (
            COMMANDS["select"].replace("--features features.h5", ""),
            "select with strategy kmeans-medoid needs --features",
        ),
        (COMMANDS["select"].replace(f"--ipc {IPC}", "--ipc 5"), "class 'ant' has 4 training images, fewer than the 5"),
        ("data --name x --output o/x.h5 --source imagefolder --root nowhere --classes 3", "nowhere"),
        (COMMANDS["teacher"].replace("resnet18", "resnet19"), "unknown architecture 'resnet19'; known: resnet18"),
        *(
            (
                COMMANDS[stage].replace("classes0-2", block),
                f"there is no block {block!r}; name the classes as in classes0-2",
            )
            for stage in ("barycenter", "recover")
            for block in ("0-2", "classes2", "classes1-0", "classes0-3", "classes-1-0")
        ),
    ],
)
def test_a_request_that_does_not_fit_is_one_line(here, mistake, line, says):
    assert says in mistake(line, begun=True)
    assert not [path for path in here.glob("o/*") if not path.name.startswith(".")]


def test_blocks_that_do_not_make_a_whole(here, mistake):
    for parts in [[[0, 1]], [[0, 1], [1, 2]], [[2], [0, 1]]]:
        names = [f"part{number}.h5" for number in range(len(parts))]
        for name, labels in zip(names, parts, strict=True):
            write_images(here / name, labels)
        message = mistake(f"join --blocks {' '.join(names)} --output o/images.h5", begun=True)
        assert (
            f"hold the classes {[label for labels in parts for label in labels]}, not each class once in order"
            in message
        )
    write_images(here / "other.h5", [0, 1], names=["ant", "bee", "dog"])
    message = mistake("join --blocks part0.h5 other.h5 --output o/images.h5", begun=True)
    assert message.startswith("class 2 is 'cat' in part0.h5 but 'dog' in other.h5")


# Faults of the machine, and of results


def test_an_output_that_can_not_be_written(here, mistake):
    (here / "o").write_text("a file")
    assert "o/r.h5: a file stands where a folder is needed" in mistake(COMMANDS["recover"])  # before it begins


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_there_is_not(here, mistake):
    message = mistake(COMMANDS["recover"].replace("--device cpu", "--device cuda"))
    assert "no GPU is visible; run on a GPU node or set engine.device: auto" in message


def test_a_teacher_below_the_gate_leaves_no_network(here, mistake):
    assert "below min_accuracy 100.0%" in mistake(f"{COMMANDS['teacher']} --min-accuracy 1", begun=True)
    (left,) = (here / "o").glob("*")
    assert left.name.endswith(".checkpoint"), "the training is kept, for a lower gate"
