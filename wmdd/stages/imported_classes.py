"""Which class of the data each class of an imported set is: by names, by numbers or as the user says, never in silence."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from wmdd.base.errors import WmddError
from wmdd.datasets import imagenet_classes

MARGIN = 0.25  # of mean confidence, that another order must gain over its classes
_NUMBER = re.compile(r"(?:new|class|cls|c|label)?[ _-]?(\d+)", re.IGNORECASE)
_REMEDY = "give classes, a text file that maps the set's to the data's"
# The ImageNet subsets of MTT and DATM, in the order in which their labels count (utils.py, utils_baseline.py: Config).
_MTT_SUBSETS = (
    (0, 217, 482, 491, 497, 566, 569, 571, 574, 701),  # ImageNette
    (193, 182, 258, 162, 155, 167, 159, 273, 207, 229),  # ImageWoof
    (281, 282, 283, 284, 285, 291, 292, 290, 289, 287),  # ImageMeow
    (84, 130, 88, 144, 145, 22, 96, 9, 100, 89),  # ImageSquawk
    (953, 954, 949, 950, 951, 957, 952, 945, 943, 948),  # ImageFruit
    (309, 986, 954, 951, 987, 779, 599, 291, 72, 11),  # ImageYellow
)


def in_probabilities(labels: np.ndarray, kind: str) -> np.ndarray:
    """Return labels as indices [N] (of index and one-hot ones) or probabilities [N, C] float32 (the softmax of logits)."""
    if kind == "index":
        return labels
    if kind == "one-hot":
        return labels.argmax(1)
    rows = labels.astype(np.float64)
    if kind == "logits":
        rows = np.exp(rows - rows.max(1, keepdims=True))
        rows /= rows.sum(1, keepdims=True)
    return rows.astype(np.float32)


def classes_of(
    labels: np.ndarray,
    names: Sequence[str] | None,
    data_classes: Sequence[str],
    data_names: Sequence[str],
    mapping: Mapping[str, str] | Sequence[str] | None = None,
    layout: str = "",
) -> tuple[np.ndarray, list[str]]:
    """Return labels that count as the data's classes do, and how that was settled, in sentences.

    The first of these that fits all classes is taken: the mapping; the same names (ids, readable names, or a word of those
    that have several); numbers, as in new000, 00000 or 7, which are ImageNet's where they are those of the data's classes and
    positions where they count from 0. A set without names has numbers; those of MTT and DATM on a subset of ImageNet count in
    the order of these authors' own lists.

    Args:
        labels: [N] indices, or [N, C'] with a column for each of the set's classes.
        names: of the set's classes, by index; None if it has numbers alone.
        data_classes: of the data, as its artifacts call them (folders).
        data_names: readable names of the same.
        mapping: from a class of the set (its name, or its number as text) to one of the data's (its id, readable name or
            position), or the data's classes in the order of the set's.
        layout: of the file, as its reader calls it.

    Raises:
        WmddError: the numbers of classes differ, or names are unknown, ambiguous or of the same class; says which.
    """
    columns = labels.shape[1] if labels.ndim == 2 else int(labels.max(initial=-1)) + 1
    words = [str(name) for name in (range(columns) if names is None else names)]
    if labels.ndim == 2 and len(words) != columns:
        raise WmddError(
            f"the set's labels have {columns} columns and it names {len(words)} classes; they do not belong together"
        )
    if labels.ndim == 1 and labels.max(initial=-1) >= len(words):
        raise WmddError(
            f"the set names {len(words)} classes and its labels go up to {labels.max()}; correct one of them"
        )
    if mapping is None and labels.ndim == 1 and names is None:
        words, labels = _present(labels)
    if len(words) > len(data_classes) or (len(words) < len(data_classes) and labels.ndim == 2):
        raise WmddError(
            f"the set has {len(words)} classes and the data {len(data_classes)}; name the data that the set was distilled from"
        )
    positions, note = _positions(words, names is not None, list(data_classes), list(data_names), mapping, layout)
    if len(set(positions)) < len(positions):
        twice = next(p for p in positions if positions.count(p) > 1)
        both = [word for word, position in zip(words, positions, strict=True) if position == twice]
        raise WmddError(
            f"the classes {both[0]} and {both[1]} of the set are both {data_classes[twice]!r} of the data; {_REMEDY}"
        )
    order = np.array(positions)
    if labels.ndim == 1:
        return order[labels], [note]
    moved = np.empty_like(labels)
    moved[:, order] = labels
    return moved, [note]


def _present(labels: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Return the numbers that occur, as words, and labels as positions among them."""
    numbers, positions = np.unique(labels, return_inverse=True)
    return [str(number) for number in numbers], positions.reshape(labels.shape)


