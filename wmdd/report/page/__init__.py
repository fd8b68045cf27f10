"""Page: all that is known of an experiment as one HTML file, which opens without a network.

Tables are made sortable by DataTables, charts are drawn by Vega; both are inside the file. Without JavaScript the tables and
the pictures are still there.
"""

import base64
import json
from pathlib import Path
from typing import Any, NamedTuple

from wmdd.report import accuracy_tables, by_class, charts, dd_ranking, glance, lineage, overview, tables
from wmdd.report.page.chart_sections import Figure, answers, sections
from wmdd.report.page.material import Material as Material
from wmdd.report.render import TEMPLATES, environment, render
from wmdd.report.thumbnails import galleries


class Page(NamedTuple):
    """A page, and the charts that it has, for files of their own."""

    html: str
    figures: list[Figure]


def build(material: Material) -> Page:
    """Return the page."""
    summary, first, more = material.summary, answers(material), sections(material)
    figures = [figure for _, figure in first if figure is not None]
    figures += [figure for section in more for figure in section.figures]
    specs = {figure.name: figure.chart.to_dict() for figure in figures}
    chain = lineage.graph(material.files)
    html = (
        environment()
        .get_template("page.html")
        .render(
            material=material,
            table=lambda table: render(table, "html"),
            answers=first,
            heights={name: spec["height"] for name, spec in specs.items() if "height" in spec},
            main=accuracy_tables.results(summary, material.cells),
            ablation=accuracy_tables.ablation(summary),
            architectures=accuracy_tables.architectures(summary),
            dd_ranking=dd_ranking.measures(material.cells),
            published=tables.published(material.published, set(material.cells["dataset"])),
            figures=more,
            galleries=galleries(material.strips),
            overviews=material.overviews,
            rows=overview.ROWS,
            students=_script(_of_students(material)) if material.students else "",
            confusion=_script(charts.confusion().to_dict()),
            cost=tables.cost(material.costs, material.price),
            spent=tables.spent(material.costs, material.price),
            barycenters=tables.numbers("barycenters", material.barycenters),
            distances=tables.numbers("distances", material.distances),
            datasets=tables.datasets(material.datasets),
            teachers=tables.teachers(material.teachers),
            settings=tables.differing(material.settings),
            classes=tables.classes(material.datasets),
            machines=tables.machines([meta for _, meta in material.files], material.costs),
            broken=chain.broken,
            chain=tables.chain(chain.nodes, chain.edges),
            specs=_script(specs),
            libraries=_libraries() if specs else "",
            sorting=_sorting(),
            styles=(TEMPLATES / "page.css").read_text(encoding="utf-8"),
            behaviour=(TEMPLATES / "page.js").read_text(encoding="utf-8"),
        )
    )
    return Page(html, figures)


def _of_students(material: Material) -> dict[str, Any]:
    """Return what the page's scripts show of classes."""
    names = {name: meta["names"] for name, meta in material.datasets}
    return by_class.for_page(material.students, names, glance.titled(material.cells))


def _script(content: Any) -> str:
    """Return JSON that cannot end the script element it stands in."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False, default=lambda value: value.item())
    return text.replace("<", "\\u003c")


def _libraries() -> str:
    """Return the JavaScript that draws the charts: Vega, Vega-Lite, Vega-Embed."""
    import vl_convert

    return str(vl_convert.javascript_bundle("window.draw = vegaEmbed;")).replace("</script", "<\\/script")


def _sorting() -> tuple[str, str]:
    """Return DataTables' module, in base 64, and its styles."""
    import itables

    folder = Path(itables.__file__).parent / "html"
    module = base64.b64encode((folder / "dt_bundle.js").read_bytes()).decode()
    return module, (folder / "dt_bundle.css").read_text(encoding="utf-8").replace("</style", "<\\/style")
