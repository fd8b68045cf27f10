# The family `select`: data.h5 (and features.h5 where the strategy looks at them) -> images.h5, real images as they are


rule select:
    input:
        data="data/{dataset}.h5",
        features=features_of,
    output:
        images="results/{dataset}/{teacher}/{method}/ipc{ipc}/seed{seed}/images.h5",
        cost="results/{dataset}/{teacher}/{method}/ipc{ipc}/seed{seed}/images.cost.json",
    log:
        "logs/{dataset}/{teacher}/{method}/ipc{ipc}/seed{seed}/select.log",
    wildcard_constraints:
        method=family("select"),
    conda:
        "../envs/wmdd.yaml"
    threads: 1
    resources:
        mem_mb=asked("select", "mem_mb"),
        runtime=asked("select", "runtime"),
    params:
        features=optional("features", "features"),
        settings=settings("select", solver),
        code=code_digest("select"),
    shell:
        "python -m wmdd select"
        " --data {input.data}"
        " {params.features}"
        " --output {output.images}"
        " --ipc {wildcards.ipc}"
        " --seed {wildcards.seed}"
        " --threads {threads}"
        " {params.settings}"
        " > {log} 2>&1"
