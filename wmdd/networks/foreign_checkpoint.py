"""Weights from outside: of torchvision, of timm, or of a checkpoint file, by the names that they have there."""

import argparse
import difflib
import hashlib
import json
import pickle
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from wmdd.artifacts.hdf5_writer import digest_of
from wmdd.base.errors import WmddError
from wmdd.networks.models import RESNETS
from wmdd.settings.teacher import CHECKPOINTS

if TYPE_CHECKING:
    from wmdd.settings.teacher import TeacherSettings

State = dict[str, Tensor]

NESTED = ("state_dict", "model_state_dict", "model", "network", "net", "teacher")  # a checkpoint has its weights in one
PREFIXES = ("module.", "model.", "_orig_mod.")  # of DistributedDataParallel, of wrappers, of torch.compile


@dataclass(frozen=True)
class Weights:
    """Weights as somebody else saved them.

    Attributes:
        state: tensors by the names they have there.
        origin: where they come from, for people.
        digest: SHA-256 of the file, or of the tensors where a library hides the file.
        mean: of the normalisation they were trained with, where it is known.
        std: as mean.
        meta: of an artifact of this package.
    """

    state: State
    origin: str
    digest: str
    mean: list[float] | None = None
    std: list[float] | None = None
    meta: dict[str, Any] = field(default_factory=dict)


def check(settings: "TeacherSettings") -> None:
    """Refuse what can be known to be wrong before anything runs; nothing is downloaded.

    Raises:
        WmddError: one line that says what to write instead.
    """
    if settings.checkpoint:
        if not settings.checkpoint.endswith(CHECKPOINTS):
            raise WmddError(f"weights: {settings.checkpoint} is no checkpoint; it must end in {', '.join(CHECKPOINTS)}")
        if not Path(settings.checkpoint).is_file():
            raise WmddError(f"weights: there is no file {settings.checkpoint}; paths are from {Path.cwd()}")
    elif settings.weights == "pretrained":
        _timm_config(settings.architecture)
    elif settings.weights:
        _torchvision_entry(settings)


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


def _torchvision_entry(settings: "TeacherSettings") -> Any:
    """Return torchvision's entry of these weights, which must be of the architecture asked for."""
    from torchvision import models  # takes a second

    known = {
        f"{kind.__name__}.{member}": (builder, entry)
        for builder in models.list_models(module=models)
        for kind in [models.get_model_weights(builder)]
        for member, entry in kind.__members__.items()
    }
    if settings.weights not in known:
        nearest = difflib.get_close_matches(settings.weights, [*known, "pretrained"], n=1, cutoff=0.0)[0]
        raise WmddError(
            f"weights: {settings.weights!r} is not known to torchvision; did you mean {nearest}? A file ends in "
            f"{', '.join(CHECKPOINTS)}"
        )
    builder, entry = known[settings.weights]
    wanted = builder if builder in RESNETS else f"torchvision:{builder}"
    if settings.architecture != wanted:
        raise WmddError(
            f"weights: {settings.weights} is of {builder}, not of {settings.architecture}; set architecture: {wanted}"
        )
    return entry


def of_torchvision(settings: "TeacherSettings") -> Weights:
    """Return weights of torchvision, from torch's hub folder or, failing that, from the net.

    Raises:
        WmddError: they are unknown, of another architecture, can't be downloaded, or the file is not what its name says.
    """
    entry = _torchvision_entry(settings)
    path = _hub() / Path(urlparse(entry.url).path).name
    expected = re.search(r"-([0-9a-f]{8,})\.", path.name)  # torch's custom: the name holds the beginning of the SHA-256
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(entry.url, str(path), expected and expected[1], progress=False)
        except (OSError, RuntimeError) as error:
            raise WmddError(
                f"cannot download {entry.url} ({_line(error)}); fetch it by hand and put it into {path.parent}"
            ) from None
    digest = _sha256(path)
    if expected and not digest.startswith(expected[1]):
        raise WmddError(f"{path} is not the file of that name (its SHA-256 begins with {digest[:8]}); delete it")
    state, seen = _flat(_unpickled(path), path), entry.transforms()
    return Weights(state, _origin(f"torchvision {entry}", digest), digest, _floats(seen.mean), _floats(seen.std))


