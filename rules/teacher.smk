# data.h5 -> teacher: model.safetensors -> one pass over the training set: features.h5, statistics.h5 (BatchNorm of each class).
# Where `weights` names a file, it is an input and nothing is trained. Where a dataset has `features_jobs`, these share the pass.


rule teacher:
    """Training or loading teacher {wildcards.teacher} of {wildcards.dataset}, seed {wildcards.seed}"""
    input:
        data=FILES["data"],
        weights=inputs.teacher_checkpoint,
    output:
        model=FILES["teacher"],
        history=history_of(FILES["teacher"]),
        cost=cost_of(FILES["teacher"]),
    log:
        STAGES["teacher"].log,
    conda:
        ENVIRONMENT
    resources:
        **request("teacher"),
    params:
        processes=processes,
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
    """Passing {wildcards.dataset} once through teacher {wildcards.teacher}: features and statistics of each class"""
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
        ENVIRONMENT
    resources:
        **request("features"),
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
    """Passing {wildcards.block} of {wildcards.dataset} once through teacher {wildcards.teacher}"""
    input:
        data=FILES["data"],
        teacher=FILES["teacher"],
    output:
        part=joined_later(FILES["features_part"]),
        cost=cost_of(FILES["features_part"]),
    log:
        STAGES["features_part"].log,
    conda:
        ENVIRONMENT
    resources:
        **request("features_part"),
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
    """Joining the features of {wildcards.dataset} by teacher {wildcards.teacher}"""
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
        ENVIRONMENT
    resources:
        **request("gather"),
    params:
        code=code_digest("gather"),
    shell:
        "python -m wmdd gather"
        " --parts {input}"
        " --output {output.features}"
        " --statistics {output.statistics}"
        " --threads {threads}"
        " > {log} 2>&1"
