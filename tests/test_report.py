"""Tables over runs."""

import io
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from wmdd.report import (
    QUALITY,
    barycenter_markdown,
    barycenter_summary,
    cost_markdown,
    markdown,
    rows,
    summary,
)

ROOT = Path(__file__).parents[1]
RULES = "\n".join(path.read_text() for path in sorted((ROOT / "rules").glob("*.smk")))


def result(top1, protocol="paper", seed=0, run=0, labels="soft", method="wmdd", ipc=10, **cell):
    where = {"dataset": "digits", "teacher": "t-w8", "student": "s-w8"} | cell
    path = (
        f"results/{where['dataset']}/{where['teacher']}/{method}/ipc{ipc}/seed{seed}"
        f"/student/{where['student']}/{protocol}/run{run}.json"
    )
    scores = {"top1": top1, "top5": 0.9, "best_top1": top1 + 0.01, "best_epoch": 3}
    return Path(path), {"settings": {"labels": labels}, "result": scores}


def table(results, teachers=None):
    return markdown(summary(rows(results)), teachers or {})


def lines(text):
    """The cells of a Markdown table, a dict a row."""
    found = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    return [dict(zip(found[0], row, strict=True)) for row in found[2:]]


# Rows


def test_the_table_says_whose_validation_set_is_held_out():
    table = pd.DataFrame(
        {"dataset": ["d"], "ipc": [1], "method": ["m"], "student": ["s"], "protocol": ["p"], "teacher": ["t"]}
        | {"labels": ["soft"], "mean": [1.0], "std": [0.5], "n": [2], "top5": [3.0]}
    )
    assert "Of cifar10-search, d what validates is a part of the training set" in markdown(
        table, {}, ["cifar10-search", "d"]
    )
    assert "held out" not in markdown(table, {})


def test_a_row_says_where_it_belongs_and_what_it_scored():
    (row,) = rows([result(0.25, seed=3, run=2, ipc=50, method="a-lr0.1", dataset="my.data")]).to_dict("records")
    assert row == {
        "dataset": "my.data",
        "teacher": "t-w8",
        "method": "a-lr0.1",
        "ipc": 50,
        "seed": 3,
        "student": "s-w8",
        "protocol": "paper",
        "run": 2,
        "labels": "soft",
        "top1": 25.0,
        "top5": 90.0,
        "best_top1": pytest.approx(26.0),
    }


def test_an_absolute_path_is_understood():
    path, content = result(0.5)
    assert rows([("/somewhere/else" / path, content)]).loc[0, "dataset"] == "digits"


def test_a_result_in_another_place_is_a_bug():
    with pytest.raises(ValueError, match=r"x/run0\.json is not where"):
        rows([(Path("x/run0.json"), result(0.5)[1])])


@pytest.mark.parametrize(
    ("protocol", "labels", "merged"),
    [("paper", "soft", "paper"), ("paper-hard", "hard", "paper"), ("die-hard", "soft", "die-hard"), ("x", "hard", "x")],
)
def test_a_protocol_and_its_hard_twin_are_one(protocol, labels, merged):
    assert rows([result(0.5, protocol, labels=labels)]).loc[0, "protocol"] == merged


# Summary


def test_mean_and_standard_deviation_of_a_cell():
    found = summary(rows([result(x, seed=i) for i, x in enumerate((0.1, 0.2, 0.6))]))
    assert found["mean"].tolist() == [30.0]
    assert found["std"].round(2).tolist() == [26.46]  # sqrt((20^2 + 10^2 + 30^2) / 2), not / 3
    assert found["n"].tolist() == [3]
    assert found["top5"].tolist() == [90.0]


def test_seeds_and_runs_are_pooled_and_nothing_else():
    pooled = [result(0.1, seed=0, run=0), result(0.2, seed=0, run=1), result(0.3, seed=1, run=0)]
    apart = [
        result(0.5, ipc=1),
        result(0.5, method="other"),
        result(0.5, protocol="other"),
        result(0.5, dataset="other"),
        result(0.5, teacher="other"),
        result(0.5, student="other"),
        result(0.5, "paper-hard", labels="hard"),
    ]
    found = summary(rows(pooled + apart))
    assert sorted(found["n"]) == [1] * 7 + [3]
    assert summary(rows(list(reversed(pooled + apart)))).equals(found)


