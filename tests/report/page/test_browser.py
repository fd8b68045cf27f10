"""The page in a real browser: headless Chromium, which opens a file and nothing else."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright

from wmdd.report import page
from wmdd.report.page import Material

from .material import METHODS, NAMES, seen, students

pytestmark = pytest.mark.slow
PHONE = {"width": 390, "height": 844}
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None and not os.environ.get("CI"):
    pytest.skip("needs a browser: apt-get install chromium", allow_module_level=True)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, all_of_it: Material) -> Path:
    path = tmp_path_factory.mktemp("page") / "index.html"
    path.write_text(page.build(all_of_it).html)
    return path


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as play:
        found = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def opened(browser, file) -> Iterator:
    """The page in a window of its own. In the end: nothing was complained of, and nothing was asked of a network."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light", offline=True)
    window, said, asked = context.new_page(), [], []
    window.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    window.on("pageerror", lambda error: said.append(str(error)))
    window.on("request", lambda request: asked.append(request.url))
    window.goto(file.as_uri())
    window.wait_for_selector("html.ready")
    yield window
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    context.close()


def scroll(window) -> None:
    """Go through the whole page, so that every chart comes near."""
    for place in range(0, window.evaluate("document.body.scrollHeight"), 600):
        window.evaluate(f"scrollTo({{top: {place}, behavior: 'instant'}})")
        window.wait_for_timeout(60)
    window.wait_for_function(
        "[...document.querySelectorAll('.chart:not(.drawn)')].every(chart => !chart.checkVisibility())", timeout=20_000
    )


def test_every_chart_has_content_and_the_map_a_choice(opened):
    scroll(opened)
    for chart in opened.locator(".chart").all():
        marks = chart.locator(
            "svg .mark-symbol path, svg .mark-line path, svg .mark-rule line, svg .mark-rect path"
        ).count()
        assert marks > 1, chart.get_attribute("data-spec")
    assert opened.locator(".chart").count() > 20
    assert opened.locator("figcaption").first.inner_text() != ""
    choice = opened.locator("[data-spec=map-0] select")
    assert choice.locator("option").count() == len(METHODS)
    choice.select_option("wmdd")
    assert "wmdd" in choice.input_value()


def texts(opened, column: int) -> list[str]:
    return opened.locator(f"#results tbody tr td:nth-child({column})").all_inner_texts()


