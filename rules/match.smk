# The family `match`: data.h5 (-> expert/{expert}/seed{seed}/trajectory.h5, for mtt) -> match/{block}.h5; then images.h5
# (recover.smk). No teacher takes part. An expert's seed is its number; mtt needs those from 0 on, and one block of all classes.


rule expert:
    """Training expert {wildcards.expert} on {wildcards.dataset}, seed {wildcards.seed}, and keeping every epoch"""
    input:
        data=FILES["data"],
    output:
        trajectory=FILES["expert"],
        history=history_of(FILES["expert"]),
        cost=cost_of(FILES["expert"]),
    log:
        STAGES["expert"].log,
    conda:
        ENVIRONMENT
    resources:
        **request("expert"),
    params:
        settings=inputs.flags("expert"),
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
    """Matching how networks behave on {wildcards.block} by {wildcards.ipc} images a class of {wildcards.method}"""
    input:
        data=FILES["data"],
        experts=inputs.experts,
        start=inputs.start_images,
    output:
        images=joined_later(FILES["match"]),
        cost=cost_of(FILES["match"]),
    log:
        STAGES["match"].log,
    conda:
        ENVIRONMENT
    resources:
        **request("match"),
    params:
        experts=optional("experts"),
        start=optional("start"),
        settings=inputs.flags("match"),
        code=code_digest("match"),
    shell:
        "python -m wmdd match"
        " --data {input.data}"
        " {params.experts}"
        " {params.start}"
        " --output {output.images}"
        " --block {wildcards.block}"
        " --ipc {wildcards.ipc}"
        " --seed {wildcards.seed}"
        " --threads {threads}"
        " {params.settings}"
        " > {log} 2>&1"
