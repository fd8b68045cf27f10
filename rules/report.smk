# grid:   images.h5 -> a picture, a row a class
# report: all students of the matrix -> table.md, table.csv; cost.md; its barycenters -> barycenters.md, barycenters.csv;
#         its data -> datasets.md
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
