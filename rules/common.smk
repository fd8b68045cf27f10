# Helpers only: the checked experiment, and functions that turn wildcards into inputs, flags and digests.
import os
import re
import shlex
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger
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
from wmdd.cost.resources import Requests
from wmdd.settings import LabelSettings, Settings, flags as as_flags

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
if workflow.is_main_process:
    for line in experiment.replaced():
        logger.warning(f"warning: {line}")
METHODS = experiment.methods()
ENGINE = experiment.file.engine
REQUESTS = Requests(experiment)


def beside(name):
    """A file of the sources, where the workflow runs or beside the Snakefile."""
    return name if Path(name).is_file() else str(ROOT / name)


PUBLISHED = beside("config/published.yaml")
CIRCLES = beside("docs/images/circles.png")
TEMPLATES = [beside(f"wmdd/page/templates/page.{kind}") for kind in ("html", "css", "js")]


def settings(stage, *more):
    """Flags of a stage's settings for the wildcards of a job; `more` are further settings, or functions that give them."""
    kinds = ("dataset", "teacher", "generator", "expert", "method", "protocol", "student")

    def resolve(wildcards):
        of = {kind: wildcards[kind] for kind in kinds if kind in wildcards.keys()}
        of |= {"generator": experiment.generator(of["method"])} if stage == "decode" else {}
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


def generator(of):
    """A generator's kind and model."""
    return experiment.resolve("generator", dataset=of["dataset"], generator=of["generator"])


def family(*names):
    """A pattern for the methods of some families, of the matrix or that one of it starts from."""
    methods = sorted(method for method in METHODS if experiment.family(method) in names)
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
    return lambda wildcards, attempt, threads, input: getattr(
        REQUESTS.of(rule, wildcards, attempt, threads, len(input)), resource
    )


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


def strategy(of):
    return experiment.resolve("select", dataset=of["dataset"], method=of["method"]).strategy


def sure(wildcards):
    """The teacher, where it says which images count."""
    return from_teacher("model.safetensors")(wildcards) if solver(wildcards).confident < 1 else []


def features_of(wildcards):
    """The features, for strategies that choose by them."""
    unseen = strategy(wildcards) == "patches" or (strategy(wildcards) == "random" and not sure(wildcards))
    return [] if unseen else from_teacher("features.h5")(wildcards)


def looking(wildcards):
    """The teacher, for strategies that ask it."""
    return from_teacher("model.safetensors")(wildcards) if strategy(wildcards) == "patches" else sure(wildcards)


def looked(of):
    """Where a teacher looks at images, if the strategy asks it."""
    return ENGINE if strategy(of) == "patches" else Settings()


def start_of(wildcards):
    """The images that recover begins with, where they are another method's."""
    method = experiment.resolve("recover", dataset=wildcards.dataset, method=wildcards.method).start
    return expand(rules.images.output.images, **dict(wildcards) | {"method": method})[0] if method else []


def from_generator(file):
    """A file of the generator of a job: the one in its path, or its method's; of the diffusion's encoder, if it has the file."""

    def path(wildcards, encoder=True):
        name = dict(wildcards).get("generator") or experiment.generator(wildcards.method)
        name = experiment.encoder(name, wildcards.dataset) if encoder else name
        # the seed in the path of a generator is its own, in that of a method the distillation's
        seed = wildcards.seed if "generator" in wildcards.keys() else experiment.teacher_seed(int(wildcards.seed))
        return f"results/{wildcards.dataset}/latent/{name}/seed{seed}/{file}"

    return path


def generator_of(wildcards, encoder=False):
    """The settings of the generator of a job, or of the one that encodes for it."""
    name = dict(wildcards).get("generator") or experiment.generator(wildcards.method)
    name = experiment.encoder(name, wildcards.dataset) if encoder else name
    return generator({"dataset": wildcards.dataset, "generator": name})


