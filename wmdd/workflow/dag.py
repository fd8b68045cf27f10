"""The jobs of an experiment, as Snakemake sees them: the only DAG that there is."""

import io
import os
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

from wmdd.base.errors import WmddError
from wmdd.workflow.launch import snakefile
from wmdd.workflow.layout import Cell
from wmdd.workflow.stages import stage_of


@dataclass(frozen=True)
class Job:
    """What Snakemake knows of a job.

    Attributes:
        rule: its name.
        outputs: the first names the checkpoint, and the job.
        cell: of its wildcards; empty for the report.
        wildcards: their values, as the SLURM plugin joins them in the names of its folders.
        inputs: how many files it reads.
        needs: the first outputs of the jobs that go before it.
        log: of its command.
        wanted: it would run if Snakemake were started now.
        waits: for another job that would.
        reason: why it is wanted.
    """

    rule: str
    outputs: tuple[Path, ...]
    cell: Cell = field(default_factory=Cell)
    wildcards: str = ""
    inputs: int = 0
    needs: tuple[Path, ...] = ()
    log: Path | None = None
    wanted: bool = True
    waits: bool = False
    reason: str = ""

    @property
    def stage(self) -> str:
        """The stage of its rule."""
        return stage_of(self.rule)

    @property
    def checkpoint(self) -> Path:
        """Where `wmdd.jobs.job` keeps its state."""
        return self.outputs[0].with_name(f".{self.outputs[0].name}.checkpoint")


def jobs(*configfiles: Path, forceall: bool = False) -> list[Job]:
    """Return the jobs of an experiment in the current folder. Nothing is locked or run.

    A change of the software environment does not count: only the command line that ran a job tells whether it had one.

    Args:
        configfiles: the experiment file, or several of which the later ones count more.
        forceall: as if nothing were done yet; faster, as no file is looked at.

    Raises:
        WmddError: Snakemake can't tell; its words in one line.
    """
    from snakemake.api import SnakemakeApi
    from snakemake.settings.types import (
        ConfigSettings,
        DAGSettings,
        OutputSettings,
        Quietness,
        RerunTrigger,
        ResourceSettings,
    )

    path, nowhere, environment = snakefile(), io.StringIO(), dict(os.environ)
    output = OutputSettings(dryrun=True, quiet=frozenset({Quietness.ALL}))
    try:
        with redirect_stdout(nowhere), redirect_stderr(nowhere), SnakemakeApi(output) as api:
            settings = ConfigSettings(configfiles=configfiles)
            workflow = api.workflow(ResourceSettings(cores=1), settings, snakefile=path)
            triggers = RerunTrigger.all() - {RerunTrigger.SOFTWARE_ENV}
            workflow.dag(DAGSettings(forceall=forceall, rerun_triggers=triggers)).printrulegraph()  # builds the DAG
            dag = workflow._workflow.dag
            return [
                Job(
                    rule=job.rule.name,
                    outputs=tuple(map(Path, job.output)),
                    cell=Cell.of(job.wildcards_dict),
                    wildcards="_".join(job.wildcards).replace("/", "_"),
                    inputs=len(job.input),
                    needs=tuple(Path(needed.output[0]) for needed in dag.dependencies[job] if needed.output),
                    log=Path(job.log[0]) if job.log else None,
                    wanted=dag.needrun(job),
                    waits=any(map(dag.needrun, dag.dependencies[job])),
                    reason=str(dag.reason(job)),
                )
                for job in dag.jobs
                if job.output
            ]
    except Exception as error:  # whatever the code of a workflow may raise
        reason = " ".join(f"{error}".split()).partition(" Traceback: ")[0].removeprefix("Error: ")
        reason = reason or type(error).__name__
        raise WmddError(f"snakemake can't read the workflow: {reason}; `snakemake -n` says more") from error
    finally:  # a workflow sets variables for its jobs
        os.environ.clear()
        os.environ.update(environment)
