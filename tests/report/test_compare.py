"""Two distilled sets compared: settings that differ, means, and tests that agree with textbook formulas."""

import json

import numpy as np
import pytest

from wmdd.artifacts import atomic_files, hdf5, hdf5_writer
from wmdd.report import intervals
from wmdd.report.compare import Side, render
from wmdd.settings.match import MatchSettings
from wmdd.settings.recover import RecoverSettings
from wmdd.settings.select import SelectSettings
from wmdd.settings.student import RelabelSettings, StudentSettings


def write(folder, cell, top1, seed=0, run=0, protocol="quick", made=None, inputs=(), seen=(), **settings):
    """A student's result where the workflow puts it, and its images.h5 made by `made`."""
    place = folder / "results/digits/resnet18-w8" / cell / f"seed{seed}"
    path = place / f"student/convnet3/{protocol}/run{run}.json"
    content = {"identity": {"seed": seed, "run": run}, "result": {"top1": top1 / 100} | dict(seen)}
    content["inputs"] = dict(inputs)
    content["settings"] = StudentSettings().model_dump(mode="json") | settings
    atomic_files.write_json(path, content)
    atomic_files.write_json(path.with_suffix(".cost.json"), {"seconds": 1})
    if made is not None:
        hdf5_writer.save(place / "images.h5", {"x": np.zeros(1)}, made)
    return path


RECOVERED = {"stage": "join", "settings": {}, "recover": {"settings": RecoverSettings().model_dump(mode="json")}}
SELECTED = {"stage": "select", "settings": SelectSettings().model_dump(mode="json")}
WMDD, RANDOM = [50.0, 52.0, 55.0], [44.0, 47.0, 46.0]


@pytest.fixture
def two(tmp_path, monkeypatch):
    """Two methods, three seeds each."""
    monkeypatch.chdir(tmp_path)
    for seed in range(3):
        write(tmp_path, "wmdd/ipc10", WMDD[seed], seed, made=RECOVERED)
        write(tmp_path, "random/ipc10", RANDOM[seed], seed, made=SELECTED)
    return tmp_path


BASE = "results/digits/resnet18-w8"


def compared(folder, *names):
    return render([Side.read(folder / BASE / name) for name in names or ("wmdd", "random")])


