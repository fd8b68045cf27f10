# The students and distilled sets of the matrix -> results/report/scoreboard.json, and one wandb table of them all.
# It copies numbers and makes none, so that a change of its code reruns nothing.
rule scoreboard:
    """Putting the scores of all students beside what they learned from, for wandb"""
    input:
        students=inputs.students(),
        images=inputs.files_of("images"),
    output:
        scoreboard=f"{REPORT}/scoreboard.json",
    log:
        STAGES["scoreboard"].log,
    conda:
        ENVIRONMENT
    resources:
        **request("scoreboard"),
    shell:
        "python -m wmdd scoreboard" " --students {input.students}" " --output {output.scoreboard}" " > {log} 2>&1"


SCOREBOARD = rules.scoreboard.output if experiment.file.tracking.follows("scoreboard") else []
