"""Whether a teacher's weights from outside can be there, as far as it can be told before anything runs."""

from pathlib import Path
from typing import TYPE_CHECKING

from wmdd.base.errors import WmddError
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
    elif settings.weights:
        from wmdd.networks import library_weights

        if settings.weights == "pretrained":
            library_weights.timm_config(settings.architecture)
        else:
            library_weights.torchvision_entry(settings)