def table(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_methods_are_compared(two, run):
    code, out, err = run(f"compare {BASE}/wmdd/ipc10 {BASE}/random/ipc10")
    assert (code, err) == (0, "")
    settings, accuracy = map(table, out.split("\n\n")[:2])
    rows = {name: values for name, *values in settings}
    assert rows["method"] == ["wmdd", "random"]
    assert rows["recover.iterations"] == ["2000", "—"]
    assert rows["select.strategy"] == ["—", "random"]
    assert not any(name.startswith("student.") for name in rows)
    first, second = accuracy[2:]
    assert first == [f"{BASE}/wmdd/ipc10", "52.3 ± 2.5 (3)", "", "", "", ""]
    gain = intervals.difference(dict(enumerate(WMDD)), dict(enumerate(RANDOM)))
    assert second[:3] == [f"{BASE}/random/ipc10", "45.7 ± 1.5 (3)", "−6.7"]
    assert second[3:] == [intervals.interval_text(gain.low, gain.high, "+"), f"{gain.p:.2g}", "paired, 3 seeds"]
    assert "n counts seeds" in out
    assert "No interval" not in out


def test_a_comparison_for_programs(two, run):
    places = json.loads(run(f"compare {BASE}/wmdd {BASE}/random {BASE}/random/ipc10/seed0 --json")[1])["places"]
    (place,) = places
    assert place["settings"]["method"] == [["wmdd"], ["random"], ["random"]]
    first, second, third = place["sides"]
    assert (first["students"], first["n"], first["mean"]) == (3, 3, pytest.approx(np.mean(WMDD)))
    assert "difference" not in first
    gain = intervals.difference(dict(enumerate(WMDD)), dict(enumerate(RANDOM)))
    assert second["difference"] == pytest.approx(gain._asdict())
    assert (third["std"], third["difference"]["p"]) == (None, None)


def test_steps_are_compared_too(tmp_path):
    for seed, steps in enumerate((3000, 3000, 2900)):
        write(tmp_path, "wmdd/ipc10", 50, seed, seen={"steps": steps, "images_seen": 300_000})
        write(tmp_path, "random/ipc10", 40, seed)  # by an earlier version
    header, _, first, second = table(compared(tmp_path).split("\n\n")[1])
    assert header[-2:] == ["steps", "images seen"]
    assert (first[-2:], second[-2:]) == (["2,900, 3,000", "300,000"], ["", ""])


def test_steps_that_are_no_number_are_refused(tmp_path, mistake):
    a, b = write(tmp_path, "wmdd/ipc10", 50, seen={"steps": "many"}), write(tmp_path, "wmdd/ipc1", 30)
    assert mistake(f"compare {a} {b}").endswith(
        "run0.json is not the result of a student; give a run0.json of the student stage"
    )


def test_joined_sets_are_compared_by_the_settings_of_their_blocks(tmp_path):
    for stage, kind in ("recover", RecoverSettings), ("match", MatchSettings):
        for number in 5, 7:
            block = {"settings": kind(iterations=number).model_dump(mode="json")}
            write(tmp_path / stage, f"m{number}/ipc1", 50.0, made={"stage": "join", "settings": {}, stage: block})
        shown = compared(tmp_path / stage, "m5", "m7")
        assert [f"{stage}.iterations", "5", "7"] in table(shown)


def test_one_result_each_says_that_there_is_no_interval(tmp_path, run):
    a, b = write(tmp_path, "wmdd/ipc10", 50), write(tmp_path, "wmdd/ipc1", 30, lr=0.5)
    code, out, _ = run(f"compare {a} {b}")
    assert code == 0
    assert "No interval can be given with n < 2" in out
    assert "−20.0" in out
    assert {"student.lr", "ipc"} <= {row[0] for row in table(out)}


@pytest.mark.parametrize(
    ("places", "other", "said"),
    [  # seed and run of each student of both sides
        ([(0, 0), (0, 1), (1, 0)], 0, ["53.0 ± 2.8 (2)", "paired, 2 seeds"]),
        ([(0, 0), (0, 1), (0, 2)], 0, ["| 52.3 (1) ", "| −6.7", "wmdd: spread over 3 students of this set: 2.5."]),
        ([(0, 0), (1, 0), (2, 0)], 5, ["52.3 ± 2.5 (3)", "Welch, unpaired"]),
    ],
)
def test_students_of_a_seed_are_one_observation(tmp_path, places, other, said):
    for (seed, number), wmdd, random in zip(places, WMDD, RANDOM, strict=True):
        write(tmp_path, "wmdd/ipc10", wmdd, seed, number)
        write(tmp_path, "random/ipc10", random, other + seed, number)
    shown = compared(tmp_path)
    assert all(text in shown for text in said), shown


def test_a_protocol_that_changes_the_student_alone_differs_in_that_alone(tmp_path):
    """Its labels lie under the name of its base; which a student learned from is said by their digest."""
    cell = tmp_path / BASE / "wmdd/ipc10/seed0"
    digests = {}
    for name, epochs in (("other", 4), ("paper", 20)):
        settings = RelabelSettings(epochs=epochs).model_dump(mode="json")
        path = cell / f"labels/{name}.h5"
        hdf5_writer.save(path, {"x": np.full(1, epochs)}, {"stage": "relabel", "settings": settings})
        digests[name] = hdf5.load_meta(path)["digest"]
    common = {"made": RECOVERED, "inputs": {"labels": digests["paper"]}}
    paths = [write(tmp_path, "wmdd/ipc10", 50, protocol="paper", **common)]
    paths += [write(tmp_path, "wmdd/ipc10", 50, protocol="mine", lr=0.5, **common)]
    paper, mine = map(Side.read, paths)
    settings = render([paper, mine]).split("\n\n")[0]
    assert [row[0] for row in table(settings)[2:]] == ["protocol", "student.lr"]
    assert mine.scores[0].settings["relabel.epochs"] == "20"


def test_protocols_are_not_mixed(two, run):
    for seed in range(3):
        write(two, "wmdd/ipc10", 30 + seed, seed, protocol="quick-hard", labels="hard")
    write(two, "random/ipc10", 20, 0, protocol="quick-hard", labels="hard")
    write(two, "random/ipc10", 99, 0, protocol="other")
    _, out, _ = run(f"compare {BASE}/wmdd/ipc10 {BASE}/random/ipc10")
    assert [line for line in out.splitlines() if line.startswith("##")] == [
        "## protocol quick",
        "## protocol quick-hard",
    ]
    assert "31.0 ± 1.0 (3)" in out
    assert "99" not in out
    assert "Left out, as only one side has it: protocol other." in out


def test_labels_and_barycenters_beside_are_looked_at(two):
    for name, top_k in (("wmdd", 10), ("random", 5)):
        cell = two / BASE / name / "ipc10/seed0"
        labels, block = cell / "labels/quick.h5", cell / "barycenter/classes0-9.h5"
        hdf5_writer.save(labels, {"x": np.full(1, top_k)}, {"stage": "relabel", "settings": {"top_k": top_k}})
        hdf5_writer.save(block, {"x": np.zeros(1)}, {"stage": "barycenter", "settings": {"tolerance": top_k}})
        write(two, f"{name}/ipc10", 50, inputs={"labels": hdf5.load_meta(labels)["digest"]})
    shown = compared(two, "wmdd/ipc10/seed0", "random/ipc10/seed0")
    assert {"relabel.top_k", "barycenter.tolerance"} <= {row[0] for row in table(shown)}
    assert "No setting differs." in compared(two, "wmdd", "wmdd")


def test_bad_input_is_one_line(two, mistake):
    (two / "x.json").write_text(json.dumps({"seconds": 3}))
    (two / "cut.json").write_text("{")
    for protocol in "ab":
        write(two, "many/ipc10", 1, protocol=protocol)
    write(two / "more", "wmdd/ipc10", float("nan"))
    for line, said in (
        ("results", "compare takes two results or more; name folders or run*.json of students"),
        ("results nowhere", "there is no student's result at nowhere; give a run0.json"),
        (f"{BASE}/wmdd x.json", "x.json is not the result of a student"),
        (f"{BASE}/wmdd cut.json", "cut.json is not a whole JSON file"),
        (f"{BASE}/wmdd more/{BASE}/wmdd", "is nan, not a number from 0 to 1; delete the file"),
        (f"{BASE}/many {BASE}/random", "share no protocol; name folders further down"),
    ):
        assert said in mistake(f"compare {line}")
