# The family `latent`: data.h5 -> latents of all images -> atoms and masses of each class -> images; then images.h5 (recover.smk)
#   autoencoder: trains the small VAE of a generator of kind vae -> autoencoder.safetensors
#   encode:      one pass of the encoder over the training set, per block of classes -> latents/{block}.h5
#   diffusion:   trains the small diffusion model of a generator of kind latent-diffusion -> diffusion.safetensors
#   quantize:    K atoms of each class's latents, with the masses of their cells -> quantize/{block}.h5
#   decode:      their images -> decode/{block}.h5
#   distance:    W2 of a distilled set of any family to the real data, in features -> distance.json
#   decay:       W2 of the latents against the number of atoms -> decay.json
#   The seed of a generator is that of the teacher: one for all distillations unless `teacher_seed: same`.


rule autoencoder:
    input:
        data=FILES["data"],
    output:
        model=FILES["autoencoder"],
        history=history_of(FILES["autoencoder"]),
        cost=cost_of(FILES["autoencoder"]),
    log:
        STAGES["autoencoder"].log,
    conda:
        "../envs/wmdd.yaml"
    resources:
        mem_mb=request("autoencoder", "mem_mb"),
        runtime=request("autoencoder", "runtime"),
        gpu=request("autoencoder", "gpu"),
    params:
        settings=inputs.flags("autoencoder"),
        code=code_digest("autoencoder"),
    shell:
        "python -m wmdd autoencoder"
        " --data {input.data}"
        " --output {output.model}"
        " --seed {wildcards.seed}"
        " --threads {threads}"
        " {params.settings}"
        " > {log} 2>&1"


rule encode:
    input:
        data=FILES["data"],
        autoencoder=inputs.autoencoder,
        model=inputs.pipeline,
    output:
        latents=FILES["latents"],
        cost=cost_of(FILES["latents"]),
    log:
        STAGES["encode"].log,
    conda:
        "../envs/wmdd.yaml"
    resources:
        mem_mb=request("encode", "mem_mb"),
        runtime=request("encode", "runtime"),
        gpu=request("encode", "gpu"),
    params:
        autoencoder=optional("autoencoder", "autoencoder"),
        settings=inputs.flags("encode"),
        code=code_digest("encode"),
    shell:
        "python -m wmdd encode"
        " --data {input.data}"
        " {params.autoencoder}"
        " --output {output.latents}"
        " --block {wildcards.block}"
        " --threads {threads}"
        " {params.settings}"
        " > {log} 2>&1"


rule diffusion:
    input:
        latents=inputs.latents,
        autoencoder=inputs.autoencoder,
        data=FILES["data"],
    output:
        model=FILES["diffusion"],
        history=history_of(FILES["diffusion"]),
        cost=cost_of(FILES["diffusion"]),
    log:
        STAGES["diffusion"].log,
    conda:
        "../envs/wmdd.yaml"
    resources:
        mem_mb=request("diffusion", "mem_mb"),
        runtime=request("diffusion", "runtime"),
        gpu=request("diffusion", "gpu"),
    params:
        settings=inputs.flags("diffusion"),
        code=code_digest("diffusion"),
    shell:
        "python -m wmdd diffusion"
        " --latents {input.latents}"
        " --autoencoder {input.autoencoder}"
        " --data {input.data}"
        " --output {output.model}"
        " --seed {wildcards.seed}"
        " --threads {threads}"
        " {params.settings}"
        " > {log} 2>&1"


rule quantize:
    input:
        latents=inputs.latents,
    output:
        atoms=FILES["quantize"],
        cost=cost_of(FILES["quantize"]),
    log:
        STAGES["quantize"].log,
    conda:
        "../envs/wmdd.yaml"
    resources:
        mem_mb=request("quantize", "mem_mb"),
        runtime=request("quantize", "runtime"),
    params:
        settings=inputs.flags("quantize"),
        code=code_digest("quantize"),
    shell:
        "python -m wmdd quantize"
        " --latents {input.latents}"
        " --output {output.atoms}"
        " --block {wildcards.block}"
        " --k {wildcards.ipc}"
        " --seed {wildcards.seed}"
        " --threads {threads}"
        " {params.settings}"
        " > {log} 2>&1"


rule decode:
    input:
        atoms=FILES["quantize"],
        autoencoder=inputs.autoencoder,
        diffusion=inputs.diffusion,
        model=inputs.pipeline,
    output:
        images=FILES["decode"],
        cost=cost_of(FILES["decode"]),
    log:
        STAGES["decode"].log,
    conda:
        "../envs/wmdd.yaml"
    resources:
        mem_mb=request("decode", "mem_mb"),
        runtime=request("decode", "runtime"),
        gpu=request("decode", "gpu"),
    params:
        autoencoder=optional("autoencoder", "autoencoder"),
        diffusion=optional("diffusion", "diffusion"),
        settings=inputs.flags("decode"),
        code=code_digest("decode"),
    shell:
        "python -m wmdd decode"
        " --atoms {input.atoms}"
        " {params.autoencoder}"
        " {params.diffusion}"
        " --output {output.images}"
        " --seed {wildcards.seed}"
        " --threads {threads}"
        " {params.settings}"
        " > {log} 2>&1"


rule distance:
    input:
        images=FILES["images"],
        teacher=inputs.of_teacher("teacher"),
        features=inputs.of_teacher("features"),
    output:
        distance=FILES["distance"],
        cost=cost_of(FILES["distance"]),
    log:
        STAGES["distance"].log,
    conda:
        "../envs/wmdd.yaml"
    resources:
        mem_mb=request("distance", "mem_mb"),
        runtime=request("distance", "runtime"),
        gpu=request("distance", "gpu"),
    params:
        settings=inputs.flags("distance"),
        code=code_digest("distance"),
    shell:
        "python -m wmdd distance"
        " --images {input.images}"
        " --teacher {input.teacher}"
        " --features {input.features}"
        " --output {output.distance}"
        " --threads {threads}"
        " {params.settings}"
        " > {log} 2>&1"


rule decay:
    input:
        latents=inputs.latents,
    output:
        decay=FILES["decay"],
        cost=cost_of(FILES["decay"]),
    log:
        STAGES["decay"].log,
    conda:
        "../envs/wmdd.yaml"
    resources:
        mem_mb=request("decay", "mem_mb"),
        runtime=request("decay", "runtime"),
    params:
        settings=inputs.flags("decay"),
        code=code_digest("decay"),
    shell:
        "python -m wmdd decay"
        " --latents {input.latents}"
        " --output {output.decay}"
        " --threads {threads}"
        " {params.settings}"
        " > {log} 2>&1"
