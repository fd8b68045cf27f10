"""The app with all commands: the functions of this package's modules that are marked with `@command`.

They are found in the sources, and the module of a command is imported when it is called, so that `wmdd --help` imports none.
"""

import re
from pathlib import Path

from cyclopts import App, Parameter

from wmdd import __version__

COMMAND = re.compile(r'^@command\ndef (\w+)\(.*?"""(.*?)(?:\n|""")', re.MULTILINE | re.DOTALL)  # a name, a line of help

app = App(
    name="wmdd",
    help="Dataset distillation with Wasserstein barycenters.",
    version=__version__,
    default_parameter=Parameter(negative_iterable=()),
)
for source in sorted(Path(__file__).parent.glob("*.py")):
    for name, summary in COMMAND.findall(source.read_text(encoding="utf-8")):
        app.command(f"{__package__}.{source.stem}:{name}", help=summary)
