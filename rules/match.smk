# The family `match`: data.h5 -> match/{block}.h5; then images.h5 (recover.smk). No teacher takes part.
#   expert: a network trained on the real data, every epoch of which is kept -> expert/{expert}/seed{seed}/trajectory.h5; its
#           seed is its number, and a method of the objective mtt needs those from 0 on
#   match:  images on which networks behave as on real ones, per block of classes (mtt: all of them)


rule expert:
    input:
        data="data/{dataset}.h5",
    output:
        trajectory="results/{dataset}/expert/{expert}/seed{seed}/trajectory.h5",
        history="results/{dataset}/expert/{expert}/seed{seed}/trajectory.csv",
        cost="results/{dataset}/expert/{expert}/seed{seed}/trajectory.cost.json",
    log:
        "logs/{dataset}/expert/{expert}/seed{seed}/expert.log",
    conda:
        "../envs/wmdd.yaml"
    threads: 1
    resources:
        mem_mb=asked("expert", "mem_mb"),
        runtime=asked("expert", "runtime"),
        gpu=asked("expert", "gpu"),
    params:
        settings=settings("expert", ENGINE),
        code=code_digest("expert"),
    shell:
        "python -m wmdd expert"
        " --data {input.data}"
        " --output {output.trajectory}"
        " --seed {wildcards.seed}"
        " --threads {threads}"
        " {params.settings}"
        " > {log} 2>&1"


rule match:
    input:
        data="data/{dataset}.h5",
        experts=experts_of,
    output:
        images="results/{dataset}/{teacher}/{method}/ipc{ipc}/seed{seed}/match/{block}.h5",
        cost="results/{dataset}/{teacher}/{method}/ipc{ipc}/seed{seed}/match/{block}.cost.json",
    log:
        "logs/{dataset}/{teacher}/{method}/ipc{ipc}/seed{seed}/match/{block}.log",
    conda:
        "../envs/wmdd.yaml"
    threads: 1
    resources:
        mem_mb=asked("match", "mem_mb"),
        runtime=asked("match", "runtime"),
        gpu=asked("match", "gpu"),
    params:
        experts=optional("experts", "experts"),
        settings=settings("match", ENGINE),
        code=code_digest("match"),
    shell:
        "python -m wmdd match"
        " --data {input.data}"
        " {params.experts}"
        " --output {output.images}"
        " --block {wildcards.block}"
        " --ipc {wildcards.ipc}"
        " --seed {wildcards.seed}"
        " --threads {threads}"
        " {params.settings}"
        " > {log} 2>&1"