def _timm_config(architecture: str) -> Any:
    """Return what timm knows of its weights for `timm:NAME`."""
    name = architecture.removeprefix("timm:")
    if name == architecture:
        raise WmddError(
            f"weights: pretrained means timm's and needs architecture: timm:NAME, not {architecture}; torchvision's have "
            "names, as ResNet18_Weights.IMAGENET1K_V1"
        )
    import timm  # takes seconds

    if not timm.is_model(name):
        nearest = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=1, cutoff=0.0)[0]
        raise WmddError(f"timm has no network {name!r}; did you mean timm:{nearest}?")
    if not timm.is_model_pretrained(name):
        raise WmddError(f"timm has no weights for {name}; see timm.list_pretrained(), or set weights to a file")
    config: Any = timm.get_pretrained_cfg(name)
    if not isinstance(config.classifier, str):
        raise WmddError(f"timm's {name} has several last layers; take a network with one")
    return config


def of_timm(architecture: str) -> Weights:
    """Return timm's own weights of `timm:NAME`; a file of their name in torch's hub folder comes before the net.

    Raises:
        WmddError: timm has none, or they can't be downloaded.
    """
    import timm

    config = _timm_config(architecture)
    full = f"{config.architecture}.{config.tag}".removesuffix(".")
    placed = _hub() / f"{full}.safetensors"
    found = placed.is_file()
    try:
        overlay = {"file": str(placed)} if found else None
        network = timm.create_model(full, pretrained=True, pretrained_cfg_overlay=overlay)
    except Exception as error:  # of whichever library fetches or reads them
        if found:
            raise WmddError(f"{placed} does not hold timm's {full} ({_line(error)}); delete it or replace it") from None
        raise WmddError(
            f"cannot download timm's {full} ({_line(error)}); put model.safetensors of huggingface.co/{config.hf_hub_id} "
            f"into {placed.parent} as {placed.name}"
        ) from None
    state = network.state_dict()
    digest = digest_of({name: tensor.numpy() for name, tensor in state.items()})
    return Weights(state, _origin(f"timm {full}", digest), digest, _floats(config.mean), _floats(config.std))


def of_file(path: Path) -> Weights:
    """Return the weights of a checkpoint file; no code that it may hold is run.

    Raises:
        WmddError: it is missing, cut short, needs code to be unpickled, or holds no weights.
    """
    try:
        digest = _sha256(path)
    except OSError as error:
        raise WmddError(f"cannot read the checkpoint {path}: {error.strerror}; give its path in weights") from None
    if path.suffix != ".safetensors":
        return Weights(_flat(_unpickled(path), path), _origin(path.name, digest), digest)
    state, meta = _safetensors(path)
    mean, std = meta.get("mean"), meta.get("std")
    return Weights(_flat(state, path), _origin(path.name, digest), digest, mean, std, meta)


def _unpickled(path: Path) -> Any:
    try:
        # Namespace: of the options that most training scripts save beside the weights. It holds values and runs nothing.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        needed = re.search(r"Unsupported (?:global|class)\S*:? ?(?:GLOBAL )?([\w.]+)", str(error))
        if needed is None:
            raise WmddError(f"{path} is no checkpoint of torch; give another file in weights") from None
        raise WmddError(
            f"{path} holds more than tensors ({needed[1]}) and is not unpickled, as that can run any code; where you trust "
            "it, save its weights alone: torch.save(model.state_dict(), 'weights.pt')"
        ) from None
    except Exception as error:  # of the unpickler, which trips in many ways over what it does not expect
        raise WmddError(f"{path} is not a whole checkpoint of torch ({_line(error)}); get it again") from None


def _safetensors(path: Path) -> tuple[State, dict[str, Any]]:
    """Return tensors, and the meta data if the file is of this package."""
    try:
        with safe_open(path, framework="pt") as file:
            meta = json.loads((file.metadata() or {}).get("wmdd", "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, meta  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise WmddError(f"{path} is not a whole safetensors file ({_line(error)}); get it again") from None


def _flat(content: Any, path: Path) -> State:
    """Return the tensors of a checkpoint, out of what they are nested in and without prefixes that all of them have."""
    while isinstance(content, dict):
        inner = next((content[name] for name in NESTED if isinstance(content.get(name), dict)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        keys = f"keys {', '.join(map(str, [*content][:5]))}" if isinstance(content, dict) else type(content).__name__
        raise WmddError(f"{path} holds no state dict ({keys}); save model.state_dict(), alone or as one of {NESTED}")
    state = dict(content)
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _origin(name: str, digest: str) -> str:
    return f"{name} (sha256 {digest[:12]})"


def _floats(values: Any) -> list[float]:
    return [float(value) for value in values]


def _line(error: Exception) -> str:
    """Return the first sentence of what went wrong."""
    return " ".join(str(error).split()).split(". ")[0][:200] or type(error).__name__
