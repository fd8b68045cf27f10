# The family `select`: data.h5 (and features.h5 or the teacher, where the strategy looks at them) -> images.h5, real images as they
#                      are, several in one, or crops of them


rule select:
    input:
        data="data/{dataset}.h5",
        features=features_of,
        teacher=looking,
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
        gpu=asked("select", "gpu"),
    params:
        features=optional("features", "features"),
        teacher=optional("teacher", "teacher"),
        settings=settings("select", solver, looked),
        code=code_digest("select"),
    shell:
        "python -m wmdd select"
        " --data {input.data}"
        " {params.features}"
        " {params.teacher}"
        " --output {output.images}"
        " --ipc {wildcards.ipc}"
        " --seed {wildcards.seed}"
        " --threads {threads}"
        " {params.settings}"
        " > {log} 2>&1"
