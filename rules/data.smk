# data: raw pictures -> data/{dataset}.h5
#   Reads every picture once. The folder itself is not watched: delete the file after changing pictures.
#   What wmdd/settings/datasets.yaml says of the pictures is watched.


rule data:
    output:
        data=FILES["data"],
        cost=cost_of(FILES["data"]),
    log:
        STAGES["data"].log,
    conda:
        "../envs/wmdd.yaml"
    resources:
        mem_mb=request("data", "mem_mb"),
        runtime=request("data", "runtime"),
    params:
        settings=inputs.flags("data"),
        pictures=inputs.pictures,
        code=code_digest("data"),
    shell:
        "python -m wmdd data"
        " --name {wildcards.dataset}"
        " --output {output.data}"
        " --threads {threads}"
        " {params.settings}"
        " > {log} 2>&1"
