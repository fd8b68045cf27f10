"""The one exception that a user is meant to read, and other exceptions in one line."""

from typing import TYPE_CHECKING
from unicodedata import category

if TYPE_CHECKING:
    from pydantic import ValidationError


class WmddError(Exception):
    """A user's mistake or a fault of the machine.

    The message is one line that names the thing and the remedy. The command line prints it without a
    stack trace; anything else that is raised is a bug of ours and keeps its trace.
    """

    def __str__(self) -> str:
        """Return the message with nothing in it that a terminal takes for a command."""
        return printable(super().__str__())


def printable(text: str) -> str:
    r"""Return a text in one line, in which control characters and bytes that are no UTF-8 are written out (`\x1b`)."""
    return "".join(c.encode("unicode_escape", "surrogatepass").decode() if _controls(c) else c for c in text)


def _controls(letter: str) -> bool:
    """Return whether a letter moves the cursor, ends a line, turns the direction of writing or is half a letter."""
    return (
        category(letter) in ("Cc", "Cs", "Zl", "Zp")
        or letter in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    )


def one_line(error: BaseException) -> str:
    """Return what an exception says, in one line; its type where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def first_mistake(error: "ValidationError") -> str:
    """Return where pydantic found the first mistake, and what it is."""
    mistake = error.errors()[0]
    place, text = ".".join(map(str, mistake["loc"])), mistake["msg"].removeprefix("Value error, ")
    return f"{place}: {text}" if place else text


def first_sentence(error: BaseException) -> str:
    """Return the first sentence of what an exception of another library says, of 200 characters at most."""
    return one_line(error).split(". ")[0][:200]
