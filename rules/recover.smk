# The family `recover`, per block of classes: features.h5 -> barycenter/{block}.h5 -> recover/{block}.h5; then images.h5, as
# in the families `latent` and `match`. With `delete_blocks` a block's images are deleted once they are joined.


rule barycenter:
    """Computing a barycenter of {wildcards.ipc} atoms for each of {wildcards.block} for {wildcards.method}"""
    input:
        features=inputs.of_teacher("features"),
        teacher=inputs.teacher_if_confident,
    output:
        barycenter=FILES["barycenter"],
        cost=cost_of(FILES["barycenter"]),
    log:
        STAGES["barycenter"].log,
    conda:
        ENVIRONMENT
    resources:
        **request("barycenter"),
    params:
        teacher=optional("teacher"),
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
    """Recovering {wildcards.ipc} images for each of {wildcards.block} by {wildcards.method}"""
    input:
        teacher=inputs.of_teacher("teacher"),
        statistics=inputs.of_teacher("statistics"),
        barycenter=inputs.barycenter_if_feature_term,
        start=inputs.start_images,
    output:
        images=joined_later(FILES["recover"]),
        cost=cost_of(FILES["recover"]),
    log:
        STAGES["recover"].log,
    conda:
        ENVIRONMENT
    resources:
        **request("recover"),
    params:
        barycenter=optional("barycenter"),
        start=optional("start"),
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


rule join:
    """Joining the blocks of {wildcards.method} to a set of {wildcards.ipc} images a class"""
    input:
        inputs.blocks,
    output:
        images=FILES["images"],
        cost=cost_of(FILES["images"]),
    log:
        STAGES["join"].log,
    wildcard_constraints:
        method=inputs.methods_of("recover", "latent", "match"),
    conda:
        ENVIRONMENT
    resources:
        **request("join"),
    params:
        code=code_digest("join"),
    shell:
        "python -m wmdd join" " --blocks {input}" " --output {output.images}" " --threads {threads}" " > {log} 2>&1"
