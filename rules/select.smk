# The family `select`: data.h5 (and features.h5 or the teacher, where the strategy looks at them) -> images.h5, real images as they
#                      are, several in one, or crops of them


rule select:
    input:
        data=FILES["data"],
        features=inputs.features_if_chosen_by,
        teacher=inputs.teacher_if_asked,
    output:
        images=FILES["images"],
        cost=cost_of(FILES["images"]),
    log:
        STAGES["select"].log,
    wildcard_constraints:
        method=inputs.methods_of("select"),
    conda:
        "../envs/wmdd.yaml"
    resources:
        mem_mb=request("select", "mem_mb"),
        runtime=request("select", "runtime"),
        gpu=request("select", "gpu"),
    params:
        features=optional("features", "features"),
        teacher=optional("teacher", "teacher"),
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
