"""Several processes compute what one does, up to rounding."""

import os
import re
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch import multiprocessing as mp

from tests.conftest import DyingKeeper
from wmdd.base.errors import WmddError
from wmdd.base.rng import generator
from wmdd.datasets.loader import Resident
from wmdd.networks.context import Forgetful, quiet
from wmdd.networks.distributed import ALONE, SharedBatchNorm2d, World, parts_of, shared_statistics, unsent, world
from wmdd.networks.engine import plain
from wmdd.networks.normalisation import Normalisation
from wmdd.networks.training import evaluate
from wmdd.settings.teacher import TeacherSettings
from wmdd.stages import teacher

NORMALISATION = Normalisation([0.5, 0.5, 0.5], [0.25, 0.25, 0.25])
COUNT = 47  # images in three steps of 16, 16 and 15, the last of which two processes share unevenly
SETTINGS = TeacherSettings(
    architecture="convnet3", width=8, epochs=2, batch_size=16, lr=0.02, evaluate_every=1, ema=0.5, accumulate=2
)


def normal(*shape: int, key: str = "", dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=generator("distributed test", key, *shape), dtype=dtype)


def coloured(key: str) -> tuple[Tensor, Tensor]:
    """Noisy pictures of three classes that differ in colour, sorted by class."""
    labels = (torch.arange(COUNT) % 3).sort().values
    noise = torch.randint(0, 120, (COUNT, 3, 16, 16), generator=generator("coloured", key))
    return (noise + 110 * F.one_hot(labels, 3)[..., None, None]).to(torch.uint8), labels


def taught(context, settings: TeacherSettings = SETTINGS) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    network, history = teacher.train(
        Resident(*coloured("train")), Resident(*coloured("val")), 3, NORMALISATION, settings, 0, context
    )
    assert not any(isinstance(layer, SharedBatchNorm2d) for layer in network.modules())
    return network.state_dict(), history


def close(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float) -> None:
    """Compare two networks by the distance of each tensor relative to its length."""
    assert a.keys() == b.keys()
    for name, value in a.items():
        distance = (value.double() - b[name].double()).norm() / value.double().norm().clamp(min=1e-3)
        assert float(distance) < tolerance, name


# ---- what two processes find, started once for all of these tests


def normalised(among: World, x: Tensor) -> dict[str, Tensor]:
    """Two steps of BatchNorm on this process's share of x [S, B, C, H, W], and its gradients under a fixed loss."""
    layer = nn.Sequential(nn.BatchNorm2d(x.shape[2])).double()
    with torch.no_grad():
        layer[0].weight.copy_(normal(x.shape[2], key="weight"))
        layer[0].bias.copy_(normal(x.shape[2], key="bias"))
    mine = torch.stack([among.share(step) for step in x]).requires_grad_()
    direction = torch.stack([among.share(step) for step in normal(*x.shape, key="direction")])
    with shared_statistics(layer, among):
        y = torch.stack([layer(step) for step in mine])
        (y * direction).sum().backward()
    state = {name: value.double() for name, value in layer.state_dict().items()}
    return state | {"y": y.detach(), "x": mine.grad, "dw": layer[0].weight.grad, "db": layer[0].bias.grad}


def differentiated(among: World, micro_batches: int) -> Tensor:
    """The gradient of a mean loss over 13 numbers, which no number of processes divides."""
    network = nn.Linear(5, 1, bias=False).double()
    nn.init.zeros_(network.weight)
    x, parallel = normal(13, 5), among.parallel(network)
    for positions, share, last in parts_of(torch.arange(13), micro_batches, among):
        with unsent(parallel) if not last else torch.enable_grad():
            loss = (parallel(x[positions]) - x[positions].square()).square().mean() * share
            loss.backward()
    return network.weight.grad


class Table(nn.Module):
    """Says of each picture the class that is written in its first pixel."""

    def forward(self, x: Tensor) -> Tensor:
        return F.one_hot((x[:, 0, 0, 0] * 255).round().long(), 3).float()


def scored(among: World, count: int) -> dict[str, float]:
    pixels = (torch.arange(count) % 3).to(torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2)
    return evaluate(
        Table(), Resident(pixels, torch.arange(count) % 2), Normalisation([0] * 3, [1] * 3), plain(), 2, among
    )


class Kept(Forgetful):
    """Gives the state that another process has kept."""

    def __init__(self, state) -> None:
        self.state = state

    def load(self):
        return self.state


def disagreement(among: World) -> str:
    try:
        among.agree(among.rank, "a number")
    except WmddError as error:
        return str(error)
    return ""


def averaged(among: World) -> Tensor:
    layer = nn.BatchNorm2d(2)
    layer.running_mean += torch.tensor([1.0, 2.0]) * (1 + 2 * among.rank)
    among.average_buffers(layer)
    return layer.running_mean


