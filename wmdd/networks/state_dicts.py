"""Filling a network with the tensors of a checkpoint, all of which must fit."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wmdd.base.errors import WmddError
from wmdd.networks.architectures import CONVNETS, RESNETS
from wmdd.networks.models import Network, build

if TYPE_CHECKING:
    from wmdd.settings.network import NetworkSettings


def restore(
    settings: "NetworkSettings", state: dict[str, Tensor], classes: int, resolution: int, origin: str
) -> Network:
    """Build a network and fill it from a checkpoint, every parameter of which must fit.

    Raises:
        WmddError: the checkpoint is of another network or number of classes.
    """
    network = build(settings, classes, resolution, torch.Generator())
    head = state.get("head.weight")
    if head is not None and len(head) != classes:
        raise WmddError(f"{origin} has {len(head)} classes but the data have {classes}; train a teacher on these data")
    fill(network, state, f"{origin} does not fit {described(settings, resolution)}")
    return network


def described(settings: "NetworkSettings", resolution: int) -> str:
    """Return a network in words."""
    of_width = f" of width {settings.width}" if settings.architecture in [*RESNETS, *CONVNETS] else ""
    return f"{settings.architecture}{of_width} at {resolution} px"


def fill(
    network: Network, state: Mapping[str, Tensor], complaint: str, called: Mapping[str, str] | None = None
) -> None:
    """Copy a state, tensors by the network's own names, into the network; all must fit.

    By hand, because `load_state_dict` runs hooks of torchvision's that need what only its own files hold. The error begins with
    `complaint`, and names tensors as they are `called` in the file, where that differs.

    Raises:
        WmddError: names the first tensor that is missing, of another shape, or not part of the network.
    """
    targets = network.state_dict()
    counters = {name: torch.zeros_like(v) for name, v in targets.items() if name.endswith(".num_batches_tracked")}
    state = counters | dict(state)  # files of before torch 0.4.1 have none, and nothing here reads them
    if reason := _difference(targets, state, called or {}):
        raise WmddError(f"{complaint}: {reason}")
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(state[name])


def _difference(targets: Mapping[str, Tensor], state: Mapping[str, Tensor], called: Mapping[str, str]) -> str:
    for name, tensor in targets.items():
        if name not in state:
            return f"it lacks {called.get(name, name)}"
        if state[name].shape != tensor.shape:
            here, there = list(tensor.shape), list(state[name].shape)
            return f"{called.get(name, name)} is {there} in it but {here} in the network"
    extra = next((name for name in state if name not in targets), None)
    return f"its {extra} is not part of the network" if extra is not None else ""
