# The workflow of wmdd. `snakemake` runs config/config.yaml; another experiment: `snakemake --configfile FILE`.
if not config:

    configfile: "config/config.yaml"


include: "rules/common.smk"


# Built from envs/Dockerfile, for `snakemake --sdm conda apptainer` (docs/cluster.md).
if IMAGE:

    containerized: IMAGE


include: "rules/data.smk"
include: "rules/teacher.smk"
include: "rules/recover.smk"
include: "rules/select.smk"
include: "rules/latent.smk"
include: "rules/match.smk"
include: "rules/student.smk"
include: "rules/report.smk"


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
    table,


rule all:
    default_target: True
    input:
        rules.report.output,
        rules.distances.output if inputs.distances() else [],
        rules.page.output,
        inputs.grids(),


onstart:
    hold(workflow)


onsuccess:
    announce(
        f"{REPORT}/index.html",
        f"{REPORT}/table.md",
        f"{REPORT}/datasets.md",
        f"{REPORT}/cost.md",
        f"{REPORT}/barycenters.md",
        *([f"{REPORT}/distances.md"] if inputs.distances() else []),
        f"{REPORT}/images/",
    )
