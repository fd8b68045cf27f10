"""Barycenter solvers against their peers, in one run: cost W2^2 and seconds, paired, medians.

Every repeat runs every solver once, in turn and with a seed of its own, so that a drift of the machine's speed meets all of
them; ratios are taken within a repeat. Costs are evaluated for all in float64 by the same function: for free weights the mean
squared distance to the nearest atom, for uniform weights the exact transport cost. Solvers that take minutes run once (n = 1).

    pip install -r benchmarks/requirements.txt     # the peers; scikit-learn and POT come with wmdd
    python -m benchmarks.transport --features results/cifar10/resnet18-w16/teacher/seed0/features.h5
    OMP_NUM_THREADS=1 python -m benchmarks.transport --part peers --repeats 5    # CPU seconds, ten clouds, one thread
    python -m benchmarks.transport --part imagenet
    python -m benchmarks.transport --part growth --plot docs/images/transport-growth.png
"""

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("POT_BACKEND_DISABLE_PYTORCH", "1")

import h5py
import numpy as np
import ot
import pandas as pd
import torch
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.datasets import load_digits

from benchmarks.clouds import clouds, gamma_mixture, write_large
from benchmarks.machine import processor
from wmdd.report.charts import COLOURS
from wmdd.transport import quantize, quantize_all, released, stream
from wmdd.transport.cells import Cells, Measures
from wmdd.transport.descent import descend
from wmdd.transport.measure import exact, squared_distances

Points = np.ndarray
Solver = Callable[[Points, int, int], np.ndarray]  # points, atoms, seed -> atoms
SLOW = 20.0  # seconds from which a solver is not repeated


def inputs(features: Path | None, label: int) -> dict[str, Points]:
    """Return the measures by name."""
    found = {"gamma 1300 x 512": gamma_mixture(1300, 512), "digits 1797 x 64": load_digits().data.astype(np.float32)}
    if features is not None:
        with h5py.File(features) as file:
            mine = file["features"][()][file["labels"][()] == label]
        found = {f"CIFAR-10 features, class {label}, {len(mine)} x {mine.shape[1]}": mine.astype(np.float32)} | found
    return found


def free_cost(points: Points, atoms: np.ndarray) -> float:
    """Mean squared distance to the nearest atom."""
    return float(squared_distances(torch.from_numpy(atoms).double(), torch.from_numpy(points).double()).amin(0).mean())


def uniform_cost(points: Points, atoms: np.ndarray) -> float:
    """Exact transport cost of atoms of equal mass."""
    k, n = len(atoms), len(points)
    cost = squared_distances(torch.from_numpy(atoms).double(), torch.from_numpy(points).double())
    return exact(torch.full((k,), 1 / k), torch.full((n,), 1 / n), cost).cost


def file_cost(points: Points, atoms: np.ndarray) -> float:
    """Mean squared distance to the nearest atom, by the block."""
    blocks = range(0, len(points), 10_000)
    return sum(free_cost(part, atoms) * len(part) for part in (points[a : a + 10_000] for a in blocks)) / len(points)


# ---- the solvers


def ours(**options: Any) -> Solver:
    """Our solver with the given options."""

    def solve(points: Points, k: int, seed: int) -> np.ndarray:
        draws = torch.Generator().manual_seed(seed)
        return quantize(torch.from_numpy(points), k, generator=draws, **options).atoms.numpy()

    return solve


def ours_in_steps(steps: int) -> Solver:
    """Hartigan steps from random points, for the comparison at the cost that faiss reaches."""

    @torch.inference_mode()
    def solve(points: Points, k: int, seed: int) -> np.ndarray:
        rows = torch.randperm(len(points), generator=torch.Generator().manual_seed(seed))[:k]
        measures = Measures.of(torch.from_numpy(points)[None], torch.tensor([len(points)]))
        label = measures.distances(measures.points[:, None, rows]).min(2).indices
        cells, _ = descend(Cells.of(measures, label, k).repaired(), steps, 0.0)
        return (cells.means[0, 0].double() + measures.centre[0]).float().numpy()

    return solve


def sklearn(starts: int) -> Solver:
    """Lloyd from greedy k-means++."""
    return lambda points, k, seed: KMeans(k, n_init=starts, random_state=seed).fit(points).cluster_centers_


