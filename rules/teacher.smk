# teacher:  data/{dataset}.h5 -> model.safetensors (and model.csv, its history); stops the run below min_accuracy
#   Where `weights` names a file, nothing is trained: the file is an input in place of a training, and the flags name it.
#   Trained by as many processes as the teacher has `gpus`, one a GPU, each with `threads` threads.
# features: one pass of the teacher over the training set -> features.h5, statistics.h5 (per-class BatchNorm)
#   Where a dataset has `features_jobs`, these share the pass by classes (features_part) and gather joins what they made.


rule teacher:
    input:
        data=FILES["data"],
        weights=inputs.weights,
    output:
        model=FILES["teacher"],
        history=history_of(FILES["teacher"]),
        cost=cost_of(FILES["teacher"]),
    log:
        STAGES["teacher"].log,
    conda:
        "../envs/wmdd.yaml"
    resources:
        mem_mb=request("teacher", "mem_mb"),
        runtime=request("teacher", "runtime"),
        gpu=request("teacher", "gpu"),
    params:
        processes=gpus_of,
        settings=inputs.flags("teacher"),
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
        data=FILES["data"],
        teacher=FILES["teacher"],
    output:
        features=FILES["features"],
        statistics=FILES["statistics"],
        cost=cost_of(FILES["features"]),
    log:
        STAGES["features"].log,
    wildcard_constraints:
        dataset=inputs.datasets_with(shared=False),
    conda:
        "../envs/wmdd.yaml"
    resources:
        mem_mb=request("features", "mem_mb"),
        runtime=request("features", "runtime"),
        gpu=request("features", "gpu"),
    params:
        settings=inputs.flags("features"),
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
        data=FILES["data"],
        teacher=FILES["teacher"],
    output:
        part=FILES["features_part"],
        cost=cost_of(FILES["features_part"]),
    log:
        STAGES["features_part"].log,
    conda:
        "../envs/wmdd.yaml"
    resources:
        mem_mb=request("features_part", "mem_mb"),
        runtime=request("features_part", "runtime"),
        gpu=request("features_part", "gpu"),
    params:
        settings=inputs.flags("features"),
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
        inputs.features_parts,
    output:
        features=FILES["features"],
        statistics=FILES["statistics"],
        cost=cost_of(FILES["features"]),
    log:
        STAGES["gather"].log,
    wildcard_constraints:
        dataset=inputs.datasets_with(shared=True),
    conda:
        "../envs/wmdd.yaml"
    resources:
        mem_mb=request("gather", "mem_mb"),
        runtime=request("gather", "runtime"),
    params:
        code=code_digest("gather"),
    shell:
        "python -m wmdd gather"
        " --parts {input}"
        " --output {output.features}"
        " --statistics {output.statistics}"
        " --threads {threads}"
        " > {log} 2>&1"