def test_the_summary_goes_through_csv():
    found = summary(rows([result(0.1), result(0.2, seed=1), result(0.3, method="b")]))
    again = pd.read_csv(io.StringIO(found.to_csv(index=False)))
    pd.testing.assert_frame_equal(again, found)


# The table


def test_soft_and_hard_labels_stand_side_by_side():
    results = [result(0.5 + i / 10, seed=i) for i in range(3)]
    results += [result(0.2 + i / 10, "paper-hard", labels="hard", seed=i) for i in range(2)]
    (row,) = lines(table(results))
    assert row["soft labels"] == "60.0 ± 10.0 (3)"
    assert row["hard labels"] == "25.0 ± 7.1 (2)"
    assert row["protocol"] == "paper"


def test_a_single_run_shows_no_deviation():
    (row,) = lines(table([result(0.123)]))
    assert row["soft labels"] == "12.3 (1)"
    assert "nan" not in table([result(0.123)])


def test_a_cell_that_was_not_run_is_empty():
    found = {
        row["method"]: row for row in lines(table([result(0.5), result(0.4, "paper-hard", labels="hard", method="b")]))
    }
    assert (found["wmdd"]["hard labels"], found["b"]["soft labels"]) == ("", "")


def test_images_per_class_are_sorted_as_numbers():
    assert [row["ipc"] for row in lines(table([result(0.5, ipc=i) for i in (100, 10, 2)]))] == ["2", "10", "100"]


def test_the_teachers_stand_under_the_table():
    teachers = {
        "results/b/model.safetensors": {"accuracy": {"top1": 0.98765}},
        "results/a/model.safetensors": {"accuracy": {"top1": 0.5}, "origin": "w.pt (sha256 0123)"},
    }
    assert table([result(0.5)], teachers).endswith(
        "- teacher `results/a/model.safetensors`: 50.00 %, weights from w.pt (sha256 0123)\n"
        "- teacher `results/b/model.safetensors`: 98.77 %\n"
    )


def test_the_table_does_not_depend_on_the_order_of_the_results():
    results = [result(0.1 * i, seed=i, method=m) for i in range(3) for m in ("a", "b")]
    assert table(results) == table(results[::-1])


# Cost

WILDCARDS = {
    "dataset": "my.data",
    "teacher": "resnet18-w8",
    "generator": "small-vae",
    "expert": "wide",
    "method": "mine-lr0.1",
    "ipc": "10",
    "seed": "3",
    "block": "classes0-9",
    "student": "convnet3",
    "protocol": "paper.v2",
    "run": "1",
}
(STUDENT,) = re.findall(r'^STUDENT = "(.*)"$', RULES, re.MULTILINE)
COSTS = {
    text.split(":")[0]: found[1]
    for text in re.split(r"^rule ", RULES, flags=re.MULTILINE)
    if (found := re.search(r'cost="([^"]+)"', text))
} | {"student": f"{STUDENT}/run{{run}}.cost.json"}  # whose rules are made in a loop
OF_DATASET = ("data", "teacher", "features", "features_part", "gather")
OF_GENERATOR = ("autoencoder", "encode", "diffusion", "decay")
OF_METHOD = (
    "barycenter", "recover", "match", "images", "select", "quantize", "decode", "distance", "relabel", "student",
)  # fmt: skip


def spent(path, seconds=1.0, memory=100, stage="recover"):
    return Path(path.format(**WILDCARDS)), {"stage": stage, "seconds": seconds, "peak_memory_mb": memory}


def test_every_rule_with_a_cost_is_placed_below():
    assert set(COSTS) == {*OF_DATASET, *OF_GENERATOR, "expert", *OF_METHOD}


@pytest.mark.parametrize("rule", OF_GENERATOR)
def test_the_cost_of_a_generator(rule):
    (row,) = lines(cost_markdown([spent(COSTS[rule], stage=rule)]))
    assert (row["dataset"], row["method"], row["ipc"], row["stage"]) == ("my.data", "small-vae", "", rule)


def test_the_cost_of_experts():
    costs = [spent(COSTS["expert"].replace("{seed}", f"{n}"), stage="expert") for n in range(3)]
    (row,) = lines(cost_markdown(costs))
    assert (row["dataset"], row["method"], row["ipc"], row["stage"]) == ("my.data", "wide", "", "expert")
    assert row["jobs"] == "3"