def faiss(points: Points, k: int, seed: int) -> np.ndarray:
    """25 iterations of Lloyd from random points, all points used."""
    import faiss as library

    found = library.Kmeans(
        points.shape[1], k, niter=25, seed=seed, min_points_per_centroid=1, max_points_per_centroid=10**9
    )
    found.train(points)
    return np.asarray(found.centroids)


def pot(points: Points, k: int, seed: int) -> np.ndarray:
    """POT's free-support barycenter from N(0, 1) noise with uniform weights: what the published script runs."""
    noise = np.random.default_rng(seed).standard_normal((k, points.shape[1]))
    measure = points.astype(np.float64)
    return ot.lp.free_support_barycenter([measure], [np.full(len(points), 1 / len(points))], noise, b=np.full(k, 1 / k))


def pot_from_points(points: Points, k: int, seed: int) -> np.ndarray:
    """POT's free-support barycenter from k of the points with uniform weights."""
    start = points[np.random.default_rng(seed).choice(len(points), k, replace=False)].astype(np.float64)
    masses = np.full(len(points), 1 / len(points))
    return ot.lp.free_support_barycenter([points.astype(np.float64)], [masses], start, b=np.full(k, 1 / k))


def streamed(points: Points, k: int, seed: int) -> np.ndarray:
    """Our solver for files."""
    return stream(points, k, generator=torch.Generator().manual_seed(seed)).atoms.numpy()


def mini_batches(points: Points, k: int, seed: int) -> np.ndarray:
    """scikit-learn's mini-batch k-means with its defaults."""
    return MiniBatchKMeans(k, n_init="auto", random_state=seed).fit(points).cluster_centers_


def constrained(points: Points, k: int, seed: int) -> np.ndarray:
    """Balanced k-means by minimum-cost flow; sizes within one of each other."""
    from k_means_constrained import KMeansConstrained

    low = len(points) // k
    solver = KMeansConstrained(k, size_min=low, size_max=low + (len(points) % k > 0), n_init=1, random_state=seed)
    return solver.fit(points.astype(np.float64)).cluster_centers_


def published(points: Points, k: int, seed: int) -> np.ndarray:
    """The published learned-weights recipe, at its most favourable: its atoms with Voronoi masses."""
    return released(torch.from_numpy(points), k, torch.Generator().manual_seed(seed), weights="free").atoms.numpy()


FREE = {
    "wmdd": ours(),
    "scikit-learn n_init=1": sklearn(1),
    "scikit-learn n_init=10": sklearn(10),
    "faiss, 25 iterations": faiss,
}
UNIFORM = {
    "wmdd uniform": ours(weights="uniform"),
    "wmdd uniform, 4 steps": ours(weights="uniform", max_iterations=4),
    "POT from noise": pot,
    "k-means-constrained": constrained,
}


