# The workflow of wmdd. `snakemake` runs config/config.yaml; another experiment: `snakemake --configfile FILE`.
from snakemake.utils import min_version

min_version("9.14")


include: "rules/common.smk"


# Built from envs/Dockerfile, for `snakemake --sdm conda apptainer` (docs/use/cluster.md).
if IMAGE:

    containerized: IMAGE


include: "rules/data.smk"
include: "rules/teacher.smk"
include: "rules/recover.smk"
include: "rules/select.smk"
include: "rules/latent.smk"
include: "rules/match.smk"
include: "rules/import.smk"
include: "rules/student.smk"
include: "rules/report.smk"
include: "rules/tracking.smk"


report: "rules/report.rst"


# Snakemake prints the docstring of a rule at each of its jobs, its log, and what it asks a scheduler for.
for documented in workflow.modifier.rules:
    if documented.docstring:
        requests = [
            f"{name}={{resources.{name}}}" for name in ("mem_mb", "runtime", "gpu") if name in documented.resources
        ]
        resources = ", ".join(["threads={threads}", *requests])
        documented.message = f"{documented.docstring}\n    log: {{log}}\n    resources: {resources}"


wildcard_constraints:
    **WILDCARDS,
    table=any_of(experiment.named()),


localrules:
    all,
    distances,
    figures,
    grid,
    page,
    report,
    scoreboard,
    table,


rule all:
    default_target: True
    input:
        TABLES,
        rules.page.output,
        inputs.grids(),
        SCOREBOARD,
        # Snakemake deletes the files of a job that runs again. If it then fails, its missing cost file makes the next run
        # start it once more, although what was made from its old files is still there.
        lambda wildcards: all_costs(),


onstart:
    hold(workflow)


onsuccess:
    if workflow.is_main_process:
        results = [*rules.page.output, *(table for table in TABLES if table.endswith(".md")), f"{REPORT}/images"]
        if there := [path for path in results if Path(path).exists()]:
            print("Results:", *there, file=sys.stderr)
