"""The app with all commands: the functions of this package's modules that are marked with `@command`.

They are found in the sources, and the module of a command is imported when it is called, so that `wmdd --help` imports none.
"""

import re
from pathlib import Path

from cyclopts import App, Group, Parameter

from wmdd import __version__

COMMAND = re.compile(r'^@command\ndef (\w+)\(.*?"""(.*?)(?:\n|""")', re.MULTILINE | re.DOTALL)  # a name, a line of help

# The commands that people type, in the order of a study. All others are stages, which the workflow calls.
EVERYDAY = ("init", "plan", "run", "status", "compare", "evaluate", "export", "grid", "config", "profile")
MORE = ("export_teacher", "study_table", "manifest", "schema", "sync", "dashboard", "sweep")
COMMANDS, FURTHER, STAGES, OPTIONS = (
    Group(title, sort_key=place)
    for place, title in enumerate(("Commands", "More commands", "Stages, which the workflow calls", "Options"))
)
EXIT_CODES = """Exit codes: 0 done · 1 an error, in one line; of `status --check`: a job has failed · 2 a wrong command line ·
75 stopped by a scheduler's or user's signal, to be started again · 130 interrupted. `run` has those of Snakemake."""

app = App(
    name="wmdd",
    help="Dataset distillation with Wasserstein barycenters.",
    help_epilogue=EXIT_CODES,
    version=__version__,
    group_commands=OPTIONS,
    default_parameter=Parameter(negative_iterable=()),
)
app.register_install_completion_command(help="Complete commands and options in this shell.")
for source in sorted(Path(__file__).parent.glob("*.py")):
    for name, summary in COMMAND.findall(source.read_text(encoding="utf-8")):
        place = EVERYDAY.index(name) if name in EVERYDAY else None
        group = COMMANDS if name in EVERYDAY else FURTHER if name in MORE else STAGES
        app.command(f"{__package__}.{source.stem}:{name}", help=summary, group=group, sort_key=place)