def autoencoder_of(wildcards):
    """The autoencoder, for the kinds that have one."""
    return from_generator("autoencoder.safetensors")(wildcards) if generator_of(wildcards).kind != "ldm" else []


def diffusion_of(wildcards):
    """The diffusion model, for the kind that has one."""
    mine = generator_of(wildcards).kind == "latent-diffusion"
    return from_generator("diffusion.safetensors")(wildcards, encoder=False) if mine else []


def experts_of(wildcards):
    """The trajectories that a method matches, if it does."""
    count = experiment.trajectories(wildcards.dataset, wildcards.method)
    of = {"dataset": wildcards.dataset, "expert": experiment.expert(wildcards.method)} if count else {}
    return [rules.expert.output.trajectory.format(**of, seed=seed) for seed in range(count)]


def model_of(wildcards):
    """What names the parts of a pipeline of the diffusers library, where its model is a folder: a changed model reruns."""
    index = Path(generator_of(wildcards).model or "-").expanduser() / "model_index.json"
    return str(index) if index.is_file() else []


def latents_of(wildcards):
    """The latents of the blocks that hold the classes of a job, or of all."""
    first, last = map(int, dict(wildcards).get("block", "classes0-999999999").removeprefix("classes").split("-"))
    found = []
    for block in experiment.features_blocks(wildcards.dataset):
        begin, end = map(int, block.removeprefix("classes").split("-"))
        found += [from_generator(f"latents/{block}.h5")(wildcards)] if begin <= last and end >= first else []
    return found


def labels_of(wildcards):
    """The file of soft labels, for students that learn from one: the first protocol's that has such labels."""
    of = {kind: getattr(wildcards, kind) for kind in ("dataset", "method", "protocol", "student")}
    if taught(of) not in ("stored", "pruned"):
        return []
    return rules.relabel.output.labels.replace("{protocol}", labelled(wildcards))


def labelled(run):
    """The protocol whose labels a run learns from."""
    return experiment.labelled(run.dataset, run.method, run.protocol)


def asked_by(wildcards):
    """The teacher, for students that ask it."""
    of = {kind: wildcards[kind] for kind in ("dataset", "method", "protocol", "student")}
    return from_teacher("model.safetensors")(wildcards) if taught(of) == "online" else []


def optional(flag, name):
    """A flag with an input, or nothing where the job has no such input."""
    return lambda wildcards, input: f"--{flag} {input[name]}" if input[name] else ""


def blocks_of(wildcards):
    """The recovered, decoded or matched blocks of a distilled set."""
    blocks = experiment.blocks(wildcards.dataset, wildcards.teacher, wildcards.method, int(wildcards.ipc))
    makers = {"recover": rules.recover, "latent": rules.decode, "match": rules.match}
    return expand(makers[experiment.family(wildcards.method)].output.images, block=blocks, **wildcards)


def students(runs=RUNS):
    """The result of every student of the matrix, or of some of its runs."""
    return [f"{STUDENT}/run{{run}}.json".format(**r._asdict()) for r in runs]


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


def sets():
    """Every distilled set of the matrix."""
    return sorted({rules.grid.input.images.format(**r._asdict()) for r in RUNS})


def mapped(wildcards):
    """The distilled sets of the first seed that are put into a map: those with most images per class, of every method."""
    runs = [r for r in RUNS if r[:2] == (wildcards.dataset, wildcards.teacher)] or RUNS
    most = max(r.ipc for r in runs)
    return sorted(
        {rules.grid.input.images.format(**r._asdict()) for r in runs if (r.ipc, r.seed) == (most, runs[0].seed)}
    )


def maps():
    """The map of each dataset and teacher, where the experiment wants one."""
    runs = RUNS if experiment.file.embedding else []
    return sorted({rules.embedding.output.points.format(**r._asdict()) for r in runs})


def first_of(wildcards):
    """The wildcards of a dataset and a teacher with the first seed of the distillation."""
    first = next(r for r in RUNS if r[:2] == (wildcards.dataset, wildcards.teacher))
    return SimpleNamespace(**dict(wildcards) | {"seed": first.seed})


