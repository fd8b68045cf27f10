"""Weights from outside: of torchvision, of timm, or of a checkpoint file, by the names that they have there."""

import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from wmdd.artifacts.atomic_files import check_file, sha256_of
from wmdd.artifacts.hdf5_writer import digest_of
from wmdd.artifacts.model_files import load_model
from wmdd.artifacts.torch_files import unpickled
from wmdd.base.errors import WmddError, first_sentence
from wmdd.networks.foreign_weights import check, timm_config, torchvision_entry
from wmdd.networks.normalisation import Normalisation

if TYPE_CHECKING:
    from wmdd.settings.teacher import TeacherSettings

State = dict[str, Tensor]

# A checkpoint has its weights in one of these; of several the first is taken.
NESTED = ("state_dict", "model_state_dict", "model", "network", "net", "teacher", "model_ema", "state_dict_ema", "ema")
PREFIXES = ("module.", "model.", "_orig_mod.")  # of DistributedDataParallel, of wrappers, of torch.compile


@dataclass(frozen=True)
class Weights:
    """Weights as somebody else saved them, by the names they have there."""

    state: State
    origin: str  # where they come from, for people
    digest: str  # SHA-256 of the file, or of the tensors where a library hides the file
    normalisation: Normalisation | None = None  # they were trained with, where it is known
    meta: dict[str, Any] = field(default_factory=dict)  # of an artifact of this package


def weights_of(settings: "TeacherSettings") -> Weights:
    """Return the weights that `settings.weights` names.

    Raises:
        WmddError: they can't be had or read.
    """
    check(settings)
    if settings.checkpoint:
        return of_file(Path(settings.checkpoint))
    return of_timm(settings.architecture) if settings.weights == "pretrained" else of_torchvision(settings)


def _hub() -> Path:
    return Path(torch.hub.get_dir(), "checkpoints")


def of_torchvision(settings: "TeacherSettings") -> Weights:
    """Return weights of torchvision, from torch's hub folder or, failing that, from the net.

    Raises:
        WmddError: they are unknown, of another architecture, can't be downloaded, or the file is not what its name says.
    """
    entry = torchvision_entry(settings)
    path = _hub() / Path(urlparse(entry.url).path).name
    expected = re.search(r"-([0-9a-f]{8,})\.", path.name)  # torch's custom: the name holds the beginning of the SHA-256
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(entry.url, str(path), expected and expected[1], progress=False)
        except (OSError, RuntimeError) as error:
            raise WmddError(
                f"cannot download {entry.url} ({first_sentence(error)}); fetch it by hand and put it into {path.parent}"
            ) from None
    digest = sha256_of(path)
    if expected and not digest.startswith(expected[1]):
        raise WmddError(f"{path} is not the file of that name (its SHA-256 begins with {digest[:8]}); delete it")
    state, preprocessing = _flat(_unpickled(path), path), entry.transforms()
    normalisation = Normalisation(_floats(preprocessing.mean), _floats(preprocessing.std))
    return Weights(state, _origin(f"torchvision {entry}", digest), digest, normalisation)


def of_timm(architecture: str) -> Weights:
    """Return timm's own weights of `timm:NAME`; a file of their name in torch's hub folder comes before the net.

    Raises:
        WmddError: timm has none, or they can't be downloaded.
    """
    import timm

    config = timm_config(architecture)
    full = f"{config.architecture}.{config.tag}".removesuffix(".")
    local = _hub() / f"{full}.safetensors"
    overlay = {"file": str(local)} if local.is_file() else None
    try:
        network = timm.create_model(full, pretrained=True, pretrained_cfg_overlay=overlay)
    except Exception as error:  # of whichever library fetches or reads them
        reason = first_sentence(error)
        if overlay:
            raise WmddError(f"{local} does not hold timm's {full} ({reason}); delete it or replace it") from None
        raise WmddError(
            f"cannot download timm's {full} ({reason}); put model.safetensors of huggingface.co/{config.hf_hub_id} into "
            f"{local.parent} as {local.name}"
        ) from None
    state = network.state_dict()
    digest = digest_of({name: tensor.numpy() for name, tensor in state.items()})
    normalisation = Normalisation(_floats(config.mean), _floats(config.std))
    return Weights(state, _origin(f"timm {full}", digest), digest, normalisation)


def of_file(path: Path) -> Weights:
    """Return the weights of a checkpoint file; no code that it may hold is run.

    Raises:
        WmddError: it is missing, cut short, needs code to be unpickled, or holds no weights.
    """
    check_file(path, "give the path of a checkpoint in weights")
    try:
        digest = sha256_of(path)
    except OSError as error:
        raise WmddError(f"cannot read the checkpoint {path}: {error.strerror}; give its path in weights") from None
    if path.suffix != ".safetensors":
        return Weights(_flat(_unpickled(path), path), _origin(path.name, digest), digest)
    state, meta = _safetensors(path)
    normalisation = Normalisation.of(meta) if meta else None
    return Weights(_flat(state, path), _origin(path.name, digest), digest, normalisation, meta)


def _unpickled(path: Path) -> Any:
    alone = "its weights alone: torch.save(model.state_dict(), 'weights.pt')"
    return unpickled(path, "checkpoint", "give another file in weights", alone)


def _safetensors(path: Path) -> tuple[State, dict[str, Any]]:
    """Return tensors, and the meta data if the file is of this package."""
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if "wmdd" not in (file.metadata() or {}):
                return state, {}
        return load_model(path)
    except (SafetensorError, OSError) as error:
        raise WmddError(f"{path} is not a whole safetensors file ({first_sentence(error)}); get it again") from None


def _flat(content: Any, path: Path) -> State:
    """Return the tensors of a checkpoint, out of what they are nested in and without prefixes that most of them have.

    What is left out is said: other states, and tensors without the prefix (a count of averages, weights of a loss).
    """
    while isinstance(content, dict):
        nested = [name for name in NESTED if isinstance(content.get(name), dict)]
        if not nested:
            break
        if len(nested) > 1:
            _say(f"{path} has several states: {nested[0]} is taken, not {', '.join(nested[1:])}")
        content = content[nested[0]]
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        keys = f"keys {', '.join(map(str, [*content][:5]))}" if isinstance(content, dict) else type(content).__name__
        raise WmddError(f"{path} holds no state dict ({keys}); save model.state_dict(), alone or as one of {NESTED}")
    state = dict(content)
    while prefix := next((p for p in PREFIXES if sum(name.startswith(p) for name in state) > len(state) / 2), None):
        if others := [name for name in state if not name.startswith(prefix)]:
            _say(f"{path} has {', '.join(others[:3])} beside {prefix}...; left out: {len(others)}")
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    return state


def _say(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr, flush=True)


def _origin(name: str, digest: str) -> str:
    return f"{name} (sha256 {digest[:12]})"


def _floats(values: Any) -> list[float]:
    return [float(value) for value in values]