def _positions(
    words: list[str],
    named: bool,
    classes: list[str],
    names: list[str],
    mapping: Mapping[str, str] | Sequence[str] | None,
    layout: str,
) -> tuple[list[int], str]:
    """Return the position in the data of each class of the set, and a sentence that says by what."""
    known = _known(classes, names)
    if mapping is not None:
        return _mapped(words, classes, known, mapping), "The classes are those of the mapping."
    if named:
        if words == classes:
            return list(range(len(words))), "The set's classes have the data's names, in the same order."
        found = [known.get(_plain(word)) for word in words]
        if all(position is not None for position in found):
            return [p for p in found if p is not None], "The set's classes were found by their names among the data's."
    numbers = [_NUMBER.fullmatch(word) for word in words]
    if not all(numbers):
        unknown = next(word for word in words if known.get(_plain(word)) is None)
        fault = "names several classes" if _plain(unknown) in known else "is no class"
        likely = ", ".join(classes[:3])
        raise WmddError(f"{unknown!r} of the set {fault} of the data, whose classes are {likely}, ...; {_REMEDY}")
    return _numbered([int(number[1]) for number in numbers if number], classes, names, layout)


def _numbered(numbers: list[int], classes: list[str], names: list[str], layout: str) -> tuple[list[int], str]:
    """Return the position in the data of each number of a class, and a sentence that says what the numbers are."""
    indices = imagenet_classes.indices(classes)
    subset = next((s for s in _MTT_SUBSETS if indices is not None and set(s) == set(indices)), None)
    if layout in ("mtt", "datm") and subset and indices is not None and max(numbers) < len(classes):
        note = "The set's classes count in the order of MTT's list of this subset."
        return [indices.index(subset[number]) for number in numbers], note
    ends = f"0 is {names[0]}, {len(names) - 1} is {names[-1]}"
    if max(numbers) < len(classes):
        note = f"The set numbers its classes; a number is taken as the position among the data's ({ends})."
        if indices and len(indices) < 1000:
            note += " Other code lists the classes of such a subset in another order."
        return numbers, note
    if indices is not None and set(numbers) <= set(indices):
        return [indices.index(number) for number in numbers], "The set's classes have ImageNet's numbers, out of 1,000."
    raise WmddError(
        f"the set numbers its classes {min(numbers)} to {max(numbers)} and the data has {len(classes)}, counted from 0; name "
        f"the data that the set was distilled from, or {_REMEDY}"
    )


def _mapped(
    words: list[str], classes: list[str], known: Mapping[str, int | None], mapping: Mapping[str, str] | Sequence[str]
) -> list[int]:
    pairs = (
        dict(mapping)
        if isinstance(mapping, Mapping)
        else {word: str(c) for word, c in zip(words, mapping, strict=False)}
    )
    pairs = {str(word): str(target) for word, target in pairs.items()}
    positions = []
    for word in words:
        target = pairs.get(word)
        if target is None:
            raise WmddError(f"the mapping lacks the class {word} of the set; add it")
        position = known.get(_plain(target))
        if position is None and target.isdecimal() and int(target) < len(classes):
            position = int(target)
        if position is None:
            raise WmddError(f"the mapping gives {word} the class {target!r}, which the data has not; correct it")
        positions.append(position)
    return positions


def _plain(name: str) -> str:
    return " ".join(re.sub(r"[_\-]+", " ", name).casefold().split())


def _known(classes: list[str], names: list[str]) -> dict[str, int | None]:
    """Return the position of each name of a class; None for a name that several have. Ids come before readable names."""
    known: dict[str, int | None] = {}
    for position, name in enumerate(names):
        words = {_plain(name), *(_plain(word) for word in name.split(","))}
        for word in filter(None, words):
            known[word] = None if word in known else position
    return known | {_plain(name): position for position, name in enumerate(classes)}


def permutation(confidence: np.ndarray) -> tuple[list[int] | None, str]:
    """Return the order of classes that a teacher sees where it fits far better than the given one, and a sentence for it.

    With P[i, j] the mean probability of class j on the images given as class i, the linear assignment maximises
    sum_i P[i, p(i)]. Each cycle of p is a claim of its own, so that two swapped classes of a thousand are seen; it counts
    where its classes gain MARGIN in mean: P[i, p(i)] - P[i, i] >= 0.25. A teacher that is unsure, or confuses two classes,
    also prefers another order, but by the little by which it confuses; a wrong order gives up nearly all confidence.

    Args:
        confidence: P [C, C].

    Returns:
        p, where p[i] is the class that images given as class i show, and a sentence; None and "" if the given order holds.
    """
    from scipy.optimize import linear_sum_assignment

    given, best = linear_sum_assignment(confidence, maximize=True)
    gain = confidence[given, best] - confidence[given, given]
    order, seen = list(range(len(best))), set[int]()
    for start in range(len(best)):
        cycle = [start]
        while best[cycle[-1]] != start and start not in seen:
            cycle.append(int(best[cycle[-1]]))
        seen |= set(cycle)
        if len(cycle) > 1 and gain[cycle].mean() >= MARGIN:
            for index in cycle:
                order[index] = int(best[index])
    moved = [index for index, other in enumerate(order) if index != other]
    if not moved:
        return None, ""
    before, after = (float(confidence[moved, to].mean()) for to in (moved, [order[index] for index in moved]))
    return order, (
        f"The teacher sees {len(moved)} of {len(order)} classes as others: it gives them {before:.2f} in the given order and "
        f"{after:.2f} in another (class {moved[0]} looks like {order[moved[0]]})."
    )
