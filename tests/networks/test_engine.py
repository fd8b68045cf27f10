"""The engine: what it chooses, that its optimisers are torch's, and how often it takes a step that it compiles or captures."""

from contextlib import contextmanager, nullcontext
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from wmdd.base.errors import WmddError
from wmdd.base.rng import generator
from wmdd.networks import engine as module
from wmdd.networks.engine import Captured, Engine, flop, plain, resume, set_rate
from wmdd.networks.models import build
from wmdd.settings.engine import EngineSettings
from wmdd.settings.network import NetworkSettings
from wmdd.settings.recover import RecoverSettings

FAST = Engine(torch.device("cpu"), torch.float32, "eager")
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.fixture
def without_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


# ---- what it chooses


@pytest.mark.parametrize(
    ("precision", "mode", "has_bf16", "expected"),
    [
        ("auto", "auto", True, torch.bfloat16),
        ("auto", "auto", False, torch.float32),
        ("auto", "plain", True, torch.float32),
        ("bf16", "plain", False, torch.bfloat16),
        ("fp32", "auto", True, torch.float32),
        ("tf32", "compile", True, torch.float32),
    ],
)
def test_the_type_that_is_computed_in(without_gpu, monkeypatch, precision, mode, has_bf16, expected):
    monkeypatch.setattr(module, "has_fast_bf16", lambda gpu: has_bf16)
    found = Engine.of(EngineSettings(precision=precision, mode=mode))
    assert (found.dtype, found.mode, found.device.type) == (expected, mode, "cpu")
    rounded = "ieee" if precision == "fp32" or (expected == torch.float32 and precision == "auto") else "tf32"
    assert torch.backends.cuda.matmul.fp32_precision == torch.backends.cudnn.conv.fp32_precision == rounded


def test_bf16_that_is_emulated_is_told_once_with_the_remedy(without_gpu, monkeypatch, capsys):
    module._warn_of_slow_bf16.cache_clear()
    for has_bf16, precision in ((True, "bf16"), (False, "auto"), (False, "fp32")):
        monkeypatch.setattr(module, "has_fast_bf16", lambda gpu, has=has_bf16: has)
        Engine.of(EngineSettings(precision=precision))
        assert capsys.readouterr().err == ""
    for _ in range(2):
        Engine.of(EngineSettings(precision="bf16"))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("engine: precision bf16 is slow here")
    assert line.endswith("set engine.precision: auto or fp32")


def test_a_gpu_that_is_not_there_is_missed(without_gpu):
    with pytest.raises(WmddError, match="no GPU is visible; run on a GPU node or set"):
        Engine.of(EngineSettings(device="cuda"))
    assert Engine.of(EngineSettings(device="auto")).device.type == "cpu"


def test_only_the_fast_engine_keeps_images_channels_last():
    network = build(NetworkSettings(width=4), 3, 16, generator("engine"))
    grouped = build(NetworkSettings(architecture="convnet3", width=4, norm="instance"), 3, 16, generator("engine"))
    images = torch.randn(2, 3, 16, 16)
    for engine, of, last in ((FAST, network, True), (FAST, grouped, False), (plain(), network, False)):
        engine.place(of)
        weight = next(p for p in of.parameters() if p.dim() == 4)
        for each in weight, engine.arranged(images, of):
            assert each.is_contiguous(memory_format=torch.channels_last) == last
        assert torch.equal(engine.arranged(images, of), images)


@pytest.mark.parametrize(("side", "expected"), [(16, 128), (128, 128), (224, 41), (4096, 1)])
def test_how_many_images_a_pass_takes(side, expected):
    assert FAST.at_once(side) == expected
    assert replace(FAST, images_at_once=7).at_once(side) == 7


def test_passes_come_in_order_from_any_number_of_threads():
    items = [torch.tensor(float(i)) for i in range(20)]
    try:
        torch.set_num_threads(2)
        assert [int(x) for x in FAST.passes(lambda x: 2 * x, items)] == list(range(0, 40, 2))
    finally:
        torch.set_num_threads(1)
    assert [int(x) for x in FAST.passes(lambda x: 2 * x, items)] == list(range(0, 40, 2))


def test_flop_of_a_network_that_is_left_as_it_is():
    network = build(NetworkSettings(architecture="convnet3", width=2), 5, 8, generator("engine")).train()
    assert flop(network, 8) == 2 * (9 * 64 * 3 * 2 + 9 * 16 * 2 * 2 + 9 * 4 * 2 * 2 + 2 * 5)
    assert network.training
    assert all(p.grad is None for p in network.parameters())


# ---- optimisers


