"""A package that is missing because its extra was not installed: one line that names the extra."""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, requires

from wmdd.base.errors import WmddError

REQUIREMENT = re.compile(
    r"""(?P<name>[\w.-]+).*extra == ['"](?P<extra>[\w-]+)['"]"""
)  # such as: pandas>=2.2; extra == 'report'


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
    """Return the smallest extra that brings an imported package, as the metadata of wmdd have it; empty if none does."""
    try:
        requirements = [match for line in requires("wmdd") or [] if (match := REQUIREMENT.match(line))]
    except PackageNotFoundError:  # sources that are not installed
        return ""
    sizes = Counter(match["extra"] for match in requirements)
    name = _normal(package)
    # A name that goes on, as vl-convert-python of vl_convert, counts less than the package's own.
    matches = [
        (_normal(match["name"]), sizes[match["extra"]], match["extra"])
        for match in requirements
        if f"{_normal(match['name'])}-".startswith(f"{name}-")
    ]
    return min(matches)[-1] if matches else ""


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
