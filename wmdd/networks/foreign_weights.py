"""Weights from outside: whether they can be there, as far as it can be told before anything runs.

Torchvision and timm are imported when weights of their own are asked for.
"""

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wmdd.base.errors import WmddError
from wmdd.networks.architectures import RESNETS
from wmdd.settings.teacher import CHECKPOINTS

if TYPE_CHECKING:
    from wmdd.settings.teacher import TeacherSettings


def check(settings: "TeacherSettings") -> None:
    """Refuse weights that can be known to be wrong; nothing is downloaded or read.

    Raises:
        WmddError: there is no such file, or no library has weights of this name for this architecture.
    """
    if settings.checkpoint:
        if not settings.checkpoint.endswith(CHECKPOINTS):
            raise WmddError(f"weights: {settings.checkpoint} is no checkpoint; it must end in {', '.join(CHECKPOINTS)}")
        if not Path(settings.checkpoint).is_file():
            raise WmddError(f"weights: there is no file {settings.checkpoint}; paths are from {Path.cwd()}")
    elif settings.weights == "pretrained":
        timm_config(settings.architecture)
    elif settings.weights:
        torchvision_entry(settings)


def torchvision_entry(settings: "TeacherSettings") -> Any:
    """Return torchvision's entry (`WeightsEnum`) of the weights in `settings`.

    Raises:
        WmddError: torchvision has none of this name, or they are of another architecture.
    """
    from torchvision import models  # takes a second

    entries = {
        f"{kind.__name__}.{member}": (builder, entry)
        for builder in models.list_models(module=models)
        for kind in [models.get_model_weights(builder)]
        for member, entry in kind.__members__.items()
    }
    if settings.weights not in entries:
        nearest = difflib.get_close_matches(settings.weights, [*entries, "pretrained"], n=1, cutoff=0.0)[0]
        raise WmddError(
            f"weights: {settings.weights!r} is not known to torchvision; did you mean {nearest}? A file ends in "
            f"{', '.join(CHECKPOINTS)}"
        )
    builder, entry = entries[settings.weights]
    architecture = builder if builder in RESNETS else f"torchvision:{builder}"
    if settings.architecture != architecture:
        raise WmddError(
            f"weights: {settings.weights} is of {builder}, not of {settings.architecture}; set architecture: {architecture}"
        )
    return entry


def timm_config(architecture: str) -> Any:
    """Return timm's `PretrainedCfg` of its weights for `timm:NAME`.

    Raises:
        WmddError: timm has no such network, no weights for it, or more than one last layer in it.
    """
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
