r"""The quantizers on latents of 16,384 dimensions against scikit-learn's: seconds, peak memory and cost W2^2, in one run.

One class as D4M meets it (Stable Diffusion 1.5 at 512 pixels): N = 1,300 points of 4 x 64 x 64 numbers. They are made up, with
a variance of about 1 a number: 20 modes of unequal shares (0.15 of the variance), around each 16 directions of its own (0.35),
both smooth (8 x 8 pixels, enlarged), and white noise (0.5); seeded, and kept as float16 in HDF5 as the pipeline keeps latents.

Every repeat runs every solver in turn with a seed of its own, each in a new process of one thread that has read the points,
imported what it needs and solved a small problem before. Reported are seconds on the wall and of the processor; by how much the
resident memory rose above what it was before the call; and the cost of the atoms, evaluated for all by the same function in
float64, with the masses of their cells and with uniform weights. Figures are medians (and quartiles), ratios medians of the
ratios within a repeat, those of time of processor seconds.

Points are handed over as float16, and again as float32. scikit-learn would turn float16 into float64; it is spared that: its
points are turned into float32 within the call, by the batch where it takes batches.

    python -m benchmarks.latents [--repeats 5] [--output benchmarks/results/latents-cpu.json]
    python -m benchmarks.latents --quick      # seconds, small points, all in one process: only to see that it runs
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import h5py
import torch
from sklearn.cluster import KMeans, MiniBatchKMeans
from torch import Tensor

from benchmarks.rows import Row, ratios, report, spread
from benchmarks.transport import machine
from wmdd.transport import quantize, stream, transport_cost
from wmdd.transport.measure import squared_distances

Solver = Callable[[Tensor, int, int], Tensor]  # points, atoms, seed -> atoms
PEERS = {"one pass": "scikit-learn, one pass", "MiniBatchKMeans": "scikit-learn MiniBatchKMeans"}  # of the ratios
MODES, DIRECTIONS, COARSE = 20, 16, 8
SHARES = (0.15, 0.35, 0.5)  # of the variance: between modes, along directions, noise
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def latents(n: int, side: int, seed: int = 0) -> Tensor:
    """Return made-up latents [N, 4 side^2], float16."""
    g = torch.Generator().manual_seed(seed)

    def smooth(*shape: int) -> Tensor:
        """Return pictures of unit variance, [..., 4 side^2]."""
        coarse = torch.randn(*shape, 4, COARSE, COARSE, generator=g).flatten(0, -4)
        fine = torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear", align_corners=False)
        return (fine / fine.std()).view(*shape, -1)

    between, along, noise = (share**0.5 for share in SHARES)
    mode = torch.multinomial(torch.rand(MODES, generator=g) + 0.2, n, replacement=True, generator=g)
    size = 1 / torch.arange(1.0, DIRECTIONS + 1)
    place = torch.randn(n, DIRECTIONS, generator=g) * (along * size / size.norm())
    centres, directions = between * smooth(MODES), smooth(MODES, DIRECTIONS)
    points = centres[mode] + noise * torch.randn(n, 4 * side**2, generator=g)
    for m in range(MODES):
        points[mode == m] += place[mode == m] @ directions[m]
    return points.half()


# ---- the solvers


def draws(seed: int) -> torch.Generator:
    """Return the random numbers of a seed."""
    return torch.Generator().manual_seed(seed)


def one_pass(points: Tensor, k: int, seed: int) -> Tensor:
    """The solver `d4m` without its last look at the costs: scikit-learn's `partial_fit` on each 10 K points, shuffled."""
    peer = MiniBatchKMeans(k, batch_size=10 * k, random_state=seed, n_init="auto")
    for rows in torch.randperm(len(points), generator=draws(seed)).split(10 * k):
        peer.partial_fit(points[rows].float().numpy())
    return torch.from_numpy(peer.cluster_centers_)


def fitted(kind: type, **options: int) -> Solver:
    """Return a solver of scikit-learn with its defaults."""

    def solve(points: Tensor, k: int, seed: int) -> Tensor:
        return torch.from_numpy(kind(k, random_state=seed, **options).fit(points.float().numpy()).cluster_centers_)

    return solve


SOLVERS: dict[str, Solver] = {
    "wmdd quantize": lambda points, k, seed: quantize(points, k, generator=draws(seed)).atoms,
    "wmdd quantize, uniform": lambda points, k, seed: (
        quantize(points, k, weights="uniform", generator=draws(seed)).atoms
    ),
    "wmdd stream": lambda points, k, seed: stream(points, k, generator=draws(seed)).atoms,
    PEERS["one pass"]: one_pass,
    PEERS["MiniBatchKMeans"]: fitted(MiniBatchKMeans),
    "scikit-learn KMeans": fitted(KMeans),
}


