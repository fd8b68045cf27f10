# The family `select`: data.h5 -> images.h5: real images as they are, several in one, or crops of them.


rule select:
    """Selecting {wildcards.ipc} real images a class by {wildcards.method}"""
    input:
        data=FILES["data"],
        features=inputs.features_if_compared,
        teacher=inputs.teacher_if_patches_or_confident,
    output:
        images=FILES["images"],
        cost=cost_of(FILES["images"]),
    log:
        STAGES["select"].log,
    wildcard_constraints:
        method=inputs.methods_of("select"),
    conda:
        ENVIRONMENT
    resources:
        **request("select"),
    params:
        features=optional("features"),
        teacher=optional("teacher"),
        settings=inputs.flags("select"),
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
