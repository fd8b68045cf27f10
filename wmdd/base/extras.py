"""A package that is missing because its extra was not installed: one line that names the extra."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, requires

from wmdd.base.errors import WmddError

REQUIREMENT = re.compile(r"""([\w.-]+).*extra == ['"]([\w-]+)['"]""")  # such as: pandas>=2.2; extra == 'report'


@contextmanager
def named() -> Iterator[None]:
    """Turn a failed import of an extra's package into the line that installs it; a block, or the decorator of a function.

    Raises:
        WmddError: names the package and the extra.
    """
    try:
        yield
    except ImportError as error:
        cause = error.__cause__ if error.name is None else error  # cyclopts wraps what a command's module raises
        package = (getattr(cause, "name", None) or "").partition(".")[0]
        if extra := extra_of(package):
            raise WmddError(f'{package} is not installed; run `pip install "wmdd[{extra}]"`') from None
        raise


def extra_of(package: str) -> str:
    """Return the extra that brings an imported package, as the metadata of wmdd have it; empty if none does."""
    try:
        matches = filter(None, map(REQUIREMENT.match, requires("wmdd") or []))
    except PackageNotFoundError:  # sources that are not installed
        return ""
    extras = {re.sub(r"[-_.]+", "-", match[1]).lower(): match[2] for match in matches}
    name = package.replace("_", "-").lower()
    # The package's own name counts most; that of vl_convert goes on: vl-convert-python.
    return min(
        ((other, extra) for other, extra in extras.items() if f"{other}-".startswith(f"{name}-")), default=("", "")
    )[1]
