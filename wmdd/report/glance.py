"""At a glance: in each setting what is told apart from random real images, in sentences and as points of a chart."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from wmdd.report import intervals
from wmdd.report.results import CONTROL, SETTING, kind_of, scores_of
from wmdd.workflow.stages import CONTROLS, WHOLE

VERDICTS = {"better": "better than", "worse": "worse than", "not told apart": "not told apart from"}
WORDS = {"labels": "{} labels", "teacher": "teacher {}", "student": "student {}", "protocol": "protocol {}"}
POINTS = ["method", "seed", "gain", "low", "high", "said"]
Scores = dict[str, dict[int, float]]  # by method and seed


class Answer(NamedTuple):
    """What a setting says.

    `points` has a row a method with its mean gain over random images, `low` and `high` of its interval (NaN where there is
    none) and that in words, and a row a method and seed; `seed` is NaN for the mean. It is empty without random images.
    `references` are the gains of what is no distilled set: the whole training set, the teacher.
    """

    title: str
    sentences: list[str]
    points: pd.DataFrame
    references: dict[str, float]


def answers(cells: pd.DataFrame, teachers: Mapping[tuple[str, str], float]) -> list[Answer]:
    """Return what a reader should know first of each setting; settings without anything to compare are left out.

    A setting without random images has the best distilled set beside the best of real images.

    Args:
        cells: `results.rows`.
        teachers: accuracies in percent, of dataset and teacher.
    """
    title_of = titled(cells)
    found = []
    for key, students in cells.groupby(SETTING, dropna=False):
        place = dict(zip(SETTING, key, strict=True))
        title = title_of(place)
        teacher = teachers.get((str(place["dataset"]), str(place["teacher"])))
        scores = {str(method): scores_of(rows) for method, rows in students.groupby("method")}
        if CONTROL not in scores:
            answer = Answer(title, _best_of_both(students, scores), pd.DataFrame(columns=POINTS), {})
        else:
            answer = _beside_random(title, students, scores, teacher)
        found += [answer] if answer.sentences else []
    return found


def titled(cells: pd.DataFrame) -> Callable[[Mapping[str, Any]], str]:
    """Return what gives a setting its title: dataset, images per class, and what not all settings of an experiment share."""
    varying = [name for name in SETTING if name not in ("dataset", "ipc") and cells[name].nunique() > 1]

    def title(place: Mapping[str, Any]) -> str:
        more = [WORDS.get(name, name + " {}").format(place[name]) for name in varying]
        return ", ".join([str(place["dataset"]), f"{place['ipc']} image{'s' * (place['ipc'] != 1)} per class", *more])

    return title


def _beside_random(title: str, students: pd.DataFrame, scores: Scores, teacher: float | None) -> Answer:
    """Say of each method whether it is told apart from random images, the largest gain first."""
    control = scores[CONTROL]
    gains = {m: intervals.difference(control, own) for m, own in scores.items() if m not in CONTROLS}
    order = sorted(gains, key=lambda method: -gains[method].mean)
    level = intervals.mean(control).mean
    references = {"whole set": intervals.mean(scores[WHOLE]).mean} if WHOLE in scores else {}
    references |= {} if teacher is None else {"teacher": teacher}
    if not gains:
        return Answer(title, [], pd.DataFrame(columns=POINTS), {})
    others = [f"the {name} {value:.1f} %" for name, value in references.items()]
    held = {str(m): float(n) for m, n in students.groupby("method")["images_held"].mean().dropna().items()}
    said = [
        _sentence(verdict, {m: gains[m] for m in order if intervals.verdict(gains[m]) == verdict}, held)
        for verdict in VERDICTS
    ]
    said = [*filter(None, said), f"{_joined([f'Random real images reach {_mean_of(students, CONTROL)}', *others])}."]
    if len(gains) > 1:
        said.append(
            f"The highest mean of the {len(gains)} methods, that of {order[0]}, is picked by these same numbers."
        )
    points = pd.DataFrame([row for m in order for row in _points(m, gains[m], scores[m], control)], columns=POINTS)
    return Answer(title, said, points, {name: value - level for name, value in references.items()})


def _points(
    method: str, gain: intervals.Difference, own: Mapping[int, float], control: Mapping[int, float]
) -> list[list[Any]]:
    """Return the mean gain of a method, and the gain of each seed: over the same seed of random images if any pairs."""
    level = intervals.mean(control).mean
    seeds = {seed: value - control.get(seed, level) for seed, value in own.items() if seed in control or not gain.pairs}
    mean = [method, intervals.NONE, gain.mean, gain.low, gain.high, intervals.difference_text(gain)]
    return [mean, *([method, seed, value, intervals.NONE, intervals.NONE, ""] for seed, value in seeds.items())]


def _sentence(verdict: str, gains: Mapping[str, intervals.Difference], held: Mapping[str, float]) -> str:
    """Say of methods that they are better or worse than random images, or not told apart from them; "" of none.

    Some sets hold more images of a class than an epoch shows; that is said with the difference.
    """
    named = [f"{method} {_difference(gain, held.get(method))}" for method, gain in gains.items()]
    return (
        f"{_joined(named)} {'is' if len(named) == 1 else 'are'} {VERDICTS[verdict]} random real images."
        if named
        else ""
    )


def _difference(gain: intervals.Difference, held: float | None = None) -> str:
    """Return a difference in words: points, interval, seeds, and how many images of a class a set holds."""
    interval = intervals.interval_text(gain.low, gain.high, "+")
    seeds = f"{gain.pairs} seed{'s' * (gain.pairs != 1)}" if gain.pairs else "unpaired"
    parts = [f"95 % interval {interval}"] if interval else []
    parts += [seeds, *([f"{held:,.0f} images per class held"] if held else [])]
    return f"({intervals.signed(gain.mean)} points; {'; '.join(parts)})"


def _joined(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))


def _best_of_both(students: pd.DataFrame, scores: Scores) -> list[str]:
    """Say which distilled set is the best, beside the best of real images; nothing where no set is distilled."""
    kinds = students["family"].map(kind_of).where(students["method"] != WHOLE)
    best: dict[str, str] = {}
    said = []
    for kind, what in ("distilled", "distilled sets"), ("real", "selections of real images"):
        methods = sorted(set(students.loc[kinds == kind, "method"]))
        if not methods:
            continue
        best[kind] = max(methods, key=lambda method: intervals.mean(scores[method]).mean)
        many = f", the highest mean of {len(methods)} {what}" if len(methods) > 1 else ""
        said.append(f"{best[kind]} ({kind} images) reaches {_mean_of(students, best[kind])}{many}.")
    if "distilled" not in best:
        return []
    if "real" in best:
        gain = intervals.difference(scores[best["real"]], scores[best["distilled"]])
        verdict = VERDICTS[intervals.verdict(gain)]
        said.append(f"{best['distilled']} {_difference(gain)} is {verdict} {best['real']}.")
    return said


def _mean_of(students: pd.DataFrame, method: str) -> str:
    rows = students[students["method"] == method]
    text = intervals.mean_text(*intervals.mean(scores_of(rows))[:3])
    return f"{text.partition(' (')[0]} %"
