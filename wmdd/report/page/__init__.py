"""Page: all that is known of an experiment as one HTML file, which opens without a network.

Tables are made sortable by DataTables, charts are drawn by Vega; both are inside the file. Without JavaScript the tables and
the pictures are still there.
"""

import base64
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from wmdd.report import lineage, results
from wmdd.report.page import scores, tables
from wmdd.report.page.figures import Figure, galleries, sections
from wmdd.report.prices import priced
from wmdd.report.published import beside
from wmdd.report.render import TEMPLATES, environment, render
from wmdd.report.thumbnails import Strip


@dataclass
class Material:
    """What a page is made from.

    Attributes:
        experiment: its name.
        cells: a row a student (`results.rows`).
        histories: a row a student and epoch: its cell and labels, epoch, loss, top1 (%).
        costs: a row a job (`results.jobs`), with the bytes of what it made.
        files: path and meta data of every artifact, the students' results included.
        datasets: name and meta data of each.
        teachers: path and meta data of each.
        barycenters: `report.barycenter_summary`.
        distances: `distances.summary`.
        decays: `distances.decays`.
        maps: of each dataset and teacher, `charts.embedding`'s table.
        strips: distilled images.
        settings: of each method the settings of the stages that made its images, flat.
        regularisations: of datasets and methods that recover images, what else they depend on and the weight of the statistics.
        published: `published.read`.
        links: files beside the page: name and path from it.
        circles: a data URI of the picture of circles and their means.
    """

    experiment: str
    cells: pd.DataFrame
    histories: pd.DataFrame
    costs: pd.DataFrame
    files: list[tuple[str, dict[str, Any]]]
    datasets: list[tuple[str, dict[str, Any]]]
    teachers: dict[str, dict[str, Any]]
    barycenters: pd.DataFrame
    distances: pd.DataFrame
    decays: pd.DataFrame
    maps: dict[tuple[str, str], pd.DataFrame]
    strips: list[Strip]
    settings: dict[str, dict[str, Any]]
    regularisations: dict[tuple[str, str], tuple[str, float]]
    published: pd.DataFrame
    links: list[tuple[str, str]] = field(default_factory=list)
    circles: str = ""

    @cached_property
    def summary(self) -> pd.DataFrame:
        """`results.summary` with prices, and what is published."""
        return beside(results.summary(priced(self.cells, self.costs, self.files)), self.published)


def build(material: Material) -> str:
    """Return the page as HTML."""
    found, cells, summary = sections(material), material.cells, material.summary
    specs = {figure.name: figure.chart.to_dict() for _, _, several in found for figure in several}
    return (
        environment()
        .get_template("page.html")
        .render(
            material=material,
            table=lambda table: render(table, "html"),
            glance=scores.glance(cells),
            main=scores.results(summary),
            ablation=scores.ablation(summary),
            architectures=scores.architectures(summary),
            published=tables.published(material.published, set(cells["dataset"])),
            figures=found,
            galleries=galleries(material.strips),
            cost=tables.cost(material.costs),
            barycenters=tables.numbers("barycenters", material.barycenters),
            distances=tables.numbers("distances", material.distances),
            datasets=tables.datasets(material.datasets),
            teachers=tables.teachers(material.teachers),
            settings=tables.differing(material.settings),
            all_settings={method: dict(sorted(found.items())) for method, found in sorted(material.settings.items())},
            classes=tables.classes(material.datasets),
            machines=tables.machines([meta for _, meta in material.files], material.costs),
            chain=lineage.graph(material.files),
            specs=_script(specs),
            libraries=libraries() if specs else "",
            sorting=sorting(),
            styles=(TEMPLATES / "page.css").read_text(),
            behaviour=(TEMPLATES / "page.js").read_text(),
        )
    )


def drawn(material: Material) -> Iterable[Figure]:
    """Yield every chart, for files of their own."""
    return (figure for _, _, several in sections(material) for figure in several)


def _script(content: Any) -> str:
    """Return JSON that cannot end the script element it stands in."""
    return json.dumps(content, separators=(",", ":"), allow_nan=False, default=lambda value: value.item()).replace(
        "<", "\\u003c"
    )


def libraries() -> str:
    """Return the JavaScript that draws the charts: Vega, Vega-Lite, Vega-Embed."""
    import vl_convert

    return str(vl_convert.javascript_bundle("window.draw = vegaEmbed;")).replace("</script", "<\\/script")


def sorting() -> tuple[str, str]:
    """Return DataTables' module, in base 64, and its styles."""
    import itables

    folder = Path(itables.__file__).parent / "html"
    module = base64.b64encode((folder / "dt_bundle.js").read_bytes()).decode()
    return module, (folder / "dt_bundle.css").read_text().replace("</style", "<\\/style")
