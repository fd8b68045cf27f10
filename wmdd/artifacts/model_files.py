"""Weights of a network as safetensors, with what its artifact says of it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from wmdd.artifacts.atomic_files import atomic
from wmdd.artifacts.hdf5_writer import digest_of
from wmdd.base.errors import WmddError, one_line


def save_model(path: Path, state: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> None:
    """Write a network as safetensors; the meta data stand in one JSON field, so that equal content is equal bytes."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    digest = digest_of({name: value.numpy() for name, value in tensors.items()})
    with atomic(path) as part:
        save_file(tensors, part, metadata={"wmdd": json.dumps(dict(meta, digest=digest), sort_keys=True)})


def load_model(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a network and its meta data.

    Raises:
        WmddError: it is missing, damaged, or was not written by this package.
    """
    try:
        with safe_open(path, framework="pt") as file:
            meta = json.loads((file.metadata() or {}).get("wmdd", ""))
            return {name: file.get_tensor(name) for name in file.keys()}, meta  # noqa: SIM118
    except FileNotFoundError:
        raise WmddError(f"{path} does not exist; train the teacher first") from None
    except json.JSONDecodeError:
        raise WmddError(f"{path} was not written by wmdd (no provenance); delete it and run again") from None
    except (SafetensorError, OSError) as error:
        raise WmddError(
            f"{path} is not a whole safetensors file ({one_line(error)}); delete it and run again"
        ) from None
