"""`python -m wmdd STAGE …`: a user's mistake, and a scheduler's warning, end in one line, anything else in its trace."""

import os
import signal
import sys
from difflib import get_close_matches

from wmdd.base import extras
from wmdd.base.errors import WmddError, first_sentence, one_line
from wmdd.base.preemption import AGAIN, Notice, Preempted, listening
from wmdd.jobs import torchrun

NO_MEMORY = ("can't allocate memory", "not enough memory", "CUDA out of memory", "Cannot allocate memory")


def main() -> None:
    """Run a command."""
    notice = Notice("ended before it began; starts anew when started again")
    try:
        with listening(notice):
            try:
                _run()
            except Exception as error:
                end = notice.end(error)
                if end is None:
                    raise
                raise end from None
    except Preempted as preempted:
        if torchrun.launched():  # the launcher says it
            torchrun.end(AGAIN)
        if os.environ.get("RANK", "0") == "0":
            print(f"wmdd {_command()}: {preempted}", file=sys.stderr, flush=True)
        raise


def _run() -> None:
    if torchrun.launched():  # one of several processes
        torchrun.follow()
    from wmdd.cli.commands import app

    if not (_command().startswith("-") or _command() in {*app, ""}):
        near = get_close_matches(_command(), app, 1)
        hint = f"did you mean {near[0]!r}?" if near else "wmdd --help lists them"
        print(f"wmdd: error: unknown command {_command()!r}; {hint}", file=sys.stderr)
        sys.exit(2)
    try:
        with extras.named():
            app(sys.argv[1:])
    except Exception as error:
        if torchrun.launched():
            torchrun.leave(error)
        line = str(error) if isinstance(error, WmddError) else _ran_out(error)
        if not line:
            raise
        sys.exit(f"wmdd {_command()}: error: {line}")
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one while Python leaves would be a trace
        sys.exit(130)


def _ran_out(error: Exception) -> str:
    """Return the line for a lack of memory, of Python, NumPy or torch; nothing for any other error."""
    text = one_line(error)
    if not isinstance(error, MemoryError) and not any(sign in text for sign in NO_MEMORY):
        return ""
    where = "the GPU" if "CUDA" in text else "this machine, or the job's share of it,"
    remedy = "ask for more (jobs, mem_mb of the profile), or lower the stage's batch_size or classes_per_block"
    return f"{where} has no memory left ({first_sentence(error)}); {remedy}"


def _command() -> str:
    return next(iter(sys.argv[1:]), "")


if __name__ == "__main__":
    main()
