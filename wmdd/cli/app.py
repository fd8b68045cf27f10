"""The app that all commands register with, and the arguments that many of them take, each with its help."""

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from cyclopts.validators import Number

from wmdd import __version__
from wmdd.settings.engine import EngineSettings

app = App(name="wmdd", help="Dataset distillation with Wasserstein barycenters.", version=__version__)

Paths = Annotated[list[Path], Parameter(consume_multiple=True)]
Positive = Annotated[int, Parameter(validator=Number(gte=1))]
Threads = Annotated[int, Parameter(help="of the CPU.")]
Data = Annotated[Path, Parameter(help="of the data stage.")]
Teacher = Annotated[Path, Parameter(help="of the teacher stage.")]
Features = Annotated[Path, Parameter(help="of the features stage.")]
Seed = Annotated[int, Parameter(help="of the distillation.")]
Ipc = Annotated[int, Parameter(validator=Number(gte=1), help="images per class.")]
Block = Annotated[str, Parameter(help="of classes, as in classes0-4.")]
ENGINE = EngineSettings()
