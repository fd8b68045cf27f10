# grid:   images.h5 -> a picture, a row a class
# report: all students of the matrix -> table.md, table.csv; cost.md; its barycenters -> barycenters.md, barycenters.csv;
#         its data -> datasets.md; every run and cost as it is -> runs.json
# embedding: distilled sets and features of a teacher -> maps/: where the images are near each other
# page:   everything -> index.html, and its charts in figures/ (target: figures)
# table:  the students of an entry of the matrix that has a name -> tables/ (target: the name)
# distances: W2 of atoms and distilled sets to the real data, and its decay -> distances.md, distances.csv, distances.png


rule grid:
    input:
        images=FILES["images"],
    output:
        picture=report(
            FILES["grid"],
            caption="captions/grid.rst",
            category="Distilled images",
            subcategory="{dataset}",
            labels={"method": "{method}", "images per class": "{ipc}", "seed": "{seed}"},
        ),
    log:
        STAGES["grid"].log,
    conda:
        "../envs/wmdd.yaml"
    resources:
        mem_mb=request("grid", "mem_mb"),
        runtime=request("grid", "runtime"),
    params:
        code=code_digest("grid"),
    shell:
        "python -m wmdd grid" " --images {input.images}" " --output {output.picture}" " > {log} 2>&1"


rule report:
    input:
        students=inputs.students(),
        images=inputs.sets(),
        teachers=inputs.teachers(),
        datasets=inputs.datasets(),
        barycenters=inputs.barycenters(),
        costs=all_costs,
    output:
        table=report(f"{REPORT}/table.md", caption="captions/table.rst", category="Results"),
        csv=report(f"{REPORT}/table.csv", caption="captions/table.rst", category="Results"),
        cost=report(f"{REPORT}/cost.md", caption="captions/cost.rst", category="Results"),
        barycenters=report(f"{REPORT}/barycenters.md", caption="captions/barycenters.rst", category="Results"),
        barycenters_csv=report(f"{REPORT}/barycenters.csv", caption="captions/barycenters.rst", category="Results"),
        datasets=report(f"{REPORT}/datasets.md", caption="captions/datasets.rst", category="Results"),
        runs=f"{REPORT}/runs.json",
    log:
        STAGES["report"].log,
    conda:
        "../envs/wmdd.yaml"
    resources:
        mem_mb=request("report", "mem_mb"),
        runtime=request("report", "runtime"),
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
        distances=inputs.distances(),
        atoms=inputs.quantized(),
        decays=inputs.decays(),
    output:
        table=report(f"{REPORT}/distances.md", caption="captions/distances.rst", category="Results"),
        csv=report(f"{REPORT}/distances.csv", caption="captions/distances.rst", category="Results"),
        figure=report(f"{REPORT}/distances.png", caption="captions/distances.rst", category="Results"),
    log:
        STAGES["distances"].log,
    conda:
        "../envs/wmdd.yaml"
    resources:
        mem_mb=request("distances", "mem_mb"),
        runtime=request("distances", "runtime"),
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
        images=inputs.mapped,
        teacher=inputs.of_map("teacher"),
        features=inputs.of_map("features"),
    output:
        points=FILES["map"],
    log:
        STAGES["embedding"].log,
    conda:
        "../envs/wmdd.yaml"
    resources:
        mem_mb=request("embedding", "mem_mb"),
        runtime=request("embedding", "runtime"),
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
        students=inputs.students(),
        histories=inputs.histories(),
        costs=all_costs,
        datasets=inputs.datasets(),
        teachers=inputs.teachers(),
        images=inputs.sets(),
        barycenters=inputs.barycenters(),
        distances=inputs.distances(),
        atoms=inputs.quantized(),
        decays=inputs.decays(),
        maps=inputs.maps(),
        published=PUBLISHED,
        circles=CIRCLES if Path(CIRCLES).is_file() else [],
        templates=TEMPLATES,
        tables=[*rules.report.output, *(rules.distances.output if inputs.distances() else [])],
    output:
        page=report(f"{REPORT}/index.html", caption="captions/page.rst", category="Results"),
        figures=directory(f"{REPORT}/figures"),
    log:
        STAGES["page"].log,
    conda:
        "../envs/wmdd.yaml"
    resources:
        mem_mb=request("page", "mem_mb"),
        runtime=request("page", "runtime"),
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
        students=lambda wildcards: inputs.students(experiment.named()[wildcards.table]),
        images=lambda wildcards: inputs.sets(experiment.named()[wildcards.table]),
        published=PUBLISHED,
    output:
        table=f"{REPORT}/tables/{{table}}.md",
        csv=f"{REPORT}/tables/{{table}}.csv",
        latex=f"{REPORT}/tables/{{table}}.tex",
    log:
        log_of("table", f"{REPORT}/tables/{{table}}.md"),
    conda:
        "../envs/wmdd.yaml"
    resources:
        mem_mb=request("table", "mem_mb"),
        runtime=request("table", "runtime"),
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

    rule:
        name:
            name
        input:
            f"{REPORT}/tables/{name}.md",


rule figures:
    input:
        rules.page.output,
