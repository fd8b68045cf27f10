"""The one exception that a user is meant to read."""


class WmddError(Exception):
    """A user's mistake or a fault of the machine.

    The message is one line that names the thing and the remedy. The command line prints it without a
    stack trace; anything else that is raised is a bug of ours and keeps its trace.
    """
