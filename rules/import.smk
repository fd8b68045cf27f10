# The family `import`: a set that others made -> images.h5. The teacher looks whether its classes are permuted.


rule images:
    """Taking the {wildcards.ipc} images a class of {wildcards.method}, which others made"""
    input:
        source=inputs.imported,
        data=FILES["data"],
        teacher=inputs.teacher_if_order_checked,
    output:
        images=FILES["images"],
        cost=cost_of(FILES["images"]),
    log:
        STAGES["images"].log,
    wildcard_constraints:
        method=inputs.methods_of("import"),
    conda:
        ENVIRONMENT
    resources:
        **request("images"),
    params:
        teacher=optional("teacher"),
        state=inputs.imported_state,
        settings=inputs.flags("images"),
        code=code_digest("images"),
    shell:
        "python -m wmdd images"
        " --data {input.data}"
        " {params.teacher}"
        " --output {output.images}"
        " --ipc {wildcards.ipc}"
        " --seed {wildcards.seed}"
        " --threads {threads}"
        " {params.settings}"
        " > {log} 2>&1"
