"""Weights of a network as safetensors, with what its artifact says of it, which is read without torch."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from wmdd.artifacts.atomic_files import atomic
from wmdd.artifacts.hdf5_writer import digest_of
from wmdd.base.errors import WmddError, one_line

if TYPE_CHECKING:
    from torch import Tensor


def save_model(path: Path, state: Mapping[str, "Tensor"], meta: Mapping[str, Any]) -> None:
    """Write a network as safetensors; the meta data stand in one JSON field, so that equal content is equal bytes."""
    from safetensors.torch import save_file

    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    digest = digest_of({name: value.numpy() for name, value in tensors.items()})
    with atomic(path) as part:
        save_file(tensors, part, metadata={"wmdd": json.dumps(dict(meta, digest=digest), sort_keys=True)})


def load_model(path: Path) -> tuple[dict[str, "Tensor"], dict[str, Any]]:
    """Read a network and its meta data.

    Raises:
        WmddError: it is missing, damaged, or was not written by this package.
    """
    with _reading(path, "pt") as (file, meta):
        return {name: file.get_tensor(name) for name in file.keys()}, meta  # noqa: SIM118


def load_meta(path: Path) -> dict[str, Any]:
    """Read the meta data of a network; raises as `load_model` does."""
    with _reading(path, "np") as (_, meta):
        return meta


@contextmanager
def _reading(path: Path, framework: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Open a network whose tensors are those of a framework, and yield it with its meta data."""
    try:
        with safe_open(path, framework=framework) as file:
            yield file, json.loads((file.metadata() or {}).get("wmdd", ""))
    except FileNotFoundError:
        raise WmddError(f"{path} does not exist; train the teacher first") from None
    except json.JSONDecodeError:
        raise WmddError(f"{path} was not written by wmdd (no provenance); delete it and run again") from None
    except (SafetensorError, OSError) as error:
        raise WmddError(
            f"{path} is not a whole safetensors file ({one_line(error)}); delete it and run again"
        ) from None
