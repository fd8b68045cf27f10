"""`python -m wmdd STAGE …`: a user's mistake ends in one line, anything else in its trace."""

import os
import sys


def main() -> None:
    """Run a command."""
    os.environ.setdefault("POT_BACKEND_DISABLE_PYTORCH", "1")
    from wmdd import launch

    if launch.launched():  # one of several processes
        launch.follow()
    from wmdd.commands import app
    from wmdd.errors import WmddError

    try:
        app(sys.argv[1:])
    except Exception as error:
        if launch.launched():
            launch.leave(error)
        if not isinstance(error, WmddError):
            raise
        sys.exit(f"wmdd {next(iter(sys.argv[1:]), '')}: error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
