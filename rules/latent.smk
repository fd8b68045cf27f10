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
        data="data/{dataset}.h5",
    output:
        model="results/{dataset}/latent/{generator}/seed{seed}/autoencoder.safetensors",
        history="results/{dataset}/latent/{generator}/seed{seed}/autoencoder.csv",
        cost="results/{dataset}/latent/{generator}/seed{seed}/autoencoder.cost.json",
    log:
        "logs/{dataset}/latent/{generator}/seed{seed}/autoencoder.log",
    conda:
        "../envs/wmdd.yaml"
    threads: 1
    resources:
        mem_mb=asked("autoencoder", "mem_mb"),
        runtime=asked("autoencoder", "runtime"),
        gpu=asked("autoencoder", "gpu"),
    params:
        settings=settings("autoencoder", ENGINE),
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
        data="data/{dataset}.h5",
        autoencoder=autoencoder_of,
        model=model_of,
    output:
        latents="results/{dataset}/latent/{generator}/seed{seed}/latents/{block}.h5",
        cost="results/{dataset}/latent/{generator}/seed{seed}/latents/{block}.cost.json",
    log:
        "logs/{dataset}/latent/{generator}/seed{seed}/encode/{block}.log",
    conda:
        "../envs/wmdd.yaml"
    threads: 1
    resources:
        mem_mb=asked("encode", "mem_mb"),
        runtime=asked("encode", "runtime"),
        gpu=asked("encode", "gpu"),
    params:
        autoencoder=optional("autoencoder", "autoencoder"),
        settings=settings("encode", generator, ENGINE),
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
        latents=latents_of,
        autoencoder=autoencoder_of,
        data="data/{dataset}.h5",
    output:
        model="results/{dataset}/latent/{generator}/seed{seed}/diffusion.safetensors",
        history="results/{dataset}/latent/{generator}/seed{seed}/diffusion.csv",
        cost="results/{dataset}/latent/{generator}/seed{seed}/diffusion.cost.json",
    log:
        "logs/{dataset}/latent/{generator}/seed{seed}/diffusion.log",
    conda:
        "../envs/wmdd.yaml"
    threads: 1
    resources:
        mem_mb=asked("diffusion", "mem_mb"),
        runtime=asked("diffusion", "runtime"),
        gpu=asked("diffusion", "gpu"),
    params:
        settings=settings("diffusion", ENGINE),
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
        latents=latents_of,
    output:
        atoms="results/{dataset}/{teacher}/{method}/ipc{ipc}/seed{seed}/quantize/{block}.h5",
        cost="results/{dataset}/{teacher}/{method}/ipc{ipc}/seed{seed}/quantize/{block}.cost.json",
    log:
        "logs/{dataset}/{teacher}/{method}/ipc{ipc}/seed{seed}/quantize/{block}.log",
    conda:
        "../envs/wmdd.yaml"
    threads: 1
    resources:
        mem_mb=asked("quantize", "mem_mb"),
        runtime=asked("quantize", "runtime"),
    params:
        settings=settings("quantize"),
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
        atoms="results/{dataset}/{teacher}/{method}/ipc{ipc}/seed{seed}/quantize/{block}.h5",
        autoencoder=autoencoder_of,
        diffusion=diffusion_of,
        model=model_of,
    output:
        images="results/{dataset}/{teacher}/{method}/ipc{ipc}/seed{seed}/decode/{block}.h5",
        cost="results/{dataset}/{teacher}/{method}/ipc{ipc}/seed{seed}/decode/{block}.cost.json",
    log:
        "logs/{dataset}/{teacher}/{method}/ipc{ipc}/seed{seed}/decode/{block}.log",
    conda:
        "../envs/wmdd.yaml"
    threads: 1
    resources:
        mem_mb=asked("decode", "mem_mb"),
        runtime=asked("decode", "runtime"),
        gpu=asked("decode", "gpu"),
    params:
        autoencoder=optional("autoencoder", "autoencoder"),
        diffusion=optional("diffusion", "diffusion"),
        settings=settings("decode", generator, ENGINE),
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
        images="results/{dataset}/{teacher}/{method}/ipc{ipc}/seed{seed}/images.h5",
        teacher=from_teacher("model.safetensors"),
        features=from_teacher("features.h5"),
    output:
        distance="results/{dataset}/{teacher}/{method}/ipc{ipc}/seed{seed}/distance.json",
        cost="results/{dataset}/{teacher}/{method}/ipc{ipc}/seed{seed}/distance.cost.json",
    log:
        "logs/{dataset}/{teacher}/{method}/ipc{ipc}/seed{seed}/distance.log",
    conda:
        "../envs/wmdd.yaml"
    threads: 1
    resources:
        mem_mb=asked("distance", "mem_mb"),
        runtime=asked("distance", "runtime"),
        gpu=asked("distance", "gpu"),
    params:
        settings=as_flags(ENGINE),
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
        latents=latents_of,
    output:
        decay="results/{dataset}/latent/{generator}/seed{seed}/decay.json",
        cost="results/{dataset}/latent/{generator}/seed{seed}/decay.cost.json",
    log:
        "logs/{dataset}/latent/{generator}/seed{seed}/decay.log",
    conda:
        "../envs/wmdd.yaml"
    threads: 1
    resources:
        mem_mb=asked("decay", "mem_mb"),
        runtime=asked("decay", "runtime"),
    params:
        settings=settings("decay"),
        code=code_digest("decay"),
    shell:
        "python -m wmdd decay"
        " --latents {input.latents}"
        " --output {output.decay}"
        " --threads {threads}"
        " {params.settings}"
        " > {log} 2>&1"