def work(rank: int, port: int, folder: Path, state: dict) -> None:
    """Run as one of two processes: everything that the tests below look at."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    with world("cpu") as among:
        seen = {
            "share": among.share(torch.arange(7)),
            "sum": among.sum(torch.tensor([1.0, rank])),
            "mean": among.mean(torch.tensor([1.0, rank])),
            "agree": disagreement(among),
            "averaged": averaged(among),
            "normalised": normalised(among, normal(2, 7, 4, 3, 2)),
            "one image each": normalised(among, normal(2, 2, 4, 3, 2)),
            "gradients": [differentiated(among, micro_batches) for micro_batches in (1, 2, 5)],
            "scores": [scored(among, count) for count in (1, 7, 12)],
            "resumed": taught(replace(quiet(plain()), keeper=Kept(state), world=among)),
            "own statistics": taught(
                replace(quiet(plain()), world=among), SETTINGS.model_copy(update={"sync_batchnorm": False})
            ),
        }
    torch.save(seen, folder / f"rank{rank}")


@pytest.fixture(scope="module")
def pair(tmp_path_factory, half) -> list[dict]:
    """What each of two processes has found."""
    folder = tmp_path_factory.mktemp("pair")
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    mp.start_processes(work, (port, folder, half), 2, start_method="spawn" if torch.cuda.is_available() else "fork")
    return [torch.load(folder / f"rank{rank}", weights_only=True) for rank in (0, 1)]


@pytest.fixture(scope="module")
def half():
    """The state of one process after the first of two epochs."""
    keeper = DyingKeeper.after(lambda keeper: taught(replace(quiet(plain()), keeper=keeper)), 4, 5)
    return keeper.load()  # of three steps and an end an epoch


def test_shares_sums_and_means(pair):
    assert [found["share"].tolist() for found in pair] == [[0, 1, 2, 3], [4, 5, 6]]
    assert [found["sum"].tolist() for found in pair] == [[2, 1], [2, 1]]
    assert [found["mean"].tolist() for found in pair] == [[1, 0.5], [1, 0.5]]
    assert [found["averaged"].tolist() for found in pair] == [[2, 4], [2, 4]]


def test_processes_that_disagree_stop(pair):
    for found in pair:
        assert re.search(r"disagree on a number \(\[0, 1\]\)", found["agree"])


def test_batchnorm_over_two_processes_is_batchnorm_of_the_whole_batch(pair):
    """Outputs, gradients, and running statistics after two steps, of shares of 4 and 3 images."""
    for case, count in ("normalised", 7), ("one image each", 2):
        whole = normalised(ALONE, normal(2, count, 4, 3, 2))
        first, second = (found[case] for found in pair)
        for name in "y", "x":
            torch.testing.assert_close(torch.cat([first[name], second[name]], 1), whole[name], rtol=1e-12, atol=1e-12)
        for name in "dw", "db":  # of one loss that is a sum over both
            torch.testing.assert_close(first[name] + second[name], whole[name], rtol=1e-12, atol=1e-12)
        for name in whole.keys() - {"x", "y", "dw", "db"}:
            torch.testing.assert_close(first[name], whole[name], rtol=1e-12, atol=1e-12)
            assert torch.equal(first[name], second[name])


def test_gradients_are_of_the_mean_loss_however_the_images_are_divided(pair):
    expected = differentiated(ALONE, 1)
    for found in pair:
        for gradient in found["gradients"]:
            torch.testing.assert_close(gradient, expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(differentiated(ALONE, 4), expected, rtol=1e-13, atol=1e-13)


def test_the_accuracy_is_that_of_all_pictures(pair):
    expected = [scored(ALONE, count) for count in (1, 7, 12)]
    assert [found["scores"] for found in pair] == [expected, expected]


def test_a_checkpoint_of_one_process_is_continued_by_two(pair):
    whole, history = taught(quiet(plain()))
    for found in pair:
        state, continued = found["resumed"]
        close(whole, state, 1e-5)
        assert continued[0] == history[0]
        assert continued[1] == pytest.approx(history[1], rel=1e-5)
    close(pair[0]["resumed"][0], pair[1]["resumed"][0], 1e-30)


def test_without_synchronisation_the_processes_normalise_apart_but_end_equal(pair):
    (first, history), (second, other) = (found["own statistics"] for found in pair)
    close(first, second, 1e-30)
    assert history == other
    with pytest.raises(AssertionError):
        close(first, taught(quiet(plain()))[0], 1e-3)


# ---- one process


@pytest.mark.parametrize(("size", "micro_batches"), [(1, 1), (1, 3), (2, 1), (2, 3), (3, 2)])
def test_parts_hold_each_image_once_and_their_shares_weigh_them_equally(size, micro_batches):
    step = torch.randperm(17, generator=generator("parts"))
    parts = [parts_of(step, micro_batches, World(rank, size)) for rank in range(size)]
    assert [part.last for part in parts[0]] == [False] * (micro_batches - 1) + [True]
    seen = torch.cat([part.positions for of in parts for part in of])
    assert sorted(seen.tolist()) == list(range(17))
    weights = torch.cat(
        [torch.full((len(p.positions),), p.share / len(p.positions) / size) for of in parts for p in of]
    )
    torch.testing.assert_close(weights, torch.full((17,), 1 / 17))


def test_a_step_with_too_few_images_is_refused():
    with pytest.raises(WmddError, match=r"5 images.*3 micro-batches on 2 processes; raise batch_size"):
        parts_of(torch.arange(5), 3, World(0, 2))
    with pytest.raises(WmddError, match="accumulate"):
        taught(quiet(plain()), SETTINGS.model_copy(update={"accumulate": 17}))


def test_other_layers_with_statistics_of_the_batch_are_refused_by_name():
    network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    with (
        pytest.raises(WmddError, match=r"^1 is a BatchNorm1d.*sync_batchnorm: false"),
        shared_statistics(network, World(0, 2)),
    ):
        pass
    with shared_statistics(network, ALONE):
        assert type(network[1]) is nn.BatchNorm1d