def solved(run):
    """The barycenters that a run of the matrix uses: the wildcards of each block."""
    if experiment.family(run.method) != "recover" or not barycenter_of(run):
        return []
    blocks = experiment.blocks(run.dataset, run.teacher, run.method, run.ipc)
    return [run._asdict() | {"block": block} for block in blocks]


def barycenters():
    """The barycenters of every run of the matrix."""
    return sorted({rules.barycenter.output.barycenter.format(**of) for r in RUNS for of in solved(r)})


def quantized():
    """The atoms of every run of the matrix that quantizes latents."""
    runs = [r for r in RUNS if experiment.family(r.method) == "latent"]
    of = [r._asdict() | {"block": b} for r in runs for b in experiment.blocks(r.dataset, r.teacher, r.method, r.ipc)]
    return sorted({rules.quantize.output.atoms.format(**each) for each in of})


def measured(run):
    """Whether the distance of a run's distilled set to the real data is measured."""
    return experiment.file.distances or experiment.family(run.method) == "latent"


def measurements():
    """The distances of every run of the matrix that are measured."""
    return sorted({rules.distance.output.distance.format(**r._asdict()) for r in RUNS if measured(r)})


def encoders():
    """The generators whose latents the runs of the matrix quantize: the wildcards of each."""
    runs = [r for r in RUNS if experiment.family(r.method) == "latent"]
    return sorted(
        {
            (r.dataset, experiment.encoder(experiment.generator(r.method), r.dataset), experiment.teacher_seed(r.seed))
            for r in runs
        }
    )


def decays():
    """How W2 falls with the number of atoms, for every generator that encodes."""
    return [rules.decay.output.decay.format(dataset=d, generator=g, seed=s) for d, g, s in encoders()]


def costs():
    """The cost of every job of the matrix."""
    found = set()
    for r in RUNS:
        cell, family = r._asdict(), experiment.family(r.method)
        teacher = cell | {"seed": experiment.teacher_seed(r.seed)}
        made = [(rules.data, cell), (rules.teacher, teacher), (rules.features, teacher)]
        parts = experiment.features_blocks(r.dataset)
        made += [(rules.features_part, teacher | {"block": block}) for block in parts if len(parts) > 1]
        for block in experiment.blocks(r.dataset, r.teacher, r.method, r.ipc):
            makers = {"recover": [rules.recover], "latent": [rules.quantize, rules.decode], "match": [rules.match]}
            steps = makers.get(family, [])
            made += [(rule, cell | {"block": block}) for rule in steps]
        made += [(rules.barycenter, of) for of in solved(r)]
        made += [(rules.select, cell)] if family == "select" else []
        made += [(rules.distance, cell)] if measured(r) else []
        made += [(rules.relabel, cell | {"protocol": labelled(r)})] if labels_of(r) else []
        if family == "match":
            experts = [{"expert": experiment.expert(r.method), "seed": n} for n in range(len(experts_of(r)))]
            made += [(rules.expert, cell | of) for of in experts]
        if family == "latent":
            name = experiment.generator(r.method)
            used, encoder = teacher | {"generator": name}, teacher | {"generator": experiment.encoder(name, r.dataset)}
            made += [(rules.encode, encoder | {"block": block}) for block in parts] + [(rules.decay, encoder)]
            made += [(rules.autoencoder, encoder)] if generator(used).kind != "ldm" else []
            made += [(rules.diffusion, used)] if generator(used).kind == "latent-diffusion" else []
        found |= {rule.output.cost.format(**of) for rule, of in made}
        found |= {
            f"{STUDENT}/run{runs[0]}.cost.json".format(**cell) for runs in experiment.runs_of_jobs() if r.run in runs
        }
    return sorted(found)


def announce(*places):
    """Say where the results are, once, at the end of the run that a person started."""
    if workflow.is_main_process:
        print("Results:", *places, file=sys.stderr)
