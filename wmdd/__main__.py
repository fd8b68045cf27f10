"""`python -m wmdd STAGE …`: a user's mistake, and a scheduler's warning, end in one line, anything else in its trace."""

import os
import sys


def main() -> None:
    """Run a command."""
    os.environ.setdefault("POT_BACKEND_DISABLE_PYTORCH", "1")
    from wmdd.base.preemption import AGAIN, Notice, Preempted, listening
    from wmdd.jobs import torchrun

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
            print(f"wmdd {next(iter(sys.argv[1:]), '')}: {preempted}", file=sys.stderr, flush=True)
        raise


def _run() -> None:
    from wmdd.jobs import torchrun

    if torchrun.launched():  # one of several processes
        torchrun.follow()
    from wmdd.base.errors import WmddError
    from wmdd.cli.commands import app

    try:
        app(sys.argv[1:])
    except Exception as error:
        if torchrun.launched():
            torchrun.leave(error)
        if not isinstance(error, WmddError):
            raise
        sys.exit(f"wmdd {next(iter(sys.argv[1:]), '')}: error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
