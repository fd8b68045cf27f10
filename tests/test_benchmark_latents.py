"""The benchmark on latents: its points have the structure that it says, and it measures every solver."""

import json

import pytest
import torch
from sklearn.cluster import MiniBatchKMeans

from benchmarks import latents
from wmdd.transport import quantize


def test_latents_have_modes_few_directions_and_noise():
    points = latents.latents(600, 16)
    assert torch.equal(points, latents.latents(600, 16))
    x = points.double() - points.double().mean(0)
    strong = torch.linalg.svdvals(x)[: latents.MODES].square().sum() / x.square().sum()
    assert 0.3 < strong < 0.6  # noise alone: 0.08
    gain = 1 - quantize(points, latents.MODES).cost / float(x.square().sum(1).mean())
    assert gain > 0.15  # noise alone: 0.04


def test_one_pass_is_what_the_released_code_of_d4m_calls():
    points = latents.latents(130, 8)
    peer = MiniBatchKMeans(4, batch_size=40, random_state=5, n_init="auto")
    order = torch.randperm(130, generator=latents.draws(5))
    for a in (0, 40, 80, 120):
        peer.partial_fit(points[order[a : a + 40]].float().numpy())
    assert torch.equal(latents.one_pass(points, 4, 5), torch.from_numpy(peer.cluster_centers_))


def test_costs_of_atoms():
    points = torch.tensor([[0.0], [1.0], [1.0], [1.0]]).half()
    free, uniform = latents.costs(points, torch.tensor([[0.0], [1.0]]))
    assert free == pytest.approx(0)
    assert uniform == pytest.approx(0.25)


def test_all_solvers_are_measured_and_compared(tmp_path):
    latents.main(["--quick", "--dtypes", "float16", "--output", str(tmp_path / "x.json")])
    content = json.loads((tmp_path / "x.json").read_text())
    assert [row["solver"] for row in content["rows"]] == list(latents.SOLVERS)
    assert content["options"]["points"] == 200
    assert content["machine"]["threads"] == 1
    for row in content["rows"]:
        assert (row["n"], row["k"], row["points"]) == (1, 3, "float16")
        assert row["uniform W2^2"][0] >= 0.999 * row["W2^2"][0] > 0
    cost = {row["solver"]: row["W2^2"][0] for row in content["rows"]}
    peers = {solver: value for solver, value in cost.items() if not solver.startswith("wmdd")}
    assert cost["wmdd quantize"] < min(peers.values())
    assert min(cost, key=cost.get) in ("wmdd quantize", "wmdd stream"), "which starts from the atoms of quantize"


def test_ratios_are_within_a_repeat():
    def row(solver, seed):
        seconds = (1 + seed) * (3.0 if solver == latents.PEERS["one pass"] else 1.0)
        same = {"points": "float16", "k": 1, "MB": 10.0, "W2^2": 1.0, "uniform W2^2": 1.0}
        return same | {"solver": solver, "seed": seed, "seconds": seconds, "cpu": seconds}

    summary = latents.summary([row(solver, seed) for seed in range(3) for solver in latents.SOLVERS])
    (stream,) = [one for one in summary if one["solver"] == "wmdd stream"]
    assert [stream[f"times faster than {peer}"] for peer in ("one pass", "MiniBatchKMeans")] == [3, 1]
    assert stream["cpu"] == [2, 1.5, 2.5]


def test_memory_is_measured_apart(tmp_path):
    import h5py

    path = tmp_path / "latents.h5"
    with h5py.File(path, "w") as file:
        file["latents"] = latents.latents(600, 48).numpy()
    found = latents.run_apart(path, "float16", "scikit-learn KMeans", 3, 0)
    size = 600 * 4 * 48**2 * 4 / 2**20
    assert size < found["MB"] < 5 * size  # a copy as float32, and one that is centred
    assert found["cpu"] > 0
    assert found["W2^2"] > 0
