# Helpers only: the checked experiment, and functions that turn wildcards into inputs, flags and digests.
import os
import re
import shlex
import signal
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.settings.types import DeploymentMethod
from snakemake.utils import validate

ROOT = Path(workflow.basedir)
# Jobs find the interpreter that runs this workflow and the package beside the Snakefile, wherever they are started.
sys.path.insert(0, str(ROOT))
for variable, place in ("PATH", Path(sys.executable).parent), ("PYTHONPATH", ROOT):
    os.environ[variable] = os.pathsep.join([str(place), *filter(None, [os.environ.get(variable)])])

# A scheduler's warning (SIGTERM, SIGUSR1) reaches every process of a job: what runs the command must outlive the command,
# which keeps its state and leaves.
OUTLIVE = "set -euo pipefail; trap : TERM USR1; "
shell.prefix(OUTLIVE)
if not workflow.is_main_process:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)

from wmdd.config import Experiment
from wmdd.errors import WmddError
from wmdd.lock import guard
from wmdd.provenance import code_digest, git_revision
from wmdd.resources import Requests
from wmdd.settings import LabelSettings, flags as as_flags

if workflow.is_main_process:
    guard()
os.environ.setdefault("WMDD_REVISION", git_revision())  # there may be no git where the jobs run

DEPLOYMENT = workflow.deployment_settings.deployment_method  # --sdm
IMAGE = os.environ.get("WMDD_IMAGE")
if DeploymentMethod.APPTAINER in DEPLOYMENT and not IMAGE:
    raise WorkflowError("--sdm apptainer needs an image; build one from envs/ (docs/cluster.md), name it in WMDD_IMAGE")
if DeploymentMethod.CONDA in DEPLOYMENT:
    # Snakemake drops PYTHONPATH here, and any other active environment may stay ahead of the job's own in PATH.
    beside = shlex.quote(str(ROOT)).replace("{", "{{").replace("}", "}}")
    shell.prefix(OUTLIVE + f'export PYTHONPATH={beside} PATH="$CONDA_PREFIX/bin:$PATH"; ')

STUDENT = "results/{dataset}/{teacher}/{method}/ipc{ipc}/seed{seed}/student/{student}/{protocol}"
NAME = r"[A-Za-z0-9][A-Za-z0-9_.+-]*"

try:
    experiment = Experiment(config)
except WmddError as error:
    raise WorkflowError(str(error)) from None
validate(config, str(ROOT / "config/schema.json"), set_default=False)

# wandb reads these in every job; what the user's environment says wins.
os.environ.setdefault("WANDB_MODE", experiment.file.tracking.mode)
os.environ.setdefault("WANDB_PROJECT", experiment.file.tracking.project)
os.environ.setdefault("WANDB_RUN_GROUP", experiment.file.experiment)

RUNS = list(experiment.runs())
if not RUNS:
    raise WorkflowError("the experiment has an empty matrix; list datasets, methods and ipc under `matrix:`")
ENGINE = experiment.file.engine
REQUESTS = Requests(experiment)


def settings(stage, *more):
    """Flags of a stage's settings for the wildcards of a job; `more` are further settings, or functions that give them."""
    kinds = ("dataset", "teacher", "method", "protocol", "student")

    def resolve(wildcards):
        of = {kind: wildcards[kind] for kind in kinds if kind in wildcards.keys()}
        return as_flags(experiment.resolve(stage, **of), *(extra(of) if callable(extra) else extra for extra in more))

    return resolve


def taught(of):
    """How a student is taught: hard, stored, pruned or online."""
    hard = experiment.resolve("student", **of).labels == "hard"
    return "hard" if hard else experiment.resolve("relabel", **of).store


def augmentation(of):
    """The views of the relabel stage, which the student must replay, and the store of their soft labels, if it has any."""
    labels = experiment.resolve("relabel", **of)
    unused = {"store"} if taught(of) == "hard" else set()
    return LabelSettings(**{k: getattr(labels, k) for k in LabelSettings.model_fields.keys() - unused})


def solver(of):
    return experiment.resolve("barycenter", dataset=of["dataset"], method=of["method"])


def family(name):
    """A pattern for the methods of a family."""
    methods = sorted({r.method for r in RUNS if experiment.family(r.method) == name})
    return "|".join(map(re.escape, methods)) or r"(?!)"


def featured(shared):
    """A pattern for the datasets whose features pass is shared by several jobs, or is not."""
    datasets = sorted({r.dataset for r in RUNS if (len(experiment.features_blocks(r.dataset)) > 1) == shared})
    return "|".join(map(re.escape, datasets)) or r"(?!)"


def parts_of_features(wildcards):
    """What the jobs that share a features pass have made."""
    return expand(rules.features_part.output.part, block=experiment.features_blocks(wildcards.dataset), **wildcards)


