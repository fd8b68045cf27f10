# data: raw pictures -> data/{dataset}.h5
#   Reads every picture once. The folder itself is not watched: delete the file after changing pictures.
#   What wmdd/datasets.yaml says of the pictures is watched.

from wmdd.catalogue import known


rule data:
    output:
        data="data/{dataset}.h5",
        cost="data/{dataset}.cost.json",
    log:
        "logs/data/{dataset}.log",
    conda:
        "../envs/wmdd.yaml"
    threads: 1
    resources:
        mem_mb=asked("data", "mem_mb"),
        runtime=asked("data", "runtime"),
    params:
        settings=settings("data"),
        pictures=lambda wildcards: known(experiment.resolve("data", dataset=wildcards.dataset).source).pictures(),
        code=code_digest("data"),
    shell:
        "python -m wmdd data"
        " --name {wildcards.dataset}"
        " --output {output.data}"
        " --threads {threads}"
        " {params.settings}"
        " > {log} 2>&1"
