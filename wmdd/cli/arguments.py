"""The mark of a command, and the arguments that many of them take, each with its help."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

from cyclopts import Parameter
from cyclopts.validators import Number

from wmdd.settings.engine import EngineSettings

Paths = Annotated[list[Path], Parameter(consume_multiple=True)]
Positive = Annotated[int, Parameter(validator=Number(gte=1))]
Flag = Annotated[bool, Parameter(negative=())]  # which has no --no-…
Threads = Annotated[int, Parameter(help="of the CPU.")]
Data = Annotated[Path, Parameter(help="of the data stage.")]
Teacher = Annotated[Path, Parameter(help="of the teacher stage.")]
Features = Annotated[Path, Parameter(help="of the features stage.")]
Seed = Annotated[int, Parameter(help="of the distillation.")]
Ipc = Annotated[int, Parameter(validator=Number(gte=1), help="images per class.")]
Block = Annotated[str, Parameter(help="of classes, as in classes0-4.")]
ENGINE = EngineSettings()

Function = TypeVar("Function", bound=Callable[..., None])


def command(function: Function) -> Function:
    """Mark a function as a command of its name: what `wmdd.cli.commands` and `wmdd.jobs.code_reach` look for in the sources."""
    return function
