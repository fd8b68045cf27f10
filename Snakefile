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
    dataset=NAME,
    teacher=NAME,
    generator=NAME,
    expert=NAME,
    method=NAME,
    student=NAME,
    protocol=NAME,
    ipc=r"\d+",
    seed=r"\d+",
    run=r"\d+",
    block=r"classes\d+-\d+",
    table="|".join(map(re.escape, experiment.named())) or r"(?!)",


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
        rules.distances.output if measurements() else [],
        rules.page.output,
        grids(),


onstart:
    hold(workflow)


onsuccess:
    announce(
        "results/report/index.html",
        "results/report/table.md",
        "results/report/datasets.md",
        "results/report/cost.md",
        "results/report/barycenters.md",
        *(["results/report/distances.md"] if measurements() else []),
        "results/report/images/",
    )
