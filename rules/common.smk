# The checked experiment and what rules ask of it. Which files and flags a job needs is in wmdd/workflow/inputs.py, where they
# lie in wmdd/workflow/layout.py.
import os
import shlex
import signal
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger
from snakemake.settings.types import DeploymentMethod

# Of this Snakefile, also where it is a module of another workflow.
ROOT = Path(workflow.current_basedir.get_path_or_uri(secret_free=True)).parent
if (
    not ROOT.is_dir()
):  # rules that Snakemake reads from a server, as snakedeploy has it; the installed package has the rest
    if find_spec("wmdd") is None:
        raise WorkflowError('the rules need the package wmdd here too; run `pip install "wmdd[workflow]"`')
    from wmdd.workflow.launch import sources

    ROOT = sources()
# Jobs find the interpreter that runs this workflow and the package that it belongs to, wherever they are started: the one
# beside the Snakefile, or the installed one, which holds the Snakefile.
LIBRARY = ROOT if (ROOT / "wmdd").is_dir() else ROOT.parents[1]
sys.path.insert(0, str(LIBRARY))

# Of a job, from the folder of its rule; Snakemake would take braces in the sources' own path for a field to fill in.
ENVIRONMENT = "../envs/wmdd.yaml"
if "{" in str(ROOT):
    ENVIRONMENT = str(ROOT / "envs/wmdd.yaml").replace("{", "{{").replace("}", "}}")

# Without a configuration the demo runs: that of the working folder, or the one beside the Snakefile.
DEMO = "config/config.yaml"
if not (workflow.config_settings.configfiles or workflow.configfiles):

    configfile: DEMO if Path(DEMO).is_file() else str(ROOT / DEMO)


for variable, place in ("PATH", Path(sys.executable).parent), ("PYTHONPATH", LIBRARY):
    os.environ[variable] = os.pathsep.join([str(place), *filter(None, [os.environ.get(variable)])])

# A scheduler's warning (SIGTERM, SIGUSR1) reaches every process of a job: what runs the command must outlive the command,
# which keeps its state and leaves.
OUTLIVE = "set -euo pipefail; trap : TERM USR1; "
shell.prefix(OUTLIVE)
if not workflow.is_main_process:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)

from wmdd.base.errors import WmddError
from wmdd.cost.blocks import Blocks
from wmdd.cost.resources import Requests
from wmdd.jobs.provenance import code_digest, git_revision
from wmdd.workflow import experiment_file
from wmdd.workflow.costs import costs
from wmdd.workflow.experiment import Experiment
from wmdd.workflow.inputs import Inputs, any_of
from wmdd.workflow.layout import FILES, REPORT, WILDCARDS, cost_of, history_of, log_of, of_run
from wmdd.workflow.lock import Guard, hold
from wmdd.workflow.stages import STAGES

logger.addHandler(Guard(workflow))
os.environ.setdefault("WMDD_REVISION", git_revision())  # there may be no git where the jobs run

DEPLOYMENT = workflow.deployment_settings.deployment_method  # --sdm
IMAGE = os.environ.get("WMDD_IMAGE")
if DeploymentMethod.APPTAINER in DEPLOYMENT and not IMAGE:
    raise WorkflowError(
        "--sdm apptainer needs an image; build one from envs/ (docs/use/cluster.md), name it in WMDD_IMAGE"
    )
if DeploymentMethod.CONDA in DEPLOYMENT:
    # Snakemake drops PYTHONPATH here, and any other active environment may stay ahead of the job's own in PATH.
    sources = shlex.quote(str(LIBRARY)).replace("{", "{{").replace("}", "}}")
    shell.prefix(OUTLIVE + f'export PYTHONPATH={sources} PATH="$CONDA_PREFIX/bin:$PATH"; ')

try:
    if workflow.modifier.parent_modifier is None:  # of a module the outer workflow's files are not ours to judge
        for file in workflow.configfiles:
            experiment_file.read(Path(file))  # Snakemake itself takes a key twice
    experiment = Experiment(config)
    blocks = Blocks(experiment)
except WmddError as error:
    raise WorkflowError(str(error)) from None
inputs = Inputs(experiment, blocks.names)
if not inputs.runs:
    raise WorkflowError("the experiment has an empty matrix; list datasets, methods and ipc under `matrix:`")
if workflow.is_main_process:
    for line in experiment.replaced():
        logger.warning(f"warning: {line}")
REQUESTS = Requests(experiment)

# wandb reads these in every job; what the user's environment says wins.
os.environ.setdefault("WANDB_RUN_GROUP", experiment.file.experiment)
for variable, value in experiment.file.tracking.environment().items():
    os.environ.setdefault(variable, value)


def request(rule):
    """What jobs ask a scheduler for: mem_mb, runtime in minutes, and gpu for a network; more at a retry."""

    def ask(resource):
        return lambda wildcards, attempt, threads, input: getattr(
            REQUESTS.of(rule, wildcards, attempt, threads, len(input)), resource
        )

    resources = ("mem_mb", "runtime", "gpu") if STAGES[rule].network else ("mem_mb", "runtime")
    return {resource: ask(resource) for resource in resources}


def processes(wildcards, threads):
    """In how many processes a teacher is trained, one a GPU. Taking `threads` keeps this out of Snakemake's rerun check."""
    return experiment.gpus(wildcards.teacher)


def joined_later(path):
    """A file of which others are joined to one; deleted then, where the experiment says so."""
    return temp(path) if experiment.file.delete_blocks else path


def optional(*names):
    """The flags of inputs of these names; nothing of one that the job does not have."""

    def flag(name, paths):
        return f"--{name.replace('_', '-')} {shlex.join([paths] if isinstance(paths, str) else paths)}"

    return lambda wildcards, input: " ".join(flag(name, input[name]) for name in names if input[name])


@cache
def all_costs():
    """The cost of every job whose results the report shows."""
    return costs(
        workflow.rules, inputs.students() + inputs.files_of_teachers("features") + inputs.distances() + inputs.decays()
    )


def result(name):
    """A file of the report that `snakemake --report` shows too."""
    return report(f"{REPORT}/{name}", category="Results")


def source(name):
    """A file of the sources, by a relative path where the workflow runs beside it, so that both may be moved without a rerun.

    A module has the absolute path: its `prefix` would be put before a relative one.
    """
    is_module = workflow.modifier.parent_modifier is not None
    home = LIBRARY if name.startswith("wmdd/") else ROOT
    return str(home / name) if is_module or not Path(name).is_file() else name


def tracked(*paths):
    """Those files of the sources as inputs, which lie in no storage; not those whose path has braces, a wildcard to Snakemake."""
    return [local(path) for path in paths if Path(path).is_file() and "{" not in path]


def again(wildcards, threads):
    """The command that makes the results again. Taking `threads` keeps it out of Snakemake's rerun check."""
    files = [os.path.relpath(path) for path in workflow.config_settings.configfiles]
    overrides = workflow.config_settings.config_args
    words = [
        "snakemake",
        *(["--configfile", *files] if files else []),
        *(["--config", *overrides] if overrides else []),
    ]
    return shlex.quote(shlex.join(words))


def price(wildcards):
    """The flags of what an hour of a GPU costs; nothing where nobody said."""
    values = experiment.file.report
    hour, currency = values.price_per_gpu_hour, shlex.quote(values.currency)
    return "" if hour is None else f"--price-per-gpu-hour {hour} --currency {currency}"
