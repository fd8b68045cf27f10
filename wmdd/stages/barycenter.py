"""Barycenter: for each class, the free-support Wasserstein barycenter of its features with K = IPC atoms (WMDD, Section 3)."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tabulate import tabulate

from wmdd.base.errors import WmddError
from wmdd.base.rng import generator
from wmdd.stages.point_clouds import Cloud, Rows
from wmdd.transport import Barycenter, cuturi_doucet, minibatch, quantize, released, stream
from wmdd.transport.measure import exact

if TYPE_CHECKING:
    from wmdd.settings.barycenter import TransportSettings

PASSES = 10  # of `stream` after it has learned, at most: each reads all points
Progress = Callable[..., Iterator[Any]]


def _silent(items: Any, *_: Any, **__: Any) -> Iterator[Any]:
    return iter(items)


def _of_several(progress: Progress) -> Progress:
    """Return a progress that is silent where there is one thing to do."""
    return lambda items, what, total, **more: (progress if total > 1 else _silent)(items, what, total, **more)


@dataclass(frozen=True)
class Quality:
    """How good the barycenter of a class is."""

    points: int  # N
    cost: float  # W2^2 to the points
    explained: float  # share of the total variance, 1 - cost / variance; below 0 for atoms worse than the mean alone
    min_mass: float  # of an atom
    max_mass: float
    effective_atoms: float  # 1 / sum of squared masses
    iterations: int  # steps of the solver
    gap: float  # share by which the solver's own plan was dearer than the exact one
    restarts_gap: float | None  # cost / best - 1, over this result and those of other starts, if any were tried
    seconds: float  # of the solver, without the other starts


def barycenters(
    cloud: Cloud, wanted: range, k: int, settings: "TransportSettings", seed: int, progress: Progress = _silent
) -> list[tuple[Barycenter, Quality]]:
    """Return the barycenter of each wanted class and how good it is; draws depend on (seed, class) alone.

    One class is in memory at a time; with the solver `stream` not even that, if no other class stands between its rows.

    Raises:
        WmddError: a class has no points, or some are not numbers; the settings ask for what no solver does.
    """
    settings.check()
    if settings.weights == "uniform" or settings.solver in ("cuturi-doucet", "released"):
        exact(torch.ones(1), torch.ones(1), torch.zeros(1, 1))  # imports POT, so that no class is charged for it
    outer, inner = (progress, _silent) if len(wanted) > 1 else (_silent, _of_several(progress))
    results = []
    for label in outer(wanted, "barycenters", len(wanted), unit="class"):
        rows = cloud.rows(label)
        try:
            run = _solver(cloud, rows, k, settings, inner)
            best = run(generator("barycenter", seed, label), settings.restarts)
            others = [
                run(generator("barycenter compared", seed, label, n), 1).cost for n in range(settings.compare_restarts)
            ]
        except WmddError as error:
            raise WmddError(f"{cloud.title(label)}: {error}") from None
        results.append((best, quality(best, len(rows), cloud.variance(rows), others)))
    return results


Run = Callable[[torch.Generator, int], Barycenter]


def _solver(cloud: Cloud, rows: Rows, k: int, settings: "TransportSettings", progress: Progress) -> Run:
    """Return the chosen solver for some points: of a generator and a number of starts, of which the best is kept."""
    steps, tolerance, weights = settings.max_iterations, settings.tolerance, settings.weights
    if settings.solver == "stream":
        source, part = (cloud.points, rows) if isinstance(rows, range) else (cloud.read(rows), None)
        return _repeated(
            lambda draws: stream(
                source, k, generator=draws, rows=part, refinements=min(steps, PASSES), tolerance=tolerance,
                progress=progress,
            )
        )  # fmt: skip
    points = cloud.read(rows)
    if settings.solver == "cuturi-doucet":
        return _repeated(lambda draws: cuturi_doucet(points, k, draws, weights, steps, tolerance))
    if settings.solver == "released":
        return _repeated(lambda draws: released(points, k, draws, weights))
    if settings.solver == "d4m":
        return _repeated(lambda draws: minibatch(points, k, generator=draws, weights=weights, expand=settings.expand))
    return lambda draws, restarts: quantize(
        points, k, weights=weights, generator=draws, max_iterations=steps, tolerance=tolerance, restarts=restarts,
        exchanges=settings.exchanges,
    )  # fmt: skip


def _repeated(solve: Callable[[torch.Generator], Barycenter]) -> Run:
    def run(draws: torch.Generator, restarts: int) -> Barycenter:
        tries = [solve(draws) for _ in range(restarts)]
        return replace(min(tries, key=lambda result: result.cost), seconds=sum(result.seconds for result in tries))

    return run


def quality(barycenter: Barycenter, points: int, variance: float, others: Sequence[float] = ()) -> Quality:
    """Return how good a barycenter of `points` points with this total variance is; `others` are costs from other starts."""
    best = min([barycenter.cost, *others])
    worse = barycenter.cost / best - 1 if best > 0 else math.inf if barycenter.cost > 0 else 0.0
    return Quality(
        points,
        barycenter.cost,
        explained(variance, barycenter),
        float(barycenter.weights.min()),
        float(barycenter.weights.max()),
        barycenter.effective_atoms,
        len(barycenter.trace),
        barycenter.gap,
        worse if others else None,
        barycenter.seconds,
    )


def explained(variance: float, barycenter: Barycenter) -> float:
    """Return the share of the total variance that the atoms explain, 1 - W2^2 / Var."""
    return 1 - barycenter.cost / variance if variance > 0 else 1.0


def columns(qualities: Sequence[Quality]) -> dict[str, np.ndarray]:
    """Return the quality of all classes as columns [C] by name, without what is not known and the seconds of this run."""
    rows = [asdict(quality) for quality in qualities]
    names = [name for name in rows[0] if name != "seconds" and rows[0][name] is not None]
    return {name: np.array([row[name] for row in rows]) for name in names}


def table(names: Sequence[str], qualities: Sequence[Quality]) -> str:
    """Return the quality as a table in Markdown: a row a class and, below several, their mean."""
    values = columns(qualities) | {"seconds": np.array([quality.seconds for quality in qualities])}
    if len(names) > 1:
        names = [*names, "mean"]
        values = {name: np.append(column, column.mean()) for name, column in values.items()}
    values["explained"] = values["explained"].round(6) + 0.0  # at one atom it is 0 but for rounding
    titles = {name: "W2^2" if name == "cost" else name.replace("_", " ") for name in values}
    rows = {"class": names} | {titles[name]: column for name, column in values.items()}
    return tabulate(rows, headers="keys", tablefmt="pipe", floatfmt=".5g")
