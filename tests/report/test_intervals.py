"""Means and differences over seeds agree with textbook formulas, and a distilled set counts once."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t as student_t
from scipy.stats import ttest_ind, ttest_rel

from wmdd.report import intervals

WMDD, RANDOM = {0: 50.0, 1: 52.0, 2: 55.0}, {0: 44.0, 1: 47.0, 2: 46.0}
SCORES = st.dictionaries(st.integers(0, 9), st.floats(0, 100), min_size=1, max_size=6)


def test_the_interval_of_a_mean_by_hand():
    found = intervals.mean(WMDD)
    half = student_t.ppf(0.975, 2) * np.std([50, 52, 55], ddof=1) / math.sqrt(3)
    assert (found.low, found.high) == pytest.approx((157 / 3 - half, 157 / 3 + half))
    assert intervals.interval_text(found.low, found.high) == "46.1 to 58.6"


def test_a_single_seed_has_no_deviation_and_no_interval():
    found = intervals.mean({3: 42.0})
    assert (found.mean, found.n) == (42, 1)
    assert np.isnan([found.std, found.low, found.high]).all()
    assert intervals.mean_text(*found[:3]) == "42.0 (1)"
    gain = intervals.difference({3: 42.0}, {3: 44.0})
    assert intervals.difference_text(gain) == "+2.0 (1)"
    assert intervals.interval_text(gain.low, gain.high) == ""
    assert intervals.verdict(gain) == "not told apart"


def test_seeds_that_both_have_are_paired_by_hand():
    first, second = WMDD, {0: 44.0, 2: 46.0, 7: 99.0}
    each = np.array([44.0 - 50, 46 - 55])
    error = each.std(ddof=1) / math.sqrt(2)
    half = student_t.ppf(0.975, 1) * error
    found = intervals.difference(first, second)
    assert found.pairs == 2
    assert found[:3] == pytest.approx((-7.5, -7.5 - half, -7.5 + half))
    assert found.p == pytest.approx(ttest_rel([44.0, 46], [50.0, 55]).pvalue)
    assert intervals.difference_text(found) == "−7.5 (−26.6 to +11.6; 2)"


def test_welch_where_no_seed_is_shared():
    a, b = [50.0, 52.0, 55.0], [44.0, 47.0]
    test = ttest_ind(b, a, equal_var=False)
    found = intervals.difference(dict(enumerate(a)), dict(enumerate(b, 10)))
    low, high = (-bound for bound in ttest_ind(a, b, equal_var=False).confidence_interval(0.95))
    assert (found.low, found.high) == pytest.approx((high, low))
    assert (found.p, found.pairs) == (pytest.approx(test.pvalue), 0)
    assert intervals.difference_text(found).endswith("; unpaired)")


def test_the_share_of_a_gap_is_what_a_test_of_it_does_not_refuse():
    control, method = {0: 50.0, 1: 51.0, 2: 50.4, 9: 0.0}, {0: 53.0, 1: 53.5, 2: 54.1}
    limit = {0: 55.0, 1: 57.0, 2: 56.0, 7: 0.0}
    found = intervals.share(control, method, limit)
    gains, gaps = np.array([3.0, 2.5, 3.7]), np.array([5.0, 6.0, 5.6])
    assert found.mean == pytest.approx(gains.mean() / gaps.mean())
    assert found.low < found.mean < found.high
    for bound in found.low, found.high:
        assert ttest_rel(gains, bound * gaps).pvalue == pytest.approx(0.05)
    assert intervals.share_text(found) == f"{found.mean:.2f} ({found.low:.2f} to {found.high:.2f})"


def test_the_same_share_of_each_seed_has_no_interval():
    found = intervals.share({0: 50.0, 1: 51.0}, {0: 53.0, 1: 54.0}, {0: 56.0, 1: 57.0})
    assert (found.mean, intervals.share_text(found)) == (pytest.approx(0.5), "0.50")


def test_there_is_no_share_of_a_gap_that_may_be_none():
    control, method = {0: 50.0, 1: 51.0}, {0: 53.0, 1: 53.5}
    for limit in {0: 51.0, 1: 60.0}, {0: 49.0, 1: 50.0}, {0: 60.0}, {}:
        found = intervals.share(control, method, limit)
        assert np.isnan(found).all()
        assert intervals.share_text(found) == ""


def test_where_there_is_no_interval():
    for first, second, gain in (
        ({0: 50.0}, {1: 44.0, 2: 46.0}, -5.0),
        ({0: 50.0, 1: 50.0}, {5: 40.0, 6: 40.0}, -10.0),
        ({0: 50.0, 1: 60.0}, {0: 51.1, 1: 61.1}, 1.1),
    ):
        found = intervals.difference(first, second)
        assert found.mean == pytest.approx(gain)
        assert np.isnan([found.low, found.high, found.p]).all()


@given(SCORES, SCORES, st.floats(-50, 50))
def test_a_difference_changes_its_sign_with_the_sides_and_not_with_the_origin(first, second, shift):
    there, back = intervals.difference(first, second), intervals.difference(second, first)
    moved = intervals.difference(*({seed: value + shift for seed, value in side.items()} for side in (first, second)))
    assert there.pairs == back.pairs == moved.pairs == len(first.keys() & second.keys())
    assert there.mean == pytest.approx(-back.mean, abs=1e-6)
    assert there.mean == pytest.approx(moved.mean, abs=1e-6)
    if not math.isnan(there.low) and not math.isnan(back.low):
        assert (there.low, there.high) == pytest.approx((-back.high, -back.low), abs=1e-6)


@given(st.lists(st.floats(0, 100), min_size=2, max_size=20), st.integers(2, 5))
def test_more_students_of_the_same_score_are_no_more_evidence(values, students):
    once = intervals.mean(intervals.by_seed(range(len(values)), values))
    often = intervals.mean(intervals.by_seed([*range(len(values))] * students, values * students))
    assert often == pytest.approx(once, rel=1e-6, abs=1e-6, nan_ok=True)


def test_the_spread_of_students_is_pooled_over_sets():
    assert intervals.spread([0, 0, 1, 1], [1.0, 3.0, 10.0, 16.0]) == pytest.approx(math.sqrt((2 + 18) / 2))
    assert math.isnan(intervals.spread([0, 1], [1.0, 3.0]))