def compare(
    points: Points,
    k: int,
    solvers: dict[str, Solver],
    cost: Callable[..., float],
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> pd.DataFrame:
    """Run the solvers in turn; one row a run."""
    rows, spent = [], dict.fromkeys(solvers, 0.0)
    for seed in range(-1, repeats):  # the first round warms up and is left out
        for name, solve in solvers.items():
            if spent[name] > SLOW and seed > 0:
                continue
            begun = clock()
            atoms = solve(points, k, seed + 1)
            seconds = clock() - begun
            spent[name] = max(spent[name], seconds)
            if seed >= 0 or seconds > SLOW:
                rows.append({"solver": name, "k": k, "seed": seed, "seconds": seconds, "cost": cost(points, atoms)})
    return pd.DataFrame(rows)


def summary(runs: pd.DataFrame, first: str) -> pd.DataFrame:
    """Return medians of cost and time, and the medians of the ratios within a repeat to the solver named first."""
    base = runs[runs.solver == first].set_index(["input", "k", "seed"])[["seconds", "cost"]]
    joined = runs.join(base, on=["input", "k", "seed"], rsuffix="_first")
    joined["time ratio"] = joined.seconds / joined.seconds_first
    groups = joined.groupby(["input", "k", "solver"], sort=False)
    table = groups.agg(
        n=("cost", "size"), cost=("cost", "median"), best=("cost", "min"), worst=("cost", "max"), ms=("seconds", "median"),
        **{"time ratio": ("time ratio", "median")},
    ).reset_index()  # fmt: skip
    table["ms"] *= 1000
    return table


def steps_to(points: Points, k: int, target: float) -> int:
    """Return the fewest of our steps from random points that reach a cost (median of 5 seeds)."""
    for steps in (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 60, 100):
        if statistics.median(free_cost(points, ours_in_steps(steps)(points, k, s)) for s in range(5)) <= target:
            return steps
    return 300


def table(features: Path | None, label: int, repeats: int, atoms: list[int]) -> dict[str, Any]:
    """Run all comparisons."""
    free, uniform, equal, learned = [], [], [], []
    for name, points in inputs(features, label).items():
        for k in atoms:
            print(name, k, flush=True)
            free.append(compare(points, k, FREE, free_cost, repeats).assign(input=name))
            if k > 1:
                target = free[-1][free[-1].solver == "faiss, 25 iterations"].cost.median()
                pair = {
                    "wmdd, at faiss's cost": ours_in_steps(steps_to(points, k, target)),
                    "faiss, 25 iterations": faiss,
                }
                equal.append(compare(points, k, pair, free_cost, repeats).assign(input=name))
            uniform.append(compare(points, k, UNIFORM, uniform_cost, repeats).assign(input=name))
            if k <= (10 if len(points) > 2000 else 100):
                pair = {"wmdd": ours(), "published learned weights": published}
                learned.append(compare(points, k, pair, free_cost, 1).assign(input=name))
    parts = {
        "free": summary(pd.concat(free), "wmdd"),
        "equal cost": summary(pd.concat(equal), "wmdd, at faiss's cost"),
        "uniform": summary(pd.concat(uniform), "wmdd uniform"),
        "learned": summary(pd.concat(learned), "wmdd"),
    }
    for title, part in parts.items():
        print(f"\n## {title}\n\n{part.round(4).to_markdown(index=False)}", flush=True)
    return {title: part.to_dict("records") for title, part in parts.items()}


def peers(repeats: int, atoms: list[int]) -> dict[str, Any]:
    """CPU seconds and cost on ten clouds and on one in a memory-mapped file, beside the peers that everybody has."""
    free = {"wmdd": ours(), "scikit-learn n_init=1": sklearn(1), "scikit-learn n_init=10": sklearn(10)}
    uniform = {"wmdd uniform": ours(weights="uniform"), "POT from points": pot_from_points}
    files = {"wmdd stream": streamed, "MiniBatchKMeans": mini_batches}
    runs: dict[str, list[pd.DataFrame]] = {"free": [], "uniform": [], "stream": []}
    for name, points in clouds().items():
        for k in atoms:
            for title, solvers, cost in (("free", free, free_cost), ("uniform", uniform, uniform_cost)):
                done = compare(points, k, solvers, cost, repeats, time.process_time)
                runs[title].append(done.assign(input=name))
            print(name, k, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        write_large(path := Path(folder) / "points.npy")
        points = np.load(path, mmap_mode="r")
        for k in atoms:
            done = compare(points, k, files, file_cost, min(repeats, 3), time.process_time)
            runs["stream"].append(done.assign(input="gamma 200000 x 512"))
    firsts = {"free": "wmdd", "uniform": "wmdd uniform", "stream": "wmdd stream"}
    tables = {title: summary(pd.concat(parts), firsts[title]) for title, parts in runs.items()}
    for title, part in tables.items():
        print(f"\n## {title}\n\n{part.round(4).to_markdown(index=False)}", flush=True)
    return {title: part.to_dict("records") for title, part in tables.items()}


def imagenet(atoms: list[int], classes: int) -> list[dict[str, Any]]:
    """1,000 classes x 1,300 x 512 float32 from HDF5, class after class, as the barycenter stage reads them."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.h5"
        with h5py.File(path, "w") as file:
            data = file.create_dataset("features", (classes * 1300, 512), "float32")
            for c in range(classes):
                data[c * 1300 : (c + 1) * 1300] = gamma_mixture(1300, 512, seed=c)
        for k in atoms:
            begun = time.perf_counter()
            with h5py.File(path, "r", locking=False) as file:
                costs = []
                for c in range(classes):
                    points = torch.from_numpy(file["features"][c * 1300 : (c + 1) * 1300])
                    costs.append(quantize_all([points], k, generators=[torch.Generator().manual_seed(c)])[0].cost)
            rows.append({
                "classes": classes, "k": k, "seconds": time.perf_counter() - begun, "mean cost": statistics.mean(costs),
                "peak resident MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            })  # fmt: skip
            print(rows[-1], flush=True)
    return rows


def growth(plot: Path | None) -> list[dict[str, Any]]:
    """How cost and time grow with N and K: our solver in memory, streamed, with uniform weights, and scikit-learn."""

    def draw(seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    solvers: dict[str, tuple[int, Callable[[torch.Tensor, int], Any]]] = {
        "free": (10**6, lambda x, k: quantize(x, k, generator=draw(0))),
        "free, streamed": (10**6, lambda x, k: stream(x, k, generator=draw(0))),
        "uniform": (10**5, lambda x, k: quantize(x, k, weights="uniform", generator=draw(0), tolerance=1e-3)),
    }
    rows = []
    for n in (10**3, 10**4, 10**5, 10**6):
        points = torch.from_numpy(gamma_mixture(n, 32))
        for k in (10, 100):
            for name, (most, solve) in solvers.items():
                if n > most:
                    continue
                begun = time.perf_counter()
                cost = solve(points, k).cost
                rows.append({"solver": name, "n": n, "k": k, "seconds": time.perf_counter() - begun, "cost": cost})
                print(rows[-1], flush=True)
            begun = time.perf_counter()
            found = KMeans(k, n_init=1, random_state=0).fit(points.numpy())
            row = {"solver": "scikit-learn n_init=1", "n": n, "k": k, "seconds": time.perf_counter() - begun}
            rows.append(row | {"cost": found.inertia_ / n})
            print(rows[-1], flush=True)
    if plot is not None:
        draw_growth(pd.DataFrame(rows), plot)
    return rows


def draw_growth(rows: pd.DataFrame, path: Path) -> None:
    """Draw seconds and cost against N, a line a solver and K."""
    import altair as alt

    x = alt.X("n:Q", title="points N (32 dimensions)").scale(type="log", nice=False, padding=10)
    x = x.axis(values=sorted(set(rows.n)), format="~s")
    colour = alt.Color("solver:N", title=None, sort=None).scale(range=COLOURS)
    dashes = alt.StrokeDash("atoms:N", title=None, sort=None).scale(range=[[1, 0], [6, 3]])
    base = alt.Chart(rows.assign(atoms=rows.k.map("K = {}".format)), width=380, height=260)

    def panel(y: alt.Y) -> alt.LayerChart:
        return base.mark_line().encode(x, y, colour, dashes) + base.mark_point(filled=True, opacity=1).encode(
            x, y, colour
        )

    powers = [10.0**power for power in range(-2, 3)]
    seconds = panel(alt.Y("seconds:Q").scale(type="log", nice=False, padding=10).axis(values=powers, format="~g"))
    cost = panel(alt.Y("cost:Q", title="cost W2^2").scale(zero=False, nice=False, padding=10))
    figure = alt.hconcat(seconds, cost, background="white").configure_legend(
        orient="bottom", labelLimit=0, symbolOpacity=1
    )
    figure.save(str(path), format="png", scale_factor=1.5)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import scipy
    import sklearn as peer

    return {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "POT": ot.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "scikit-learn": peer.__version__,
    }


def main() -> None:
    """Run one part and write its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["table", "peers", "imagenet", "growth"], default="table")
    parser.add_argument("--features", type=Path, help="features.h5 of a teacher")
    parser.add_argument("--label", type=int, default=3, help="class of --features")
    parser.add_argument("--k", type=int, nargs="+", help="atoms")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--classes", type=int, default=1000, help="of --part imagenet")
    parser.add_argument("--threads", type=int, default=1, help="of torch; the peers use all cores")
    parser.add_argument("--plot", type=Path, help="of --part growth")
    parser.add_argument("--output", type=Path, help="JSON")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    warnings.filterwarnings("ignore")
    if given.part == "table":
        found: Any = table(given.features, given.label, given.repeats, given.k or [1, 10, 50, 100, 200])
    elif given.part == "peers":
        found = peers(given.repeats, given.k or [10, 100])
    elif given.part == "imagenet":
        found = imagenet(given.k or [10, 100], given.classes)
    else:
        found = growth(given.plot)
    if given.output is not None:
        given.output.write_text(json.dumps({"machine": machine(), given.part: found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
