"""Page: all that is known of an experiment as one HTML file, which opens without a network.

Tables are made sortable by DataTables, charts are drawn by Vega; both are inside the file. Without JavaScript the tables and
the pictures are still there.
"""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wmdd.report import accuracy_tables, by_class, charts, dd_ranking, glance, lineage, overview, tables
from wmdd.report.page.chart_sections import Figure, answers, sections
from wmdd.report.page.material import Material as Material
from wmdd.report.render import TEMPLATES, environment, render
from wmdd.report.thumbnails import galleries


def build(material: Material) -> str:
    """Return the page as HTML."""
    summary, specs = material.summary, {figure.name: figure.chart.to_dict() for figure in drawn(material)}
    chain, main = lineage.graph(material.files), accuracy_tables.results(summary, material.cells)
    return (
        environment()
        .get_template("page.html")
        .render(
            material=material,
            table=lambda table: render(table, "html"),
            answers=answers(material),
            main=main,
            ablation=accuracy_tables.ablation(summary),
            architectures=accuracy_tables.architectures(summary),
            dd_ranking=dd_ranking.measures(material.cells),
            published=tables.published(material.published, set(material.cells["dataset"])),
            figures=sections(material),
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


def drawn(material: Material) -> Iterator[Figure]:
    """Yield every chart, for files of their own."""
    yield from (figure for _, figure in answers(material) if figure is not None)
    yield from (figure for section in sections(material) for figure in section.figures)


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
