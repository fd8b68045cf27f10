"""The command that reads a dataset."""

import sys
from pathlib import Path

from wmdd.artifacts import hdf5, hdf5_writer
from wmdd.cli.arguments import Threads, command
from wmdd.jobs.job import job
from wmdd.settings.data import DataSettings
from wmdd.stages.data import pack
from wmdd.stages.data_summary import describe


@command
def data(*, name: str, output: Path, threads: Threads = 1, settings: DataSettings = DataSettings()) -> None:
    """Read the pictures of a dataset once and write them as one file, sorted by class."""
    with job("data", output, [settings], {}, threads=threads, dataset=name) as stage_job:
        with hdf5_writer.writing(output) as writer:
            writer.meta = stage_job.meta | pack(settings, writer)
        describe(hdf5.load_meta(output), lambda line: print(line, file=sys.stderr))
