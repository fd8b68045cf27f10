"""All commands: importing this module registers those of every family with `app`."""

from wmdd.cli import (  # noqa: F401
    data,
    export,
    generator,
    inspection,
    latent,
    match,
    measure,
    page,
    recover,
    select,
    student,
    tables,
    teacher,
    tracking,
)
from wmdd.cli.app import app as app
