"""Two distilled sets compared: settings that differ, means, and tests that agree with textbook formulas."""

import json
import math

import numpy as np
import pytest
from scipy.stats import t as student_t

from wmdd import artifacts
from wmdd.compare import Side, paired, render, score, welch
from wmdd.errors import WmddError
from wmdd.settings import MatchSettings, RecoverSettings, SelectSettings, StudentSettings


def write(folder, cell, top1, seed=0, run=0, protocol="quick", made=None, **settings):
    """A student's result where the workflow puts it, and its images.h5 made by `made`."""
    place = folder / "results/digits/resnet18-w8" / cell / f"seed{seed}"
    path = place / f"student/convnet3/{protocol}/run{run}.json"
    content = {"identity": {"seed": seed, "run": run}, "result": {"top1": top1 / 100}}
    content["settings"] = StudentSettings().model_dump(mode="json") | settings
    artifacts.write_json(path, content)
    artifacts.write_json(path.with_suffix(".cost.json"), {"seconds": 1})
    if made is not None:
        artifacts.save(place / "images.h5", {"x": np.zeros(1)}, made)
    return path


RECOVERED = {"stage": "images", "settings": {}, "recover": {"settings": RecoverSettings().model_dump(mode="json")}}
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


def test_methods_are_compared(two, run):
    code, out, err = run(f"compare {BASE}/wmdd/ipc10 {BASE}/random/ipc10")
    assert (code, err) == (0, "")
    settings, accuracy = out.split("\n\n")[:2]
    rows = {
        row[0]: row[1:] for row in ([c.strip() for c in line.strip("|").split("|")] for line in settings.splitlines())
    }
    assert rows["method"] == ["wmdd", "random"]
    assert rows["recover.iterations"] == ["2000", "—"]
    assert rows["select.strategy"] == ["—", "random"]
    assert not any(name.startswith("student.") for name in rows)
    first, second = ([c.strip() for c in line.strip("|").split("|")] for line in accuracy.splitlines()[2:])
    assert first == [f"{BASE}/wmdd/ipc10", "52.33 ± 2.52 (3)", "", "", "", "", "", ""]
    assert second[:4] == [f"{BASE}/random/ipc10", "45.67 ± 1.53 (3)", *welch(WMDD, RANDOM)[:2]]
    assert second[5] == "-6.67 (3)"
    assert "n counts seeds" in out
    assert "No test" not in out


@pytest.mark.parametrize(("stage", "kind"), [("recover", RecoverSettings), ("match", MatchSettings)])
def test_joined_sets_are_compared_by_the_settings_of_their_blocks(tmp_path, monkeypatch, run, stage, kind):
    monkeypatch.chdir(tmp_path)
    for number in 5, 7:
        settings = kind(iterations=number).model_dump(mode="json")
        write(
            tmp_path, f"m{number}/ipc1", 50.0, made={"stage": "images", "settings": {}, stage: {"settings": settings}}
        )
    code, out, _ = run(f"compare {BASE}/m5 {BASE}/m7")
    assert code == 0
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines()]
    assert [f"{stage}.iterations", "5", "7"] in rows


def test_welch_by_hand():
    a, b = WMDD, RANDOM[:2]
    share = [np.var(each, ddof=1) / len(each) for each in (a, b)]
    error = math.sqrt(sum(share))
    freedom = sum(share) ** 2 / sum(s**2 / (len(each) - 1) for s, each in zip(share, (a, b), strict=True))
    difference = np.mean(b) - np.mean(a)
    half = student_t.ppf(0.975, freedom) * error
    p = 2 * student_t.sf(abs(difference) / error, freedom)
    assert welch(a, b) == [f"{difference:+.2f}", f"{difference - half:+.2f} to {difference + half:+.2f}", f"{p:.2g}"]


def test_paired_by_hand():
    first, second = dict(enumerate(WMDD)), {0: 44.0, 2: 46.0, 7: 99.0}
    each = np.array([44.0 - 50, 46 - 55])
    half = student_t.ppf(0.975, 1) * each.std(ddof=1) / math.sqrt(2)
    p = 2 * student_t.sf(abs(each.mean()) / (each.std(ddof=1) / math.sqrt(2)), 1)
    told = [f"{each.mean():+.2f} (2)", f"{each.mean() - half:+.2f} to {each.mean() + half:+.2f}", f"{p:.2g}"]
    assert paired(first, second) == told
    assert paired({0: 1.0}, {1: 2.0}) == ["—"] * 3
    assert paired({0: 1.0}, {0: 2.5}) == ["+1.50 (1)", "—", "—"]


