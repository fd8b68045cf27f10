"""The scores in the result of a student, which are shares of the validation pictures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wmdd.base.errors import WmddError

SCORES = {"top1", "top5", "best_top1"}
NO_RESULT = "{} is not the result of a student; give a run0.json of the student stage"


def top1_of(path: Path, content: Any) -> float:
    """Return the top-1 of a student in percent.

    Raises:
        WmddError: it is no result of a student, or one of its scores is no share of pictures.
    """
    result = content.get("result") if isinstance(content, Mapping) else None
    if not isinstance(result, Mapping) or "top1" not in result:
        raise WmddError(NO_RESULT.format(path))
    for name in SCORES & result.keys():
        score = result[name]
        if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
            raise WmddError(f"{name} of {path} is {score!r}, not a number from 0 to 1; delete the file and run again")
    return 100 * float(result["top1"])
