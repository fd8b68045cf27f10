# The family `recover`, per class block: features.h5 -> barycenter/{block}.h5 -> recover/{block}.h5; then images.h5
#   barycenter: Wasserstein barycenter of each class, IPC atoms, and how good it is
#   recover:    images that match it under BatchNorm statistics
#   images:     the blocks joined, every class once; those of the families `latent` and `match` too


rule barycenter:
    input:
        features=from_teacher("features.h5"),
        teacher=sure,
    output:
        barycenter="results/{dataset}/{teacher}/{method}/ipc{ipc}/seed{seed}/barycenter/{block}.h5",
        cost="results/{dataset}/{teacher}/{method}/ipc{ipc}/seed{seed}/barycenter/{block}.cost.json",
    log:
        "logs/{dataset}/{teacher}/{method}/ipc{ipc}/seed{seed}/barycenter/{block}.log",
    conda:
        "../envs/wmdd.yaml"
    threads: 1
    resources:
        mem_mb=asked("barycenter", "mem_mb"),
        runtime=asked("barycenter", "runtime"),
    params:
        teacher=optional("teacher", "teacher"),
        settings=settings("barycenter"),
        code=code_digest("barycenter"),
    shell:
        "python -m wmdd barycenter"
        " --features {input.features}"
        " {params.teacher}"
        " --output {output.barycenter}"
        " --block {wildcards.block}"
        " --k {wildcards.ipc}"
        " --seed {wildcards.seed}"
        " --threads {threads}"
        " {params.settings}"
        " > {log} 2>&1"


rule recover:
    input:
        teacher=from_teacher("model.safetensors"),
        statistics=from_teacher("statistics.h5"),
        barycenter=barycenter_of,
        start=start_of,
    output:
        images="results/{dataset}/{teacher}/{method}/ipc{ipc}/seed{seed}/recover/{block}.h5",
        cost="results/{dataset}/{teacher}/{method}/ipc{ipc}/seed{seed}/recover/{block}.cost.json",
    log:
        "logs/{dataset}/{teacher}/{method}/ipc{ipc}/seed{seed}/recover/{block}.log",
    conda:
        "../envs/wmdd.yaml"
    threads: 1
    resources:
        mem_mb=asked("recover", "mem_mb"),
        runtime=asked("recover", "runtime"),
        gpu=asked("recover", "gpu"),
    params:
        barycenter=optional("barycenter", "barycenter"),
        start=optional("start", "start"),
        settings=settings("recover", ENGINE),
        code=code_digest("recover"),
    shell:
        "python -m wmdd recover"
        " --teacher {input.teacher}"
        " --class-statistics {input.statistics}"
        " {params.barycenter}"
        " {params.start}"
        " --output {output.images}"
        " --block {wildcards.block}"
        " --ipc {wildcards.ipc}"
        " --seed {wildcards.seed}"
        " --threads {threads}"
        " {params.settings}"
        " > {log} 2>&1"


rule images:
    input:
        blocks_of,
    output:
        images="results/{dataset}/{teacher}/{method}/ipc{ipc}/seed{seed}/images.h5",
        cost="results/{dataset}/{teacher}/{method}/ipc{ipc}/seed{seed}/images.cost.json",
    log:
        "logs/{dataset}/{teacher}/{method}/ipc{ipc}/seed{seed}/images.log",
    wildcard_constraints:
        method=family("recover", "latent", "match"),
    conda:
        "../envs/wmdd.yaml"
    threads: 1
    resources:
        mem_mb=asked("images", "mem_mb"),
        runtime=asked("images", "runtime"),
    params:
        code=code_digest("images"),
    shell:
        "python -m wmdd images" " --blocks {input}" " --output {output.images}" " --threads {threads}" " > {log} 2>&1"
