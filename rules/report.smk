# grid:   images.h5 -> a picture, a row a class
# report: all students of the matrix -> table.md, table.csv; cost.md; its barycenters -> barycenters.md, barycenters.csv;
#         its data -> datasets.md; every run and cost as it is -> runs.json
# embedding: distilled sets and features of a teacher -> maps/: where the images are near each other
# page:   everything -> index.html, and its charts in figures/ (target: figures)
# table:  the students of an entry of the matrix that has a name -> tables/ (target: the name)
# distances: W2 of atoms and distilled sets to the real data, and its decay -> distances.md, distances.csv, distances.png


rule grid:
    input:
        images="results/{dataset}/{teacher}/{method}/ipc{ipc}/seed{seed}/images.h5",
    output:
        picture=report(
            "results/report/images/{dataset}/{teacher}/{method}/ipc{ipc}-seed{seed}.png",
            caption="captions/grid.rst",
            category="Distilled images",
            subcategory="{dataset}",
            labels={"method": "{method}", "images per class": "{ipc}", "seed": "{seed}"},
        ),
    log:
        "logs/report/images/{dataset}/{teacher}/{method}/ipc{ipc}-seed{seed}.log",
    conda:
        "../envs/wmdd.yaml"
    threads: 1
    resources:
        mem_mb=asked("grid", "mem_mb"),
        runtime=asked("grid", "runtime"),
    params:
        code=code_digest("grid"),
    shell:
        "python -m wmdd grid" " --images {input.images}" " --output {output.picture}" " > {log} 2>&1"


rule report:
    input:
        students=students(),
        teachers=teachers(),
        datasets=datasets(),
        barycenters=barycenters(),
        costs=costs(),
    output:
        table=report("results/report/table.md", caption="captions/table.rst", category="Results"),
        csv=report("results/report/table.csv", caption="captions/table.rst", category="Results"),
        cost=report("results/report/cost.md", caption="captions/cost.rst", category="Results"),
        barycenters=report("results/report/barycenters.md", caption="captions/barycenters.rst", category="Results"),
        barycenters_csv=report("results/report/barycenters.csv", caption="captions/barycenters.rst", category="Results"),
        datasets=report("results/report/datasets.md", caption="captions/datasets.rst", category="Results"),
        runs="results/report/runs.json",
    log:
        "logs/report/report.log",
    conda:
        "../envs/wmdd.yaml"
    threads: 1
    resources:
        mem_mb=asked("report", "mem_mb"),
        runtime=asked("report", "runtime"),
    params:
        barycenters=optional("barycenters", "barycenters"),
        code=code_digest("report"),
    shell:
        "python -m wmdd report"
        " --students {input.students}"
        " --teachers {input.teachers}"
        " {params.barycenters}"
        " --datasets {input.datasets}"
        " --costs {input.costs}"
        " --table {output.table}"
        " --csv {output.csv}"
        " --cost-table {output.cost}"
        " --barycenter-table {output.barycenters}"
        " --barycenter-csv {output.barycenters_csv}"
        " --dataset-table {output.datasets}"
        " --runs {output.runs}"
        " > {log} 2>&1"


rule distances:
    input:
        distances=measurements(),
        atoms=quantized(),
        decays=decays(),
    output:
        table=report("results/report/distances.md", caption="captions/distances.rst", category="Results"),
        csv=report("results/report/distances.csv", caption="captions/distances.rst", category="Results"),
        figure=report("results/report/distances.png", caption="captions/distances.rst", category="Results"),
    log:
        "logs/report/distances.log",
    conda:
        "../envs/wmdd.yaml"
    threads: 1
    resources:
        mem_mb=asked("distances", "mem_mb"),
        runtime=asked("distances", "runtime"),
    params:
        atoms=optional("atoms", "atoms"),
        decays=optional("decays", "decays"),
        code=code_digest("distances"),
    shell:
        "python -m wmdd distances"
        " --distances {input.distances}"
        " {params.atoms}"
        " {params.decays}"
        " --table {output.table}"
        " --csv {output.csv}"
        " --figure {output.figure}"
        " > {log} 2>&1"