def from_teacher(file):
    """A file of the teacher that a distillation uses."""

    def path(wildcards):
        seed = experiment.teacher_seed(int(wildcards.seed))
        return f"results/{wildcards.dataset}/{wildcards.teacher}/teacher/seed{seed}/{file}"

    return path


def asked(rule, resource):
    """What jobs ask a scheduler for (mem_mb, runtime in minutes, or gpu), more at a retry."""
    return lambda wildcards, attempt, threads: getattr(REQUESTS.of(rule, wildcards, attempt, threads), resource)


def gpus_of(wildcards, threads):
    """On how many GPUs a teacher is trained. It takes `threads`, because what does is not among what a rerun is decided by."""
    return experiment.gpus(wildcards.teacher)


def weights_of(wildcards):
    """The checkpoint that a teacher's weights are taken from, where they are a file."""
    return experiment.resolve("teacher", dataset=wildcards.dataset, teacher=wildcards.teacher).checkpoint or []


def barycenter_of(wildcards):
    """The barycenter of a block, for methods whose loss needs it."""
    recover = experiment.resolve("recover", dataset=wildcards.dataset, method=wildcards.method)
    return rules.barycenter.output.barycenter if recover.feature_weight > 0 else []


def features_of(wildcards):
    """The features, for strategies that choose by them."""
    select = experiment.resolve("select", dataset=wildcards.dataset, method=wildcards.method)
    return from_teacher("features.h5")(wildcards) if select.strategy != "random" else []


def labels_of(wildcards):
    """The file of soft labels, for students that learn from one."""
    of = {kind: getattr(wildcards, kind) for kind in ("dataset", "method", "protocol", "student")}
    return rules.relabel.output.labels if taught(of) in ("stored", "pruned") else []


def asked_by(wildcards):
    """The teacher, for students that ask it."""
    of = {kind: wildcards[kind] for kind in ("dataset", "method", "protocol", "student")}
    return from_teacher("model.safetensors")(wildcards) if taught(of) == "online" else []


def optional(flag, name):
    """A flag with an input, or nothing where the job has no such input."""
    return lambda wildcards, input: f"--{flag} {input[name]}" if input[name] else ""


def blocks_of(wildcards):
    """The recovered blocks of a distilled set."""
    blocks = experiment.blocks(wildcards.dataset, wildcards.teacher, wildcards.method, int(wildcards.ipc))
    return expand(rules.recover.output.images, block=blocks, **wildcards)


def students():
    """The result of every student of the matrix."""
    return [f"{STUDENT}/run{{run}}.json".format(**r._asdict()) for r in RUNS]


def datasets():
    """Every dataset of the matrix."""
    return sorted({rules.data.output.data.format(**r._asdict()) for r in RUNS})


def teachers():
    """Every teacher that a run of the matrix uses."""
    return sorted(
        {rules.teacher.output.model.format(**r._asdict() | {"seed": experiment.teacher_seed(r.seed)}) for r in RUNS}
    )


def grids():
    """A picture of each distilled set, of the first seed."""
    first = min((r.seed for r in RUNS), default=0)
    return sorted({rules.grid.output.picture.format(**r._asdict()) for r in RUNS if r.seed == first})


def solved(run):
    """The barycenters that a run of the matrix uses: the wildcards of each block."""
    if experiment.family(run.method) != "recover" or not barycenter_of(run):
        return []
    blocks = experiment.blocks(run.dataset, run.teacher, run.method, run.ipc)
    return [run._asdict() | {"block": block} for block in blocks]


def barycenters():
    """The barycenters of every run of the matrix."""
    return sorted({rules.barycenter.output.barycenter.format(**of) for r in RUNS for of in solved(r)})


def costs():
    """The cost of every job of the matrix."""
    found = set()
    for r in RUNS:
        cell = r._asdict()
        teacher = cell | {"seed": experiment.teacher_seed(r.seed)}
        recovered = experiment.family(r.method) == "recover"
        made = [(rules.data, cell), (rules.teacher, teacher), (rules.features, teacher)]
        parts = experiment.features_blocks(r.dataset)
        made += [(rules.features_part, teacher | {"block": block}) for block in parts if len(parts) > 1]
        for block in experiment.blocks(r.dataset, r.teacher, r.method, r.ipc) if recovered else []:
            made += [(rules.recover, cell | {"block": block})]
        made += [(rules.barycenter, of) for of in solved(r)]
        made += [] if recovered else [(rules.select, cell)]
        made += [(rules.relabel, cell)] if labels_of(r) else []
        found |= {rule.output.cost.format(**of) for rule, of in made}
        found |= {
            f"{STUDENT}/run{runs[0]}.cost.json".format(**cell) for runs in experiment.runs_of_jobs() if r.run in runs
        }
    return sorted(found)


def announce(*places):
    """Say where the results are, once, at the end of the run that a person started."""
    if workflow.is_main_process:
        print("Results:", *places, file=sys.stderr)