# ---- one run


def resident(field: str) -> float:
    """Return a field of the process's memory, such as VmRSS, in MB; where there are none, the highest there was."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def forget_peak() -> None:
    """Have VmHWM, the highest resident memory, begin anew."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        print("the peak of memory cannot be set back; figures of memory are too low", file=sys.stderr)


def costs(points: Tensor, atoms: Tensor) -> tuple[float, float]:
    """Return W2^2 in float64, with the masses of the atoms' cells and with uniform weights."""
    b = atoms.double()
    near = [squared_distances(b, part.double()).amin(0) for part in points.split(64)]
    return float(torch.cat(near).mean()), transport_cost(b, torch.ones(len(b)), points)


def run(path: Path, dtype: str, solver: str, k: int, seed: int) -> Row:
    """Solve once and measure it."""
    torch.set_num_threads(1)
    solve = SOLVERS[solver]
    with h5py.File(path, locking=False) as file:
        points = torch.from_numpy(file["latents"][()]).to(getattr(torch, dtype))
    solve(torch.randn(300, 8, generator=draws(0)).to(points.dtype), 3, 0)  # imports, and wakes libraries up
    forget_peak()
    before = resident("VmRSS")
    wall, processor = time.perf_counter(), time.process_time()
    atoms = solve(points, k, seed)
    spent = {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - processor}
    peak = resident("VmHWM") - before
    free, uniform = costs(points, atoms)
    return {
        "points": dtype,
        "k": k,
        "solver": solver,
        "seed": seed,
        **spent,
        "MB": peak,
        "W2^2": free,
        "uniform W2^2": uniform,
    }


def run_apart(path: Path, *what: object) -> Row:
    """Return what `run` returns in a new process of one thread."""
    line = [sys.executable, "-m", "benchmarks.latents", "--run", json.dumps([str(path), *what])]
    env = os.environ | dict.fromkeys(THREADS, "1")
    made = subprocess.run(line, check=True, capture_output=True, text=True, env=env, cwd=Path(__file__).parents[1])
    return json.loads(made.stdout.splitlines()[-1])


# ---- all of them


def summary(runs: Sequence[Row]) -> list[Row]:
    """Return medians and quartiles of each solver, and by how much it is faster and smaller than the peers."""
    rows = []
    for points, k in dict.fromkeys((one["points"], one["k"]) for one in runs):
        mine = [one for one in runs if (one["points"], one["k"]) == (points, k)]
        by = {solver: [one for one in mine if one["solver"] == solver] for solver in SOLVERS}
        for solver, same in by.items():
            values = {
                name: spread([one[name] for one in same]) for name in ("W2^2", "uniform W2^2", "seconds", "cpu", "MB")
            }
            times = {
                f"times {what} {name}": ratios([one[key] for one in by[peer]], [max(one[key], 1e-3) for one in same])[0]
                for name, peer in PEERS.items()
                for key, what in (("cpu", "faster than"), ("MB", "smaller than"))
            }
            rows.append({"points": points, "k": k, "solver": solver, "n": len(same)} | values | times)
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all solvers in turn, print medians and keep all figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=1300)
    parser.add_argument("--side", type=int, default=64, help="pixels of a latent, which has 4 channels")
    parser.add_argument("--k", type=int, nargs="+", default=[10, 50])
    parser.add_argument("--dtypes", nargs="+", default=["float16", "float32"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="small, once, and in this process")
    parser.add_argument("--output", type=Path, help="JSON")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    if given.run is not None:
        path, *what = json.loads(given.run)
        print(json.dumps(run(Path(path), *what)))
        return
    if given.quick:
        given.points, given.side, given.k, given.repeats = 200, 16, [3], 1
    runs = []
    with TemporaryDirectory() as folder:
        path = Path(folder) / "latents.h5"
        with h5py.File(path, "w") as file:
            file["latents"] = latents(given.points, given.side).numpy()
        for dtype in given.dtypes:
            for k in given.k:
                for seed in range(given.repeats):
                    for solver in SOLVERS:
                        runs.append((run if given.quick else run_apart)(path, dtype, solver, k, seed))
                        print(json.dumps(runs[-1]), flush=True)
    rows = summary(runs)
    report(rows)
    if given.output is not None:
        options = {name: value for name, value in vars(given).items() if name not in ("run", "output")}
        result = {"machine": machine() | {"threads": 1}, "options": options, "rows": rows, "runs": runs}
        given.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
