"""Weights of a network as safetensors, with what its artifact says of it, which is read without torch."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from wmdd.artifacts.atomic_files import SEAL, atomic, check_file, seal_of
from wmdd.artifacts.hdf5 import Meta
from wmdd.artifacts.hdf5_writer import digest_of
from wmdd.base.errors import WmddError, one_line

if TYPE_CHECKING:
    from torch import Tensor


def save_model(path: Path, state: Mapping[str, "Tensor"], meta: Mapping[str, Any]) -> None:
    """Write a network as safetensors; the meta data stand in one JSON field, so that equal content is equal bytes."""
    from safetensors.torch import save_file

    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    content = dict(meta, digest=digest_of({name: value.numpy() for name, value in tensors.items()}))
    content[SEAL] = seal_of(content)
    with atomic(path) as part:
        save_file(tensors, part, metadata={"wmdd": json.dumps(content, sort_keys=True)})


def load_model(path: Path) -> tuple[dict[str, "Tensor"], Meta]:
    """Read a network and its meta data.

    Raises:
        WmddError: it is missing, damaged, changed since it was written, or not written by this package.
    """
    with _reading(path, "pt") as (file, meta):
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if digest_of({name: value.numpy() for name, value in state.items()}) != meta["digest"]:
            raise WmddError(f"the weights of {path} have changed since they were written; delete it and run again")
        return state, meta


def load_meta(path: Path) -> Meta:
    """Read the meta data of a network; raises as `load_model` does."""
    with _reading(path, "np") as (_, meta):
        return meta


@contextmanager
def _reading(path: Path, framework: str) -> Iterator[tuple[Any, Meta]]:
    """Open a network whose tensors are those of a framework, and yield it with its meta data."""
    check_file(path, "run the stage that makes it first")
    try:
        with safe_open(path, framework=framework) as file:
            yield file, _meta(path, (file.metadata() or {}).get("wmdd", ""))
    except (SafetensorError, OSError) as error:
        raise WmddError(
            f"{path} is not a whole safetensors file ({one_line(error)}); delete it and run again"
        ) from None


def _meta(path: Path, text: str) -> Meta:
    """Return what a network says of itself; a file of an earlier version has no seal and is not checked by it."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or "digest" not in content:
        raise WmddError(f"{path} was not written by wmdd (no provenance); delete it and run again")
    if content.pop(SEAL, None) not in (None, seal_of(content)):
        raise WmddError(f"what {path} says of itself has changed since it was written; delete it and run again")
    return Meta(path, content)
