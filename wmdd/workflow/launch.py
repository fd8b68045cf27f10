"""Where the workflow's own files are, and how Snakemake is started on them from any folder."""

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from wmdd.base.errors import WmddError

PACKAGE = Path(__file__).parents[1]
PROFILE = "profiles/default"
PROGRESS = re.compile(r"\d+ of \d+ steps \(.*\) done$")  # of Snakemake's lines
SHOWS = {"--quiet", "-q", "--verbose", "--dry-run", "--dryrun", "-n"}  # options that say what Snakemake prints
DEFAULTS = (Path("study.yaml"), Path("config/config.yaml"))  # the experiment of a folder


def sources() -> Path:
    """Return the folder of Snakefile, rules, config, envs and profiles: the top of a clone, or one in the installed package."""
    clone = PACKAGE.parent
    return clone if (clone / "rules").is_dir() and (clone / "Snakefile").is_file() else PACKAGE / "pipeline"


def snakefile() -> Path:
    """Return the workflow's file: that of the current folder, or ours."""
    own = Path("Snakefile")
    return own if own.is_file() else sources() / own


def experiment_files(files: Sequence[Path]) -> list[Path]:
    """Return the experiment files that were named, or the one that this folder has.

    Raises:
        WmddError: none was named, and none is here.
    """
    if files:
        return list(files)
    if here := [path for path in DEFAULTS if path.is_file()]:
        return here[:1]
    raise WmddError(f"there is no {' or '.join(map(str, DEFAULTS))} here; name the experiment file")


def snakemake(configfiles: Sequence[Path], options: Sequence[str] = (), quiet: bool = False) -> int:
    """Run Snakemake in the current folder, and return its exit status; what it says goes where ours goes.

    Args:
        configfiles: of the experiment; of several the later ones count more.
        options: of Snakemake.
        quiet: show how many steps are done, and the rest if it fails, unless the options say what to show.
    """
    import snakemake  # noqa: F401  # that it is missing is one line here, and a trace in another process

    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        str(snakefile()),
        "--configfile",
        *map(str, configfiles),
    ]
    if not Path(PROFILE).is_dir() and not any(option.startswith("--workflow-profile") for option in options):
        command += ["--workflow-profile", str(sources() / PROFILE)]
    command += options
    if quiet and not SHOWS & set(options):
        return _with_progress(command)
    return subprocess.run(command, check=False).returncode


def _with_progress(command: list[str]) -> int:
    """Run Snakemake; show its lines of progress, and all its lines if it fails."""
    lines = []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace") as process:
        try:
            for line in process.stderr or ():
                lines.append(line)
                if PROGRESS.match(line):
                    print(line, end="", file=sys.stderr, flush=True)
        except BaseException:
            process.terminate()  # Snakemake ends its jobs
            raise
    if process.returncode:
        print(*lines, sep="", end="", file=sys.stderr)
    return process.returncode
