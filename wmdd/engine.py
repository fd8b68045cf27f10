"""Where and how precisely networks run, so that the stages stay plain mathematics."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch

from wmdd.errors import WmddError

if TYPE_CHECKING:
    from wmdd.settings import EngineSettings


N = TypeVar("N", bound=torch.nn.Module)


@dataclass(frozen=True)
class Engine:
    """A device and the type that convolutions and products are computed in; parameters and pixels stay float32."""

    device: torch.device
    dtype: torch.dtype

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
        bf16 = settings.precision == "bf16" or (settings.precision == "auto" and has_fast_bf16(use_gpu))
        return cls(torch.device("cuda" if use_gpu else "cpu"), torch.bfloat16 if bf16 else torch.float32)

    def autocast(self) -> AbstractContextManager[None]:
        """Return the context for a forward pass."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    def place(self, network: N) -> N:
        """Move a network to the device, in the memory format that convolutions like best."""
        return network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def images(self, images: torch.Tensor) -> torch.Tensor:
        """Move images [B, 3, H, W] to the device in the same memory format."""
        return images.to(self.device, memory_format=torch.channels_last)

    def describe(self) -> dict[str, str]:
        """Return what a result's provenance says of the engine."""
        name = torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu"
        return {"device": name, "dtype": str(self.dtype).removeprefix("torch.")}


def has_fast_bf16(gpu: bool) -> bool:
    """Return whether the hardware multiplies bfloat16 faster than float32."""
    return torch.cuda.is_bf16_supported() if gpu else bool(torch.cpu._is_avx512_bf16_supported())


def plain(dtype: torch.dtype = torch.float32) -> Engine:
    """Return the reference: CPU, one type throughout."""
    return Engine(torch.device("cpu"), dtype)
