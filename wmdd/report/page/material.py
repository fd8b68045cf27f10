"""Material: what a page is made from, as data frames and meta data."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd

from wmdd.report import results
from wmdd.report.by_class import Students
from wmdd.report.overview import Overview
from wmdd.report.prices import priced
from wmdd.report.published import beside
from wmdd.report.tables import UNPRICED, Price
from wmdd.report.thumbnails import Strip
from wmdd.workflow.layout import place_of

Meta = dict[str, Any]


@dataclass
class Material:
    """What a page is made from."""

    experiment: str  # its name
    cells: pd.DataFrame  # `results.rows`: a row a student
    histories: pd.DataFrame  # a row a student and epoch: its cell and labels, epoch, loss, top1 (%)
    costs: pd.DataFrame  # `results.jobs`: a row a job, with the bytes of what it made
    files: list[tuple[str, Meta]]  # path and meta data of every artifact, the students' results included
    datasets: list[tuple[str, Meta]]  # by name
    teachers: dict[str, Meta]  # by path
    barycenters: pd.DataFrame  # `markdown.barycenter_summary`
    distances: pd.DataFrame  # `distances.summary`
    decays: pd.DataFrame  # `distances.decays`
    maps: dict[tuple[str, str], pd.DataFrame]  # of datasets and teachers, for `charts.embedding`
    strips: list[Strip]  # images of some classes
    overviews: list[Overview]  # an image of every class
    settings: dict[str, dict[str, Any]]  # of methods, those of the stages that made the images, flat
    regularisations: dict[tuple[str, str], tuple[str, float]]  # for `chart_sections.sweeps`, of datasets and methods
    published: pd.DataFrame  # `published.read`
    links: list[tuple[str, str]] = field(default_factory=list)  # files beside the page: name and path from it
    students: list[Students] = field(default_factory=list)  # `by_class.by_class`
    command: str = ""  # that makes the results again
    price: Price = UNPRICED

    @cached_property
    def accuracies(self) -> dict[tuple[str, str], float]:
        """The accuracy of teachers in percent, of dataset and teacher: the mean over seeds."""
        scores: dict[tuple[str, str], list[float]] = {}
        for path, meta in self.teachers.items():
            if (place := place_of(path)) is not None:
                scores.setdefault((place.cell.dataset, place.cell.teacher), []).append(100 * meta["accuracy"]["top1"])
        return {place: sum(values) / len(values) for place, values in scores.items()}

    @cached_property
    def summary(self) -> pd.DataFrame:
        """`results.summary` with prices, and what is published."""
        return beside(results.summary(priced(self.cells, self.costs, self.files)), self.published)