@pytest.mark.parametrize("rule", OF_DATASET)
def test_the_cost_of_a_dataset_or_teacher(rule):
    (row,) = lines(cost_markdown([spent(COSTS[rule], stage=rule)]))
    assert (row["dataset"], row["method"], row["ipc"], row["stage"]) == ("my.data", "", "", rule)


@pytest.mark.parametrize("rule", OF_METHOD)
def test_the_cost_of_a_method(rule):
    (row,) = lines(cost_markdown([spent(COSTS[rule], stage=rule)]))
    assert (row["dataset"], row["method"], row["ipc"], row["stage"]) == ("my.data", "mine-lr0.1", "10", rule)


def test_jobs_of_a_stage_are_gathered():
    blocks = [COSTS["recover"].replace("{block}", f"classes{i}-{i}") for i in range(3)]
    costs = [
        spent(path, seconds, memory) for path, seconds, memory in zip(blocks, (1, 2, 6), (50, 70, 60), strict=True)
    ]
    (row,) = lines(cost_markdown(costs))
    assert (row["jobs"], float(row["seconds"]), float(row["seconds a job"])) == ("3", 9, 2)
    assert float(row["peak memory MB"]) == 70


def test_other_figures_of_a_job_do_not_disturb():
    path, cost = spent(COSTS["relabel"])
    assert (
        len(
            lines(cost_markdown([(path, cost | {"bytes_per_image": 3, "peak_gpu_memory_mb": 7}), spent(COSTS["data"])]))
        )
        == 2
    )


# Barycenters


def block(classes=2, method="wmdd", ipc=10, seed=0, block="classes0-1", seconds=0.5, **quality):
    """A block as the stage writes it, every column 1 but for those given."""
    path = RULES.split('barycenter="')[1].split('"')[0]
    where = WILDCARDS | {"method": method, "ipc": ipc, "seed": seed, "block": block}
    known = {name: np.ones(classes) for name in QUALITY if name != "restarts_gap"} | {"points": np.full(classes, 9)}
    given = {name: np.asarray(values) for name, values in quality.items()}
    return Path(path.format(**where)), known | given, np.broadcast_to(seconds, classes).tolist()


def test_barycenters_are_the_mean_over_classes_and_seeds_and_the_largest_gap():
    blocks = [
        block(cost=[1.0, 3.0], gap=[0.0, 0.1], iterations=[10, 20], seconds=1.0),
        block(1, block="classes2-2", cost=[5.0], gap=[0.3], iterations=[30], seconds=3.0),
        block(1, seed=1, cost=[7.0], gap=[0.0], iterations=[40], seconds=3.0),
    ]
    for order in (blocks, blocks[::-1]):
        (row,) = barycenter_summary(order).to_dict("records")
        assert (row["dataset"], row["teacher"], row["method"], row["ipc"]) == ("my.data", "resnet18-w8", "wmdd", 10)
        assert (row["solved"], row["cost"], row["gap"], row["iterations"], row["seconds"]) == (4, 4, 0.3, 25, 2)
        assert (row["explained"], row["min_mass"], row["max_mass"], row["effective_atoms"]) == (1, 1, 1, 1)


def test_cells_of_barycenters_are_apart_and_sorted_as_numbers():
    found = barycenter_summary([block(ipc=i, method=m) for m in "ba" for i in (100, 2)])
    assert list(zip(found["method"], found["ipc"], strict=True)) == [("a", 2), ("a", 100), ("b", 2), ("b", 100)]
    assert [row["ipc"] for row in lines(barycenter_markdown(found))] == ["2", "100", "2", "100"]


def test_the_gap_to_other_starts_shows_where_there_were_some():
    without = barycenter_markdown(barycenter_summary([block()]))
    (row,) = lines(barycenter_markdown(barycenter_summary([block(restarts_gap=[0.01, 0.02])])))
    assert "restarts gap" not in lines(without)[0]
    assert (row["restarts gap"], row["effective atoms"]) == ("0.02", "1")
    assert "nan" not in without


def test_a_matrix_without_barycenters_says_so():
    found = barycenter_summary([])
    assert "The matrix has no method with barycenters." in barycenter_markdown(found)
    assert list(pd.read_csv(io.StringIO(found.to_csv(index=False))).columns) == list(
        barycenter_summary([block()]).columns
    )


def test_barycenters_in_another_place_are_a_bug():
    with pytest.raises(ValueError, match=r"x\.h5 is not where"):
        barycenter_summary([(Path("x.h5"), *block()[1:])])
