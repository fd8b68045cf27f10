"""DD-Ranking's measures are those of its package, of accuracies that belong together."""

import numpy as np
import pytest

from tests.report.test_results import result
from wmdd.report import dd_ranking
from wmdd.report.dd_ranking import augmentation_robust, label_robust, measures, normalised
from wmdd.report.results import rows

# What `compute_metrics` of ddranking 0.2.0 (PyPI) returns of these accuracies, its trainings replaced by them:
# whole and method under hard labels, method and random under soft ones; weight 0.5, and 0.25.
LABEL_ROBUST = {
    (0.85, 0.30, 0.60, 0.55): (0.17483020955155323, 0.1286760966973054),
    (0.85, 0.55, 0.72, 0.65): (0.22272216262488567, 0.18921602658636014),
    (0.90, 0.90, 0.50, 0.50): (0.26894142136999516, 0.26894142136999516),
}
# Method and random with augmentation, method and random without.
AUGMENTATION_ROBUST = {
    (0.60, 0.55, 0.40, 0.38): (0.2840961493400977, 0.28080390723967147),
    (0.65, 0.70, 0.30, 0.45): (0.22845363830836402, 0.21894866351247574),
}


def test_scores_are_those_of_the_package():
    for (whole, hard, own, random), scores in LABEL_ROBUST.items():
        found = [label_robust(whole - hard, own - random, weight) for weight in (0.5, 0.25)]
        assert found == pytest.approx(scores, rel=1e-12)
    for (own, random, still, plain), scores in AUGMENTATION_ROBUST.items():
        found = [augmentation_robust(own - random, still - plain, weight) for weight in (0.5, 0.25)]
        assert found == pytest.approx(scores, rel=1e-12)
    assert [normalised(x) for x in (-1, 1)] == pytest.approx([0, 1])


def students(protocol="paper", seeds=(0,), labels="soft", **scores):
    return [
        result(top1, method=method, protocol=protocol, labels=labels, seed=seed)
        for method, top1 in scores.items()
        for seed in seeds
    ]


SOFT = students(random=0.55, wmdd=0.60)
HARD = students("paper-hard", labels="hard", random=0.25, wmdd=0.30, whole=0.85)
STILL = students("no-augmentation", random=0.38, wmdd=0.40)


def shown(found):
    """The texts of each row of the table, by method and protocol."""
    if (table := measures(rows(found))) is None:
        return None
    lines = table.text.to_dict("records")
    titles = (dd_ranking.RECOVERY, dd_ranking.IMPROVEMENT, dd_ranking.LABEL_ROBUST, dd_ranking.AUGMENTATION_ROBUST)
    return {(line["method"], line["protocol"]): [line.get(title, "") for title in titles] for line in lines}


def test_the_measures_of_a_matrix_with_all_that_they_need():
    found = shown(SOFT + HARD + STILL)
    assert found == {
        ("random", "paper"): ["60.0 (1)", "0.0 (1)", "0.159 (1)", "0.269 (1)"],
        ("wmdd", "paper"): ["55.0 (1)", "5.0 (1)", "0.175 (1)", "0.284 (1)"],
        ("random", "paper-hard"): ["60.0 (1)", "0.0 (1)", "0.159 (1)", ""],
        ("wmdd", "paper-hard"): ["55.0 (1)", "5.0 (1)", "0.175 (1)", ""],
    }


def test_what_is_lacking_leaves_out_the_score_that_needs_it():
    assert {key: texts[2:] for key, texts in shown(SOFT + STILL).items()} == {
        ("random", "paper"): ["", "0.269 (1)"],
        ("wmdd", "paper"): ["", "0.284 (1)"],
    }
    assert shown(SOFT) is None
    assert shown(students(random=0.55, wmdd=0.6, whole=0.9)) is None, "no hard labels"
    without = [each for each in HARD if "/whole/" not in str(each[0])]
    assert shown(SOFT + without) is None
    elsewhere = students("rectified-hard", labels="hard", random=0.25, wmdd=0.30, whole=0.85)
    assert ("wmdd", "paper") not in shown(SOFT + elsewhere), "of another protocol"
    other = [result(0.38, method=method, protocol="no-augmentation", student="u") for method in ("random", "wmdd")]
    assert shown(SOFT + other) is None, "another student"


def test_measures_go_by_seed_and_pair_those_that_all_have():
    both = [result(x, method=m, seed=s) for m, x in (("random", 0.5), ("wmdd", 0.6)) for s in (0, 1, 2)]
    hard = [
        result(x + 0.1 * s, method=m, seed=s, protocol="paper-hard", labels="hard")
        for m, x, each in (("whole", 0.7, (1, 2)), ("wmdd", 0.3, (0, 1)), ("random", 0.2, (1,)))
        for s in each
    ]
    recovery, improvement, *_ = shown(both + hard)["wmdd", "paper"]
    assert (recovery, improvement) == ("40.0 (1)", "10.0 ± 0.0 (3)")
    several = [(0.9, 0.3), (0.8, 0.4)]
    hard = [
        result(top1, method=m, seed=s, protocol="paper-hard", labels="hard")
        for s, pair in enumerate(several)
        for m, top1 in zip(("whole", "wmdd"), pair, strict=True)
    ]
    scores = [label_robust(whole - own, 0.1) for whole, own in several]
    expected = f"{np.mean(scores):.3f} ± {np.std(scores, ddof=1):.3f} (2)"
    assert shown(both + hard)["wmdd", "paper"][2] == expected
