# Raw pictures -> data/{dataset}.h5. What wmdd/settings/datasets.yaml says of the pictures is watched, their folder is not: delete
# the file after changing pictures.


rule data:
    """Reading the images of {wildcards.dataset} once"""
    output:
        data=FILES["data"],
        cost=cost_of(FILES["data"]),
    log:
        STAGES["data"].log,
    conda:
        ENVIRONMENT
    resources:
        **request("data"),
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