rule embedding:
    input:
        images=mapped,
        teacher=lambda wildcards: from_teacher("model.safetensors")(first_of(wildcards)),
        features=lambda wildcards: from_teacher("features.h5")(first_of(wildcards)),
    output:
        points="results/report/maps/{dataset}/{teacher}.json",
    log:
        "logs/report/maps/{dataset}/{teacher}.log",
    conda:
        "../envs/wmdd.yaml"
    threads: 1
    resources:
        mem_mb=asked("embedding", "mem_mb"),
        runtime=asked("embedding", "runtime"),
    params:
        code=code_digest("embedding"),
    shell:
        "python -m wmdd embedding"
        " --images {input.images}"
        " --teacher {input.teacher}"
        " --features {input.features}"
        " --output {output.points}"
        " --threads {threads}"
        " > {log} 2>&1"


rule page:
    input:
        students=students(),
        costs=costs(),
        datasets=datasets(),
        teachers=teachers(),
        images=sets(),
        barycenters=barycenters(),
        distances=measurements(),
        atoms=quantized(),
        decays=decays(),
        maps=maps(),
        published=PUBLISHED,
        circles=CIRCLES if Path(CIRCLES).is_file() else [],
        templates=TEMPLATES,
        tables=[*rules.report.output, *(rules.distances.output if measurements() else [])],
    output:
        page=report("results/report/index.html", caption="captions/page.rst", category="Results"),
        figures=directory("results/report/figures"),
    log:
        "logs/report/page.log",
    conda:
        "../envs/wmdd.yaml"
    threads: 1
    resources:
        mem_mb=asked("page", "mem_mb"),
        runtime=asked("page", "runtime"),
    params:
        barycenters=optional("barycenters", "barycenters"),
        distances=optional("distances", "distances"),
        atoms=optional("atoms", "atoms"),
        decays=optional("decays", "decays"),
        maps=optional("embeddings", "maps"),
        circles=optional("circles", "circles"),
        experiment=experiment.file.experiment,
        code=code_digest("page"),
    shell:
        "python -m wmdd page"
        " --experiment {params.experiment}"
        " --students {input.students}"
        " --costs {input.costs}"
        " --datasets {input.datasets}"
        " --teachers {input.teachers}"
        " --images {input.images}"
        " {params.barycenters}"
        " {params.distances}"
        " {params.atoms}"
        " {params.decays}"
        " {params.maps}"
        " {params.circles}"
        " --published {input.published}"
        " --links {input.tables}"
        " --output {output.page}"
        " --figures {output.figures}"
        " > {log} 2>&1"


# The runs of an entry of the matrix that has a name, as a table: `snakemake --configfile config/paper.yaml table1`.
rule table:
    input:
        students=lambda wildcards: students(experiment.named()[wildcards.table]),
        published=PUBLISHED,
    output:
        table="results/report/tables/{table}.md",
        csv="results/report/tables/{table}.csv",
        latex="results/report/tables/{table}.tex",
    log:
        "logs/report/tables/{table}.log",
    conda:
        "../envs/wmdd.yaml"
    threads: 1
    resources:
        mem_mb=asked("table", "mem_mb"),
        runtime=asked("table", "runtime"),
    params:
        code=code_digest("table"),
    shell:
        "python -m wmdd table"
        " --students {input.students}"
        " --published {input.published}"
        " --table {output.table}"
        " --csv {output.csv}"
        " --latex {output.latex}"
        " > {log} 2>&1"


for name in experiment.named():
    if name in {rule.name for rule in workflow.rules}:
        raise WorkflowError(f"matrix: the name {name} is that of a rule; choose another")

    rule:
        name:
            name
        input:
            f"results/report/tables/{name}.md",


rule figures:
    input:
        rules.page.output,
