# The family `latent`: data.h5 -> latents/{block}.h5 of all images -> quantize/{block}.h5: atoms of each class with the masses of
# their cells -> decode/{block}.h5; then images.h5 (recover.smk). The seed of a generator is that of the teacher.
# Measured beside it: distance.json, W2 of any distilled set to the real data; decay.json, W2 of latents against their atoms.


rule autoencoder:
    """Training the autoencoder of generator {wildcards.generator} on {wildcards.dataset}"""
    input:
        data=FILES["data"],
    output:
        model=FILES["autoencoder"],
        history=history_of(FILES["autoencoder"]),
        cost=cost_of(FILES["autoencoder"]),
    log:
        STAGES["autoencoder"].log,
    conda:
        ENVIRONMENT
    resources:
        **request("autoencoder"),
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
    """Encoding {wildcards.block} of {wildcards.dataset} by generator {wildcards.generator}"""
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
        ENVIRONMENT
    resources:
        **request("encode"),
    params:
        autoencoder=optional("autoencoder"),
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
    """Training the diffusion model of generator {wildcards.generator} on {wildcards.dataset}"""
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
        ENVIRONMENT
    resources:
        **request("diffusion"),
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
    """Quantizing the latents of {wildcards.block} to {wildcards.ipc} atoms a class for {wildcards.method}"""
    input:
        latents=inputs.latents,
    output:
        atoms=FILES["quantize"],
        cost=cost_of(FILES["quantize"]),
    log:
        STAGES["quantize"].log,
    conda:
        ENVIRONMENT
    resources:
        **request("quantize"),
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
    """Decoding the {wildcards.ipc} atoms a class of {wildcards.block} to the images of {wildcards.method}"""
    input:
        atoms=FILES["quantize"],
        autoencoder=inputs.autoencoder,
        diffusion=inputs.diffusion,
        model=inputs.pipeline,
    output:
        images=joined_later(FILES["decode"]),
        cost=cost_of(FILES["decode"]),
    log:
        STAGES["decode"].log,
    conda:
        ENVIRONMENT
    resources:
        **request("decode"),
    params:
        autoencoder=optional("autoencoder"),
        diffusion=optional("diffusion"),
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
    """Measuring W2 from the {wildcards.ipc} images a class of {wildcards.method} to those of {wildcards.dataset}"""
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
        ENVIRONMENT
    resources:
        **request("distance"),
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
    """Measuring how W2 falls with the number of atoms in the latents of generator {wildcards.generator}"""
    input:
        latents=inputs.latents,
    output:
        decay=FILES["decay"],
        cost=cost_of(FILES["decay"]),
    log:
        STAGES["decay"].log,
    conda:
        ENVIRONMENT
    resources:
        **request("decay"),
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
