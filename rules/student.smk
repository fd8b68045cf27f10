# images.h5 -> labels/{protocol}.h5: the logits of one teacher or several on random views, and the seeds that replay them (no job if online)
#           -> run{run}.json, run{run}.csv: a student, which knows nothing of the method that made the images


rule relabel:
    """Labelling views of the {wildcards.ipc} images a class of {wildcards.method} for protocol {wildcards.protocol}"""
    input:
        images=FILES["images"],
        teacher=inputs.teachers_of_labels,
    output:
        labels=FILES["labels"],
        cost=cost_of(FILES["labels"]),
    log:
        STAGES["relabel"].log,
    conda:
        ENVIRONMENT
    resources:
        **request("relabel"),
    params:
        settings=inputs.flags("relabel"),
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
        """Training student {wildcards.student} on {wildcards.method}, protocol {wildcards.protocol}, runs {params.runs}"""
        name:
            "student" if runs[0] == 0 else f"student_{runs[0]}"
        input:
            images=FILES["images"],
            soft_labels=inputs.labels_if_stored,
            teacher=inputs.teachers_if_online,
            data=FILES["data"],
        output:
            result=[of_run(FILES["student"], run) for run in runs],
            history=[of_run(history_of(FILES["student"]), run) for run in runs],
            cost=of_run(cost_of(FILES["student"]), runs[0]),
        log:
            of_run(STAGES["student"].log, runs[0]),
        conda:
            ENVIRONMENT
        resources:
            **request("student"),
        params:
            runs=runs,
            labels=optional("soft_labels"),
            teacher=optional("teacher"),
            settings=inputs.flags("student"),
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
