# All results of the matrix -> results/report/: tables, the page with its charts, a picture of each distilled set.
PUBLISHED = source("config/published.yaml")
TEMPLATES = [
    source(f"wmdd/report/page/templates/{name}") for name in ("page.html", "page.css", "page.js", "table.html")
]


rule grid:
    """Drawing the {wildcards.ipc} images a class of {wildcards.method}"""
    input:
        images=FILES["images"],
    output:
        picture=report(
            FILES["grid"],
            category="Distilled images",
            subcategory="{dataset}",
            labels={"method": "{method}", "images per class": "{ipc}", "seed": "{seed}"},
        ),
    log:
        STAGES["grid"].log,
    conda:
        ENVIRONMENT
    resources:
        **request("grid"),
    params:
        code=code_digest("grid"),
    shell:
        "python -m wmdd grid" " --images {input.images}" " --output {output.picture}" " > {log} 2>&1"


rule report:
    """Writing the tables of results, costs, data and barycenters"""
    input:
        students=inputs.students(),
        images=inputs.files_of("images"),  # read for their family, by the paths of the students
        teachers=inputs.files_of_teachers("teacher"),
        datasets=inputs.files_of("data"),
        barycenters=inputs.barycenters(),
        costs=lambda wildcards: all_costs(),
    output:
        table=result("table.md"),
        csv=result("table.csv"),
        cost=result("cost.md"),
        barycenters=result("barycenters.md"),
        barycenters_csv=result("barycenters.csv"),
        datasets=result("datasets.md"),
        runs=f"{REPORT}/runs.json",
    log:
        STAGES["report"].log,
    conda:
        ENVIRONMENT
    resources:
        **request("report"),
    params:
        barycenters=optional("barycenters"),
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
    """Writing the tables of distances to the real data"""
    input:
        distances=inputs.distances(),
        atoms=inputs.quantized(),
        decays=inputs.decays(),
    output:
        table=result("distances.md"),
        csv=result("distances.csv"),
        figure=result("distances.png"),
    log:
        STAGES["distances"].log,
    conda:
        ENVIRONMENT
    resources:
        **request("distances"),
    params:
        optional=optional("atoms", "decays"),
        code=code_digest("distances"),
    shell:
        "python -m wmdd distances"
        " --distances {input.distances}"
        " {params.optional}"
        " --table {output.table}"
        " --csv {output.csv}"
        " --figure {output.figure}"
        " > {log} 2>&1"


TABLES = [*rules.report.output, *(rules.distances.output if inputs.distances() else [])]


rule embedding:
    """Mapping the distilled images of {wildcards.dataset} by the features of teacher {wildcards.teacher}"""
    input:
        images=inputs.mapped,
        teacher=inputs.of_map("teacher"),
        features=inputs.of_map("features"),
    output:
        points=FILES["map"],
    log:
        STAGES["embedding"].log,
    conda:
        ENVIRONMENT
    resources:
        **request("embedding"),
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
    """Writing the page of {params.experiment} and its charts"""
    input:
        students=inputs.students(),
        histories=inputs.histories(),
        costs=lambda wildcards: all_costs(),
        datasets=inputs.files_of("data"),
        teachers=inputs.files_of_teachers("teacher"),
        images=inputs.files_of("images"),
        barycenters=inputs.barycenters(),
        distances=inputs.distances(),
        atoms=inputs.quantized(),
        decays=inputs.decays(),
        embeddings=inputs.maps(),
        published=tracked(PUBLISHED),
        templates=tracked(*TEMPLATES),
        tables=TABLES,
    output:
        page=result("index.html"),
        figures=directory(f"{REPORT}/figures"),
    log:
        STAGES["page"].log,
    conda:
        ENVIRONMENT
    resources:
        **request("page"),
    params:
        optional=optional("barycenters", "distances", "atoms", "decays", "embeddings"),
        published=lambda wildcards: shlex.quote(PUBLISHED),
        experiment=experiment.file.experiment,
        price=price,
        command=again,
        code=code_digest("page"),
    shell:
        "python -m wmdd page"
        " --experiment {params.experiment}"
        " --students {input.students}"
        " --costs {input.costs}"
        " --datasets {input.datasets}"
        " --teachers {input.teachers}"
        " --images {input.images}"
        " {params.optional}"
        " --published {params.published}"
        " --links {input.tables:q}"
        " {params.price}"
        " --command {params.command}"
        " --output {output.page}"
        " --figures {output.figures}"
        " > {log} 2>&1"


# The runs of an entry of the matrix that has a name, as a table: `snakemake --configfile config/paper.yaml table1`.
rule table:
    """Writing the table of the entry {wildcards.table} of the matrix"""
    input:
        students=lambda wildcards: inputs.students(experiment.named()[wildcards.table]),
        images=lambda wildcards: inputs.files_of("images", experiment.named()[wildcards.table]),  # as in `report`
        published=tracked(PUBLISHED),
    output:
        table=f"{REPORT}/tables/{{table}}.md",
        csv=f"{REPORT}/tables/{{table}}.csv",
        latex=f"{REPORT}/tables/{{table}}.tex",
    log:
        log_of("table", f"{REPORT}/tables/{{table}}.md"),
    conda:
        ENVIRONMENT
    resources:
        **request("table"),
    params:
        published=lambda wildcards: shlex.quote(PUBLISHED),
        code=code_digest("table"),
    shell:
        "python -m wmdd table"
        " --students {input.students}"
        " --published {params.published}"
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
            lambda wildcards, name=name: costs(workflow.rules, inputs.students(experiment.named()[name])),


rule figures:
    input:
        rules.page.output,
