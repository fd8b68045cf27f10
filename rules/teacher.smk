# teacher:  data/{dataset}.h5 -> model.safetensors (and model.csv, its history); stops the run below min_accuracy
#   Where `weights` names a file, nothing is trained: the file is an input in place of a training, and the flags name it.
#   Trained by as many processes as the teacher has `gpus`, one a GPU, each with `threads` threads.
# features: one pass of the teacher over the training set -> features.h5, statistics.h5 (per-class BatchNorm)
#   Where a dataset has `features_jobs`, these share the pass by classes (features_part) and gather joins what they made.


rule teacher:
    input:
        data="data/{dataset}.h5",
        weights=weights_of,
    output:
        model="results/{dataset}/{teacher}/teacher/seed{seed}/model.safetensors",
        history="results/{dataset}/{teacher}/teacher/seed{seed}/model.csv",
        cost="results/{dataset}/{teacher}/teacher/seed{seed}/model.cost.json",
    log:
        "logs/{dataset}/{teacher}/teacher/seed{seed}/teacher.log",
    conda:
        "../envs/wmdd.yaml"
    threads: 1
    resources:
        mem_mb=asked("teacher", "mem_mb"),
        runtime=asked("teacher", "runtime"),
        gpu=asked("teacher", "gpu"),
    params:
        processes=gpus_of,
        settings=settings("teacher", ENGINE),
        code=code_digest("teacher"),
    shell:
        "python -m wmdd teacher"
        " --data {input.data}"
        " --output {output.model}"
        " --seed {wildcards.seed}"
        " --processes {params.processes}"
        " --threads {threads}"
        " {params.settings}"
        " > {log} 2>&1"


rule features:
    input:
        data="data/{dataset}.h5",
        teacher="results/{dataset}/{teacher}/teacher/seed{seed}/model.safetensors",
    output:
        features="results/{dataset}/{teacher}/teacher/seed{seed}/features.h5",
        statistics="results/{dataset}/{teacher}/teacher/seed{seed}/statistics.h5",
        cost="results/{dataset}/{teacher}/teacher/seed{seed}/features.cost.json",
    log:
        "logs/{dataset}/{teacher}/teacher/seed{seed}/features.log",
    wildcard_constraints:
        dataset=featured(shared=False),
    conda:
        "../envs/wmdd.yaml"
    threads: 1
    resources:
        mem_mb=asked("features", "mem_mb"),
        runtime=asked("features", "runtime"),
        gpu=asked("features", "gpu"),
    params:
        settings=settings("features", ENGINE),
        code=code_digest("features"),
    shell:
        "python -m wmdd features"
        " --data {input.data}"
        " --teacher {input.teacher}"
        " --output {output.features}"
        " --statistics {output.statistics}"
        " --threads {threads}"
        " {params.settings}"
        " > {log} 2>&1"


rule features_part:
    input:
        data="data/{dataset}.h5",
        teacher="results/{dataset}/{teacher}/teacher/seed{seed}/model.safetensors",
    output:
        part="results/{dataset}/{teacher}/teacher/seed{seed}/features/{block}.h5",
        cost="results/{dataset}/{teacher}/teacher/seed{seed}/features/{block}.cost.json",
    log:
        "logs/{dataset}/{teacher}/teacher/seed{seed}/features/{block}.log",
    conda:
        "../envs/wmdd.yaml"
    threads: 1
    resources:
        mem_mb=asked("features_part", "mem_mb"),
        runtime=asked("features_part", "runtime"),
        gpu=asked("features_part", "gpu"),
    params:
        settings=settings("features", ENGINE),
        code=code_digest("features"),
    shell:
        "python -m wmdd features"
        " --data {input.data}"
        " --teacher {input.teacher}"
        " --output {output.part}"
        " --block {wildcards.block}"
        " --threads {threads}"
        " {params.settings}"
        " > {log} 2>&1"


rule gather:
    input:
        parts_of_features,
    output:
        features="results/{dataset}/{teacher}/teacher/seed{seed}/features.h5",
        statistics="results/{dataset}/{teacher}/teacher/seed{seed}/statistics.h5",
        cost="results/{dataset}/{teacher}/teacher/seed{seed}/features.cost.json",
    log:
        "logs/{dataset}/{teacher}/teacher/seed{seed}/gather.log",
    wildcard_constraints:
        dataset=featured(shared=True),
    conda:
        "../envs/wmdd.yaml"
    threads: 1
    resources:
        mem_mb=asked("gather", "mem_mb"),
        runtime=asked("gather", "runtime"),
    params:
        code=code_digest("gather"),
    shell:
        "python -m wmdd gather"
        " --parts {input}"
        " --output {output.features}"
        " --statistics {output.statistics}"
        " --threads {threads}"
        " > {log} 2>&1"
