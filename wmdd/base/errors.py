"""The one exception that a user is meant to read, and other exceptions in one line."""


class WmddError(Exception):
    """A user's mistake or a fault of the machine.

    The message is one line that names the thing and the remedy. The command line prints it without a
    stack trace; anything else that is raised is a bug of ours and keeps its trace.
    """


def one_line(error: BaseException) -> str:
    """Return what an exception says, in one line; its type where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def first_sentence(error: BaseException) -> str:
    """Return the first sentence of what an exception of another library says, of 200 characters at most."""
    return one_line(error).split(". ")[0][:200]
