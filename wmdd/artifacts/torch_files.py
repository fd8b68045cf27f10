"""Reading a file that `torch.save` wrote elsewhere: its values, and no code that it may hold.

torch's unpickler of weights rebuilds tensors and plain containers. Beside these only classes that hold values are let in: the
options of a training script, and numbers of NumPy, which scripts save as the accuracies beside their tensors. A compressed
file, or a tensor of another shape than its storage, can claim any size; both are refused.
"""

import argparse
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wmdd.artifacts.atomic_files import check_file
from wmdd.artifacts.hdf5 import MOST, SMALL
from wmdd.base.errors import WmddError, first_sentence

_TYPES = (np.float16, np.float32, np.float64, np.int32, np.int64, np.bool_)
# The first two names are those of NumPy 1, which most published files were written with, and of NumPy 2.
_VALUES: list[Any] = [
    argparse.Namespace,
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),  # type: ignore[attr-defined]
    (np._core.multiarray.scalar, "numpy._core.multiarray.scalar"),  # type: ignore[attr-defined]
    np.dtype,
    *(type(np.dtype(number)) for number in _TYPES),
]


def unpickled(path: Path, thing: str, remedy: str, alone: str) -> Any:
    """Return the content of a file of torch, on the CPU.

    Args:
        path: of the file.
        thing: that it should be, for messages: "checkpoint".
        remedy: what to do where it is something else.
        alone: what to save instead of a file that needs code.

    Raises:
        WmddError: it is missing, something else, cut short, needs code, or claims more than it holds.
    """
    check_file(path, remedy)
    _check_members(path)
    try:
        with torch.serialization.safe_globals(_VALUES):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        needed = re.search(r"[Uu]nsupported (?:global|class|GLOBAL)\S*:? ?(?:GLOBAL )?([\w.]+)", str(error))
        if needed is None:
            raise WmddError(f"{path} is no {thing} of torch; {remedy}") from None
        raise WmddError(
            f"{path} holds more than tensors ({needed[1]}) and is not unpickled, as that can run any code; where you trust "
            f"it, save {alone}"
        ) from None
    except Exception as error:  # of the unpickler, which trips in many ways over what it does not expect
        raise WmddError(f"{path} is not a whole {thing} of torch ({first_sentence(error)}); get it again") from None
    for tensor in _tensors(content):
        _check_tensor(path, tensor)
    return content


def _check_members(path: Path) -> None:
    """Refuse a zip whose members claim more than deflate can make of the file; torch itself does not compress."""
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            claimed = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError):
        return  # torch says what is wrong with it
    if claimed > max(SMALL, MOST * path.stat().st_size):
        size = path.stat().st_size
        raise WmddError(f"{path} claims {claimed:,} bytes, of which it has {size:,}, and is not read; get it again")


def _tensors(content: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested containers, which may hold themselves."""
    waiting, seen = [content], set[int]()
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict | list | tuple | set) and id(value) not in seen:
            seen.add(id(value))
            waiting += value.values() if isinstance(value, dict) else value


def _check_tensor(path: Path, tensor: Tensor) -> None:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        return  # nothing of it is computed with; whoever needs plain tensors looks for them
    claimed, held = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
    if claimed > max(SMALL, held):
        raise WmddError(
            f"{path} has a tensor that claims {claimed:,} bytes, of which the file has {held:,}; save it again as "
            "tensor.contiguous()"
        )
