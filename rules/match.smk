# The family `match`: data.h5 -> match/{block}.h5; then images.h5 (recover.smk). No teacher takes part.
#   expert: a network trained on the real data, every epoch of which is kept -> expert/{expert}/seed{seed}/trajectory.h5; its
#           seed is its number, and a method of the objective mtt needs those from 0 on
#   match:  images on which networks behave as on real ones, per block of classes (mtt: all of them)


rule expert:
    input:
        data=FILES["data"],
    output:
        trajectory=FILES["expert"],
        history=history_of(FILES["expert"]),
        cost=cost_of(FILES["expert"]),
    log:
        STAGES["expert"].log,
    conda:
        "../envs/wmdd.yaml"
    resources:
        mem_mb=request("expert", "mem_mb"),
        runtime=request("expert", "runtime"),
        gpu=request("expert", "gpu"),
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
    input:
        data=FILES["data"],
        experts=inputs.experts,
    output:
        images=FILES["match"],
        cost=cost_of(FILES["match"]),
    log:
        STAGES["match"].log,
    conda:
        "../envs/wmdd.yaml"
    resources:
        mem_mb=request("match", "mem_mb"),
        runtime=request("match", "runtime"),
        gpu=request("match", "gpu"),
    params:
        experts=optional("experts", "experts"),
        settings=inputs.flags("match"),
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