@pytest.mark.parametrize(
    ("kind", "options"),
    [("sgd", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}), ("adam", {"betas": (0.5, 0.9)}), ("adamw", {})],
)
def test_fused_optimisers_take_the_steps_of_the_reference(kind, options):
    def steps(engine: Engine, stop: int = 0) -> tuple[Tensor, dict]:
        x = nn.Parameter(torch.linspace(-1, 1, 50))
        optimizer = engine.optimizer(kind, [x], 0.1, **options)
        for step in range(6):
            if step == stop and stop:
                state = optimizer.state_dict()
                optimizer = engine.optimizer(kind, [x], 0.1, **options)
                resume(optimizer, state)
            set_rate(optimizer, 0.1 / (step + 1))
            optimizer.zero_grad(set_to_none=True)
            (x**4 + x).sum().backward()
            optimizer.step()
        return x.detach(), optimizer.defaults

    (expected, _), (found, defaults) = steps(plain()), steps(FAST)
    assert defaults["fused"]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(steps(FAST, 3)[0], found)


def test_a_rate_in_memory_stays_where_it_is():
    x = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([x], lr=torch.tensor(0.5), fused=True)
    place = optimizer.param_groups[0]["lr"]
    set_rate(optimizer, 0.25)
    resume(optimizer, optimizer.state_dict())
    assert optimizer.param_groups[0]["lr"] is place
    assert float(place) == 0.25


# ---- compiling and capturing


def test_what_cannot_be_compiled_runs_as_it_is(monkeypatch, capsys):
    def refuse(*_, **__):
        raise RuntimeError("no\ncompiler")

    monkeypatch.setattr(torch, "compile", refuse)
    function = replace(FAST, mode="compile").compiled(lambda x: x + 1, 0)
    assert [float(function(torch.tensor(i))) for i in range(3)] == [1, 2, 3]
    assert capsys.readouterr().err.count("engine: not compiled (RuntimeError: no compiler); running without") == 1


@pytest.mark.parametrize(
    ("mode", "work", "is_compiled"), [("auto", 1e30, False), ("eager", 1e30, False), ("compile", 0, True)]
)
def test_what_is_compiled_on_cpu(mode, work, is_compiled):
    step = torch.neg
    assert (replace(FAST, mode=mode).compiled(step, work) is not step) == is_compiled
    assert replace(FAST, mode=mode).captured(step) is step


class Streams:
    """Stands for torch.cuda where there is no GPU: a graph replays what was recorded, which does nothing by itself."""

    def __init__(self, monkeypatch, refuses: bool = False) -> None:
        self.recording, self.recorded, self.refuses = False, [], refuses
        for name in "Stream", "current_stream":
            monkeypatch.setattr(torch.cuda, name, lambda *_: self)
        monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: self)
        monkeypatch.setattr(torch.cuda, "graph", self.graph)

    def wait_stream(self, _) -> None:
        pass

    @contextmanager
    def graph(self, _):
        if self.refuses:
            raise RuntimeError("operation not permitted")
        self.recording = True
        yield
        self.recording = False

    def replay(self) -> None:
        for act in self.recorded:
            act()


@pytest.mark.parametrize("refuses", [False, True])
def test_a_captured_step_is_taken_once_a_call(monkeypatch, capsys, refuses):
    cuda, state, result = Streams(monkeypatch, refuses), torch.zeros(()), torch.zeros(())

    def step(x: Tensor) -> Tensor:
        act = lambda: (state.add_(x.sum()), result.copy_(x.sum()))  # noqa: E731
        if cuda.recording:
            cuda.recorded.append(act)
        else:
            act()
        return result

    captured = Captured(step, torch.device("cpu"))
    inputs = [torch.full((2,), float(i)) for i in range(10)]
    assert [float(captured(x)) for x in inputs] == [2.0 * i for i in range(10)]
    assert float(state) == 2 * sum(range(10))
    assert len(cuda.recorded) == (0 if refuses else 1)
    assert capsys.readouterr().err.count("engine: no CUDA graph (RuntimeError: operation not permitted)") == refuses


# ---- on a GPU


@CUDA
@pytest.mark.parametrize("mode", ["eager", "compile"])
def test_images_of_a_gpu_are_those_of_the_reference(tiny_teacher, mode):
    from tests.stages.test_recover import MILD, history_of

    real = torch.randn(6, 3, 16, 16, generator=generator("real"))
    settings = RecoverSettings(**MILD, iterations=20)
    expected, images = history_of(tiny_teacher, real, settings)
    on_gpu = Engine.of(EngineSettings(device="cuda", precision="fp32", mode=mode))
    found, others = history_of(tiny_teacher, real, settings, on_gpu)
    for a, b in zip(expected, found, strict=True):
        assert b == pytest.approx(a, rel=1e-3)
    assert float((images.int() - others.int()).abs().float().mean()) < 1
