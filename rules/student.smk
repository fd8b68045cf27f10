# relabel: images.h5 -> labels/{protocol}.h5, the teacher's logits on random views and the seeds that replay them
#          (stored or pruned; with the store online there is no such job)
# student: images.h5 (+ labels, or the teacher to ask) -> run{run}.json, run{run}.csv; knows nothing of the method that made
#          the images


rule relabel:
    input:
        images="results/{dataset}/{teacher}/{method}/ipc{ipc}/seed{seed}/images.h5",
        teacher=from_teacher("model.safetensors"),
    output:
        labels="results/{dataset}/{teacher}/{method}/ipc{ipc}/seed{seed}/labels/{protocol}.h5",
        cost="results/{dataset}/{teacher}/{method}/ipc{ipc}/seed{seed}/labels/{protocol}.cost.json",
    log:
        "logs/{dataset}/{teacher}/{method}/ipc{ipc}/seed{seed}/relabel/{protocol}.log",
    conda:
        "../envs/wmdd.yaml"
    threads: 1
    resources:
        mem_mb=asked("relabel", "mem_mb"),
        runtime=asked("relabel", "runtime"),
        gpu=asked("relabel", "gpu"),
    params:
        settings=settings("relabel", ENGINE),
        code=code_digest("relabel"),
    shell:
        "python -m wmdd relabel"
        " --images {input.images}"
        " --teacher {input.teacher}"
        " --output {output.labels}"
        " --seed {wildcards.seed}"
        " --threads {threads}"
        " {params.settings}"
        " > {log} 2>&1"


# A rule for each group of runs that a job trains side by side (`runs_per_job`); with one run there is one rule.
for runs in experiment.runs_of_jobs():

    rule:
        name:
            "student" if runs[0] == 0 else f"student_{runs[0]}"
        input:
            images="results/{dataset}/{teacher}/{method}/ipc{ipc}/seed{seed}/images.h5",
            labels=labels_of,
            teacher=asked_by,
            data="data/{dataset}.h5",
        output:
            result=[f"{STUDENT}/run{run}.json" for run in runs],
            history=[f"{STUDENT}/run{run}.csv" for run in runs],
            cost=f"{STUDENT}/run{runs[0]}.cost.json",
        log:
            f"{STUDENT}/run{runs[0]}.log".replace("results/", "logs/", 1),
        conda:
            "../envs/wmdd.yaml"
        threads: 1
        resources:
            mem_mb=asked("student", "mem_mb"),
            runtime=asked("student", "runtime"),
            gpu=asked("student", "gpu"),
        params:
            runs=runs,
            labels=optional("soft-labels", "labels"),
            teacher=optional("teacher", "teacher"),
            settings=settings("student", augmentation, ENGINE),
            code=code_digest("student"),
        shell:
            "python -m wmdd student"
            " --images {input.images}"
            " --data {input.data}"
            " {params.labels}"
            " {params.teacher}"
            " --output {output.result}"
            " --seed {wildcards.seed}"
            " --run {params.runs}"
            " --threads {threads}"
            " {params.settings}"
            " > {log} 2>&1"
