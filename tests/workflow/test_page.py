"""The page, the map and the tables of a real run."""

import html
import json
import re
from itertools import pairwise

import pandas as pd
import pytest

from .conftest import Workspace

pytestmark = [pytest.mark.workflow, pytest.mark.slow]
PAGE = "results/report/index.html"


def test_the_page_of_a_run(finished: Workspace) -> None:
    text = (finished.root / PAGE).read_text()
    assert "<title>tiny: dataset distillation, results</title>" in text
    for method in ("wmdd", "sre2l", "random", "kmeans-medoid"):
        assert f'data-method="{method}"' in text
    assert "do not belong together" not in text, "the chain of digests is broken"
    accuracy = pd.read_csv(finished.root / "results/report/table.csv").set_index(["method", "labels"])["mean"]
    for (method, labels), mean in accuracy.items():
        row = re.search(rf"""<td class="fixed">{method}</td>.*?</tr>""", text, re.DOTALL)
        assert row, method
        shown = [float(text) for text in re.findall(r">([\d.]+) \(1\)</td>", row[0])]
        assert any(abs(mean - value) <= 0.0551 for value in shown), (method, labels)
    figures = {path.name for path in (finished.root / "results/report/figures").glob("*.svg")}
    assert {"gains-0.svg", "curves-0.svg", "losses-1.svg", "seconds-0.svg"} <= figures
    assert "map-0.svg" not in figures, "nobody asked for it"
    links = re.search(r'<ul class="links">(.*?)</ul>', text, re.DOTALL)
    assert links
    paths = re.findall(r'href="([^"]+)"', links[1])
    assert "table.md" in paths
    assert all((finished.root / PAGE).parent.joinpath(path).is_file() for path in paths)


def test_the_stages_are_those_that_ran_blocks_that_are_deleted_too(finished: Workspace) -> None:
    text = (finished.root / PAGE).read_text()
    table = re.search(r'<table id="chain".*?</table>', text, re.DOTALL)
    assert table
    lines = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", table[0], re.DOTALL)[1:]]
    rows = {stage: sources.split(", ") for stage, _, sources in lines}
    chain = ["data", "teacher", "features", "barycenter", "recover", "join", "relabel", "student"]
    assert all(before in rows[after] for before, after in pairwise(chain))
    assert "teacher" in rows["recover"]
    assert "select" in rows["student"]


def test_the_page_says_how_to_make_it_again_and_what_students_confuse(finished: Workspace) -> None:
    text = (finished.root / PAGE).read_text()
    command = re.search(r'<code class="command">(.*?)</code>', text)
    assert command
    assert html.unescape(command[1]).startswith("snakemake --configfile ")
    (known,) = re.findall(r'<script type="application/json" id="students">(.*?)</script>', text)
    methods = json.loads(known)["settings"][0]["methods"]
    assert {"wmdd", "random"} <= {each["name"] for each in methods}
    assert all(len(each["top1"]) == 10 and each["confusion"] for each in methods)


def test_a_price_makes_the_page_again_and_nothing_else(run: Workspace) -> None:
    run.change("report", {"price_per_gpu_hour": 2.5, "currency": "EUR"})
    assert run.pending() == {"page": 1, "all": 1}
    run.snakemake()
    assert "EUR at 2.5 EUR an hour" in (run.root / PAGE).read_text()


def test_a_map_and_a_table_of_their_own(run: Workspace) -> None:
    first, *others = run.config["matrix"]
    run.change("matrix", [first | {"name": "mine"}, *others])
    run.change("embedding", True)
    assert run.pending("mine") == {"table": 1, "mine": 1}
    assert run.pending() == {"embedding": 1, "page": 1, "all": 1}
    run.snakemake("mine", "figures")
    points = pd.read_json(run.root / "results/report/maps/digits/nano.json")
    assert set(points["method"]) == {"", "wmdd", "sre2l", "random", "kmeans-medoid"}
    assert points.groupby("method").size()["wmdd"] == 20
    assert (run.root / "results/report/figures/map-0.svg").is_file()
    table = (run.root / "results/report/tables/mine.md").read_text()
    assert "digits, 2 per class" in table
    assert "\\toprule" in (run.root / "results/report/tables/mine.tex").read_text()


def test_a_missing_history_is_made_again_and_a_changed_one_is_one_line(run: Workspace) -> None:
    histories = sorted(run.root.glob("results/digits/nano/wmdd/**/run0.csv"))
    histories[0].unlink()
    (run.root / PAGE).unlink()
    assert run.pending(PAGE)["student"] == 1
    for path in histories:
        path.write_text("")
    failed = run.snakemake("--rerun-triggers", "code", "--", PAGE, check=False)
    assert failed.returncode
    log = (run.root / "logs/report/page.log").read_text()
    assert re.search(
        r"error: the history beside .*run0\.json has changed since it was written; delete both and run", log
    )
    assert "Traceback" not in log


def test_a_score_that_was_edited_by_hand_is_in_no_page(run: Workspace) -> None:
    (result,) = run.root.glob("results/digits/nano/wmdd/*/*/student/*/*/run0.json")
    result.write_text(re.sub(r'"top1": [0-9.]+', '"top1": 0.99', result.read_text()))
    assert run.snakemake("--", PAGE, check=False).returncode
    log = (run.root / "logs/report/report.log").read_text()
    assert f"{result.relative_to(run.root)} has changed since it was written; delete it and run again" in log
