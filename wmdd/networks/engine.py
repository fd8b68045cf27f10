"""Where, how precisely and in which way networks run, so that the stages stay plain mathematics."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import torch
from torch import Tensor, nn

from wmdd.base.errors import WmddError, one_line
from wmdd.base.threads import in_order
from wmdd.networks.optimizers import OPTIMIZERS, Together

if TYPE_CHECKING:
    from wmdd.settings.engine import EngineSettings

N = TypeVar("N", bound=nn.Module)
T = TypeVar("T")
U = TypeVar("U")
Function = Callable[..., Tensor]
# images, and pixels of them, that a pass takes; measured in docs/understand/engine.md on CPU
AT_ONCE = {"cpu": (128, 2**21), "cuda": (2**14, 2**24)}
WORK = 2e16  # FLOP from which compiling (about a minute) is repaid by what it saves on a GPU
WARM = 3  # calls before a CUDA graph is captured: kernels are chosen, compiled and given their memory in the first ones


@dataclass(frozen=True)
class Engine:
    """A device, the type that convolutions and products are computed in, and how; parameters and pixels stay float32.

    `plain` is the reference that the other modes are tested against: eager, one image layout, textbook optimisers. `eager` and
    `compile` keep images channels-last, fuse what a step of an optimiser does, and on a GPU replay CUDA graphs; `compile` has
    the passes compiled by torch, `auto` where that is repaid, which it never is on CPU (docs/understand/engine.md).
    """

    device: torch.device
    dtype: torch.dtype
    mode: Literal["auto", "plain", "eager", "compile"] = "plain"
    images_at_once: int = 0

    @classmethod
    def of(cls, settings: "EngineSettings", threads: int = 1) -> "Engine":
        """Choose by the settings and the hardware.

        Raises:
            WmddError: a GPU is asked for and there is none.
        """
        if settings.device == "cuda" and not torch.cuda.is_available():
            raise WmddError("engine.device is cuda but no GPU is visible; run on a GPU node or set engine.device: auto")
        use_gpu = settings.device != "cpu" and torch.cuda.is_available()
        torch.set_num_threads(threads)
        if not use_gpu:  # the same switch as use_deterministic_algorithms, which takes a second to import a compiler
            torch.set_deterministic_debug_mode("error")
            # new memory is written before it is read; to fill all of it with NaN first costs a twentieth of an iteration
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        dtype = _dtype(settings, use_gpu)
        if dtype == torch.bfloat16 and not has_fast_bf16(use_gpu):
            _warn_of_slow_bf16()
        exact = settings.precision == "fp32" or (dtype == torch.float32 and settings.precision == "auto")
        rounding = "ieee" if exact else "tf32"  # of what stays float32 beside bfloat16, too
        torch.backends.cuda.matmul.fp32_precision = rounding
        torch.backends.cudnn.conv.fp32_precision = rounding  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = settings.mode != "plain"  # shapes are few, and each is used a thousand times
        return cls(torch.device("cuda" if use_gpu else "cpu"), dtype, settings.mode, settings.images_at_once)

    @property
    def fast(self) -> bool:
        """Whether this is not the reference."""
        return self.mode != "plain"

    @property
    def graphs(self) -> bool:
        """Whether steps are replayed as CUDA graphs."""
        return self.fast and self.device.type == "cuda"

    def autocast(self) -> AbstractContextManager[None]:
        """Return the context for a forward pass."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    def place(self, network: N) -> N:
        """Move a network to the device, in the memory format that its layers like best."""
        return network.to(self.device, memory_format=self._format(network))  # type: ignore[call-overload]

    def _format(self, network: nn.Module) -> torch.memory_format:
        # GroupNorm (a ConvNet's instance norm) has no fast way through channels-last images on CPU
        grouped = self.device.type == "cpu" and any(isinstance(m, nn.GroupNorm) for m in network.modules())
        return torch.channels_last if self.fast and not grouped else torch.contiguous_format

    def arranged(self, images: Tensor, network: nn.Module) -> Tensor:
        """Move images [B, 3, H, W] to the device, in the memory format of a network."""
        return images.to(self.device, memory_format=self._format(network))

    def at_once(self, resolution: int, bytes_per_image: int = 0) -> int:
        """Return how many images a pass takes where the result does not depend on it.

        On CPU as many as its caches hold; on a GPU as many as half of its free memory holds, if each needs `bytes_per_image`,
        and else what keeps it busy.
        """
        if self.images_at_once:
            return self.images_at_once
        if self.device.type == "cpu" or not bytes_per_image:
            images, pixels = AT_ONCE[self.device.type]
            return max(1, min(images, pixels // resolution**2))
        return max(1, torch.cuda.mem_get_info(self.device)[0] // 2 // bytes_per_image)

    def passes(self, function: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
        """Yield function(item) in order. On CPU every thread takes items of its own: faster than to share each among them."""
        if self.device.type != "cpu" or torch.get_num_threads() == 1:
            yield from map(function, items)
            return
        for _, done in in_order(function, items, ahead=2, initializer=lambda: torch.set_num_threads(1)):
            yield done.result()

    def optimizer(self, kind: str, parameters: list[Tensor], lr: float, **options: Any) -> torch.optim.Optimizer:
        """Return SGD, Adam, AdamW, or Muon with AdamW for vectors, over float32 tensors; see `set_rate`."""
        if kind == "muon" and any(p.ndim < 2 for p in parameters):
            decay = options["weight_decay"]
            parts = [self.optimizer("muon", [p for p in parameters if p.ndim >= 2], lr, **options)]
            parts += [self.optimizer("adamw", [p for p in parameters if p.ndim < 2], lr, weight_decay=decay)]
            return cast(torch.optim.Optimizer, Together(parts))
        optimizer: Any = OPTIMIZERS[kind]
        # a rate in memory, so that what was captured once follows the schedule
        rate = torch.tensor(lr, device=self.device) if self.graphs else lr
        if self.fast and kind != "muon":
            options |= {"fused": True} | ({"capturable": True} if self.graphs and kind != "sgd" else {})
        return cast(torch.optim.Optimizer, optimizer(parameters, lr=rate, **options))

    def compiled(self, function: Function, work: float) -> Function:
        """Return a function, compiled by torch where that is worth `work` FLOP; what it cannot compile runs as it is."""
        if self.mode == "compile" or (self.mode == "auto" and self.graphs and work >= WORK):
            return _Compiled(function)
        return function

    def captured(self, step: Function) -> Function:
        """Return a step that is recorded as a CUDA graph for each shape of its inputs and then replayed; on CPU itself.

        The step takes and returns tensors; its result lasts to the next call. It may change tensors that outlive it (the
        parameters, an optimiser's state), must not read them on the host, and must not keep what it makes.
        """
        return Captured(step, self.device) if self.graphs else step

    def describe(self) -> dict[str, str]:
        """Return what a result's provenance says of the engine."""
        name = torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu"
        return {"device": name, "dtype": str(self.dtype).removeprefix("torch."), "mode": self.mode}


def _dtype(settings: "EngineSettings", gpu: bool) -> torch.dtype:
    if settings.precision == "auto":
        return torch.bfloat16 if settings.mode != "plain" and has_fast_bf16(gpu) else torch.float32
    return torch.bfloat16 if settings.precision == "bf16" else torch.float32


def has_fast_bf16(gpu: bool) -> bool:
    """Return whether the hardware multiplies bfloat16 faster than float32."""
    if gpu:
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_avx512_bf16_supported())


@cache
def _warn_of_slow_bf16() -> None:
    """Say once a process that bfloat16 is emulated here."""
    print(
        "engine: precision bf16 is slow here, because the hardware has no instructions for it (on CPU: AVX512-BF16); "
        "set engine.precision: auto or fp32",
        file=sys.stderr,
        flush=True,
    )


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of the next steps, of captured ones too."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def resume(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Go on with the state of an optimiser; rates in memory stay where they are, for the graphs that read them."""
    rates = [group["lr"] for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def plain(dtype: torch.dtype = torch.float32) -> Engine:
    """Return the reference: CPU, one type throughout."""
    return Engine(torch.device("cpu"), dtype)


def flop(network: nn.Module, resolution: int) -> float:
    """Return the FLOP of a network's forward pass for one image (two a product and sum)."""
    from torch.utils.flop_counter import FlopCounterMode

    training = network.training
    device = next(network.parameters()).device
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(torch.zeros(1, 3, resolution, resolution, device=device))
    network.train(training)
    return float(counter.get_total_flops())


class _Compiled:
    """A function that is compiled at its first call, or, with a line on the log, runs as it is where that fails."""

    def __init__(self, function: Function) -> None:
        self._plain = function
        self._function: Function | None = None

    def __call__(self, *inputs: Any) -> Tensor:
        """Return the function's result."""
        if self._function is not None:
            return self._function(*inputs)
        try:
            compiled: Function = torch.compile(self._plain, dynamic=False)
            result = compiled(*inputs)
            self._function = compiled
            return result
        except Exception as error:  # compilers, drivers and the network's own code may each refuse
            print(f"engine: not compiled ({_reason(error)}); running without", file=sys.stderr, flush=True)
            self._function = self._plain
            return self._plain(*inputs)


class Captured:
    """A step that is replayed as a CUDA graph, one for each shape of its inputs (see `Engine.captured`)."""

    def __init__(self, step: Function, device: torch.device) -> None:
        self._step, self._device = step, device
        self._calls: dict[tuple[torch.Size, ...], int] = {}
        self._graphs: dict[tuple[torch.Size, ...], tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]] = {}
        self._refused = False

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Take the step."""
        shapes = tuple(x.shape for x in inputs)
        calls = self._calls[shapes] = self._calls.get(shapes, 0) + 1
        if self._refused or (calls == WARM + 1 and not self._capture(shapes, inputs)):
            return self._step(*inputs)
        if calls <= WARM:
            return self._warm(inputs)
        graph, places, result = self._graphs[shapes]
        for place, x in zip(places, inputs, strict=True):
            place.copy_(x, non_blocking=True)
        graph.replay()
        return result

    def _warm(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Take the step as it is, on a stream of its own, as CUDA asks of what is to be captured."""
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            result = self._step(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        return result

    def _capture(self, shapes: tuple[torch.Size, ...], inputs: tuple[Tensor, ...]) -> bool:
        """Record the step, which is not taken by that."""
        places = [x.detach().clone(memory_format=torch.preserve_format) for x in inputs]
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                result = self._step(*places)
        except RuntimeError as error:
            print(f"engine: no CUDA graph ({_reason(error)}); running without", file=sys.stderr, flush=True)
            self._refused = True
            return False
        self._graphs[shapes] = graph, places, result
        return True


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)[:200]}"