def test_the_table_is_sorted_as_numbers_by_mouse_and_keyboard_and_searched(opened):
    head = opened.locator("#results thead th", has_text="top-1")
    head.click()
    expect(head).to_have_attribute("aria-sort", "ascending")
    up = [float(text.split()[0]) for text in texts(opened, 3)]
    assert up == sorted(up)
    head.locator("[role=button]").focus()
    opened.keyboard.press("Enter")
    expect(head).to_have_attribute("aria-sort", "descending")
    assert [float(text.split()[0]) for text in texts(opened, 3)] == up[::-1]
    opened.locator("#results-section input[type=search]").first.fill("kmeans")
    expect(opened.locator("#results tbody tr")).to_have_count(len(up) // len(METHODS))
    assert set(texts(opened, 2)) == {"kmeans-medoid"}


def test_the_table_is_copied_as_it_is_shown(opened):
    opened.locator("#results-section input[type=search]").first.fill("resnet18")
    cells = ["10", "wmdd", "47.1 ± 0.7 (2)", "+12.0 (2)", "64.8", "distilled", "resnet18", "paper", "soft"]
    for kind, first, within in (
        ("Markdown", "| images per class | method | top-1, % |", f"| {' | '.join(cells)}"),
        ("LaTeX", "\\begin{tabular}{lllllllll}", " & ".join(cells).replace("±", "$\\pm$")),
        ("CSV", 'images per class,method,"top-1, %"', ",".join(cells)),
    ):
        opened.locator("#results-section button", has_text=f"Copy {kind}").first.click()
        expect(opened.locator("#said")).to_have_text(f"Copied as {kind}")
        text = opened.evaluate("window.copied")
        assert text.startswith(first)
        assert within in text
        assert "convnet3" not in text


def test_the_scores_of_seeds_are_shown_and_hidden(opened):
    head = opened.locator("#results thead th", has_text="by seed")
    assert head.count() == 0
    opened.locator("#results-section button", has_text="Show top-1 by seed").click()
    expect(head).to_be_visible()
    assert "0: 46.6, 1: 47.6" in opened.locator("#results").inner_text()
    opened.locator("#results-section button", has_text="Hide top-1 by seed").click()
    expect(head).to_have_count(0)


def test_a_phone_shows_method_and_accuracy_and_the_method_stays(opened):
    opened.set_viewport_size(PHONE)
    assert box(opened.locator(".answers .chart svg").first)["width"] > 250
    head = opened.locator("#results thead th", has_text="top-1")
    assert box(head)["x"] + box(head)["width"] <= PHONE["width"]
    opened.locator("#results").evaluate("element => element.parentElement.scrollLeft = 300")
    method = opened.locator("#results tbody td.fixed").first
    assert 0 <= box(method)["x"] < 40
    assert method.inner_text() in METHODS
    caption = opened.locator("#results-caption")
    assert box(caption)["x"] + box(caption)["width"] <= PHONE["width"], "no line is cut off"


def box(element) -> dict[str, float]:
    element.scroll_into_view_if_needed()
    return element.bounding_box()


def test_the_first_chart_waits_for_nothing(opened):
    assert opened.locator(".answers .chart.first.drawn").count() == 4
    assert opened.locator(".answers .chart.first svg .mark-rule line").count() > 4


def test_classes_and_what_they_are_taken_for(opened):
    opened.locator("#classes").scroll_into_view_if_needed()
    rows = opened.locator("#by-class tbody tr")
    expect(rows).to_have_count(len(NAMES))
    assert opened.locator("#by-class tbody td:first-child").all_inner_texts() == NAMES
    assert opened.locator("#classes [name=setting] option").count() == 4, "of earlier versions nothing is known"
    first = opened.locator("#worst tbody tr").first.inner_text()
    opened.locator("#classes [name=by]").select_option(label="sre2l")
    expect(opened.locator("#worst tbody tr").first).not_to_have_text(first)
    name, guess, share = opened.locator("#worst tbody tr").first.locator("td").all_inner_texts()
    assert NAMES[(NAMES.index(name) + 1) % len(NAMES)] == guess
    assert 0 < float(share) <= 100
    assert opened.locator("#mistakes .chart svg .mark-rect.role-mark path").count() == 2 * len(NAMES)


def test_rows_of_the_overview_are_found_by_the_name_of_a_class(opened):
    rows = opened.locator(".overview .row:not(.head):visible")
    assert rows.count() == len(NAMES)
    assert opened.locator(".overview .head b em").all_inner_texts() == ["real"] * 2 + ["distilled"] * 5
    assert "url(" in rows.first.locator("i").evaluate("element => getComputedStyle(element).backgroundImage")
    opened.locator(".overview input").fill("FRAN")
    expect(rows).to_have_count(1)
    assert rows.first.locator("span").text_content() == "français"


def test_the_command_is_copied(opened):
    opened.locator("#copy-command").click()
    assert opened.evaluate("window.copied") == "snakemake --configfile 'my file.yaml'"


@pytest.mark.parametrize("classes", [3, 1000])
@pytest.mark.parametrize("width", [1440, 390])
def test_few_classes_and_a_thousand(browser, tmp_path, all_of_it, classes, width):
    names = [f"class {number}" for number in range(classes)]
    meta = {
        **all_of_it.datasets[0][1],
        "classes": names,
        "names": names,
        "counts": {"train": [9] * classes, "val": [9] * classes},
    }
    study = replace(
        all_of_it, datasets=[("imagenette", meta)], overviews=seen(names, 64),
        students=students(all_of_it.cells, classes, few=classes <= 100),
    )  # fmt: skip
    path = tmp_path / "index.html"
    path.write_text(page.build(study).html)
    assert path.stat().st_size < 5e6
    window = browser.new_page(viewport={"width": width, "height": 844})
    window.goto(path.as_uri())
    window.wait_for_selector(".answers .chart.drawn")
    assert window.locator(".overview .row:not(.head)").count() == classes
    scroll(window)
    expect(window.locator("#by-class tbody tr")).to_have_count(min(classes, 25))
    assert window.locator("#mistakes").is_visible() == (classes <= 100)
    assert window.evaluate("document.documentElement.scrollWidth") <= width
    window.close()


def test_images_are_chosen_and_enlarged(opened):
    strips = opened.locator(".strip:visible")
    assert strips.count() == len(NAMES) * len(METHODS)
    opened.locator("select[name=method]").select_option("wmdd")
    opened.locator("select[name=class]").select_option(NAMES[2])
    expect(strips).to_have_count(1)
    strips.first.focus()
    opened.keyboard.press("Enter")
    assert opened.locator("dialog form p").inner_text() == f"10 images of {NAMES[2]} by wmdd, 10 per class"
    widths = opened.locator("dialog img").evaluate_all("images => images.map(image => image.naturalWidth)")
    assert widths == [10 * 16 + 9 * 2] * 2, "the nearest real images stand below"
    assert "nearest real image" in opened.locator("dialog div").inner_text()
    opened.keyboard.press("Escape")
    expect(opened.locator("dialog")).not_to_be_visible()
    opened.locator("select[name=ipc]").select_option("1")
    assert strips.first.locator("img").get_attribute("alt") == f"1 image of {NAMES[2]} by wmdd, 1 per class"
    opened.locator("select[name=method]").select_option("random")
    strips.first.click()
    assert opened.locator("dialog img").count() == 1, "a real image is the nearest to itself"
    opened.keyboard.press("Escape")


def test_colours_follow_the_system_text_can_be_read_and_a_phone_needs_no_sideways_scroll(opened):
    """WCAG 2: a contrast of 4.5 of text and what it stands on, also in charts."""
    paper = "getComputedStyle(document.body).backgroundColor"
    scroll(opened)
    for scheme in "light", "dark":
        opened.emulate_media(color_scheme=scheme)
        opened.wait_for_function(f"({paper} === 'rgb(255, 255, 255)') === {str(scheme == 'light').lower()}")
        ground = luminance(opened.evaluate(paper))
        for place, what in (
            ("p.quiet", "color"),
            ("#results-section a", "color"),
            ("h2", "color"),
            (".chart svg text", "fill"),
        ):
            ink = luminance(opened.locator(place).first.evaluate(f"element => getComputedStyle(element).{what}"))
            assert (max(ink, ground) + 0.05) / (min(ink, ground) + 0.05) >= 4.5, (scheme, place)
    opened.locator("#theme").click()
    assert opened.locator("#theme span").inner_text() == "light"
    assert opened.evaluate(paper) == "rgb(255, 255, 255)"
    opened.set_viewport_size({"width": 360, "height": 740})  # a phone's
    scroll(opened)
    assert opened.evaluate("document.documentElement.scrollWidth") <= 360, "no sideways scroll"


def luminance(colour: str) -> float:
    """Return the relative luminance of `rgb(r, g, b)`."""
    parts = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_what_a_reader_meets(opened):
    """A broken chain is said first; every picture and control has a name; links of the navigation lead somewhere.

    No text of the data becomes a part of the page.
    """
    assert opened.locator("h1").inner_text() == "an <experiment>"
    assert opened.locator(".class h4").all_inner_texts() == NAMES
    assert opened.locator("h4 b").count() == 0
    said = "block was made from other teacher than are there now; run the workflow again"
    assert opened.locator("[role=alert] li").all_inner_texts() == [said]
    assert opened.locator("img:not([alt])").count() == 0
    for control in opened.locator("select, input, button").all():
        name = control.evaluate("element => (element.labels?.[0] ?? element).textContent || element.ariaLabel")
        assert (name or "").strip(), control.evaluate("element => element.outerHTML")
    for link in opened.locator("nav a").all():
        assert opened.locator(link.get_attribute("href")).count() == 1


def test_a_small_file_has_its_tables_and_images_without_scripts_too(browser, file):
    context = browser.new_context(java_script_enabled=False)
    window = context.new_page()
    window.goto(file.as_uri())
    assert window.locator("#results tbody tr").count() == len(METHODS) * 8  # with soft and hard labels
    assert window.locator(".strip:not([hidden]) img").first.is_visible()
    context.close()
    assert file.stat().st_size < 4e6
