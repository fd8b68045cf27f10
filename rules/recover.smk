# The family `recover`, per class block: features.h5 -> barycenter/{block}.h5 -> recover/{block}.h5; then images.h5
#   barycenter: Wasserstein barycenter of each class, IPC atoms, and how good it is
#   recover:    images that match it under BatchNorm statistics
#   images:     the blocks joined, every class once; those of the families `latent` and `match` too


rule barycenter:
    input:
        features=inputs.of_teacher("features"),
        teacher=inputs.teacher_if_confident,
    output:
        barycenter=FILES["barycenter"],
        cost=cost_of(FILES["barycenter"]),
    log:
        STAGES["barycenter"].log,
    conda:
        "../envs/wmdd.yaml"
    resources:
        mem_mb=request("barycenter", "mem_mb"),
        runtime=request("barycenter", "runtime"),
    params:
        teacher=optional("teacher", "teacher"),
        settings=inputs.flags("barycenter"),
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
        teacher=inputs.of_teacher("teacher"),
        statistics=inputs.of_teacher("statistics"),
        barycenter=inputs.barycenter_if_matched,
        start=inputs.start,
    output:
        images=FILES["recover"],
        cost=cost_of(FILES["recover"]),
    log:
        STAGES["recover"].log,
    conda:
        "../envs/wmdd.yaml"
    resources:
        mem_mb=request("recover", "mem_mb"),
        runtime=request("recover", "runtime"),
        gpu=request("recover", "gpu"),
    params:
        barycenter=optional("barycenter", "barycenter"),
        start=optional("start", "start"),
        settings=inputs.flags("recover"),
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
        inputs.blocks,
    output:
        images=FILES["images"],
        cost=cost_of(FILES["images"]),
    log:
        STAGES["images"].log,
    wildcard_constraints:
        method=inputs.methods_of("recover", "latent", "match"),
    conda:
        "../envs/wmdd.yaml"
    resources:
        mem_mb=request("images", "mem_mb"),
        runtime=request("images", "runtime"),
    params:
        code=code_digest("images"),
    shell:
        "python -m wmdd images" " --blocks {input}" " --output {output.images}" " --threads {threads}" " > {log} 2>&1"