def test_the_tests_do_not_depend_on_order_or_origin():
    shifted = welch([x + 7 for x in reversed(WMDD)], [x + 7 for x in RANDOM])
    assert shifted == welch(WMDD, RANDOM)
    assert welch(RANDOM, WMDD)[2] == shifted[2]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([50.0], [44.0, 46.0], ["-5.00", "—", "—"]),
        ([50.0, 50.0], [40.0, 40.0], ["-10.00", "—", "—"]),
        ([50.0, 51.0], [], ["—", "—", "—"]),
    ],
)
def test_where_there_is_no_test(first, second, expected):
    assert welch(first, second) == expected


def test_scores():
    assert (score([]), score([50.0]), score([50.0, 52.0])) == ("— (0)", "50.00 (1)", "51.00 ± 1.41 (2)")


def test_one_result_each_says_that_no_test_can_be_made(tmp_path, run):
    a, b = write(tmp_path, "wmdd/ipc10", 50), write(tmp_path, "wmdd/ipc1", 30, lr=0.5)
    code, out, _ = run(f"compare {a} {b}")
    assert code == 0
    assert "No test can be made with n < 2" in out
    assert "-20.00" in out
    assert "| student.lr" in out
    assert "| ipc" in out


def test_students_of_a_seed_are_one_observation(tmp_path):
    for seed in range(2):
        for number in range(2):
            write(tmp_path, "wmdd/ipc10", 50 + 2 * seed + 10 * number, seed, number)
            write(tmp_path, "random/ipc10", 40 + seed, seed, number)
    shown = render([Side.read(tmp_path / BASE / name) for name in ("wmdd", "random")])
    assert "56.00 ± 1.41 (2)" in shown


def test_students_of_a_single_seed_count_themselves(tmp_path):
    for number in range(3):
        write(tmp_path, "wmdd/ipc10", WMDD[number], 0, number)
        write(tmp_path, "random/ipc10", RANDOM[number], 0, number)
    shown = render([Side.read(tmp_path / BASE / name) for name in ("wmdd", "random")])
    assert "52.33 ± 2.52 (3)" in shown
    assert "all of seed 0: nothing is said of other seeds" in shown


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
    assert "31.00 ± 1.00 (3)" in out
    assert "99" not in out


def test_labels_and_barycenters_beside_are_looked_at(two):
    for name, top_k in (("wmdd", 10), ("random", 5)):
        cell = two / BASE / name / "ipc10/seed0"
        artifacts.save(cell / "labels/quick.h5", {"x": np.zeros(1)}, {"stage": "relabel", "settings": {"top_k": top_k}})
        artifacts.save(
            cell / "barycenter/classes0-9.h5",
            {"x": np.zeros(1)},
            {"stage": "barycenter", "settings": {"tolerance": top_k}},
        )
    shown = render([Side.read(two / BASE / name / "ipc10/seed0") for name in ("wmdd", "random")])
    assert "| relabel.top_k" in shown
    assert "| barycenter.tolerance" in shown


def test_equal_sides_differ_in_nothing(two):
    side = Side.read(two / BASE / "wmdd")
    assert "No setting differs." in render([side, side])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("compare results", "compare takes two results or more; name folders or run*.json of students"),
        ("compare results nowhere", "there is no student's result at nowhere; give a run0.json"),
        (f"compare {BASE}/wmdd x.json", "x.json is not the result of a student"),
        (f"compare {BASE}/wmdd cut.json", "cut.json is not a whole JSON file"),
        (f"compare {BASE}/many {BASE}/random", "share no protocol; name folders further down"),
    ],
)
def test_bad_input_is_one_line(two, run, line, said):
    (two / "x.json").write_text(json.dumps({"seconds": 3}))
    (two / "cut.json").write_text("{")
    for protocol in "ab":
        write(two, "many/ipc10", 1, protocol=protocol)
    code, out, err = run(line)
    assert (code, out) == (1, "")
    assert said in err
    assert len(err.splitlines()) == 1


def test_a_damaged_set_beside_is_named(two):
    (two / BASE / "wmdd/ipc10/seed0/images.h5").write_text("cut")
    with pytest.raises(WmddError, match=r"seed0/images.h5 is not a whole HDF5 file"):
        Side.read(two / BASE / "wmdd")
