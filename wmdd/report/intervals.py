"""Means, differences and their 95 % intervals: the one place that decides what a ± and an interval mean.

One seed of the distillation is one observation. Students of the same distilled set share its luck, so they are averaged first:
x_s = mean of the students of seed s. Of n seeds

    mean      m = sum_s x_s / n,   std = sqrt(sum_s (x_s - m)^2 / (n - 1))
    interval  m ± t(0.975, n - 1) std / sqrt(n)

and of two sides a and b

    paired    d_s = b_s - a_s over the seeds that both have:   mean d ± t(0.975, n - 1) std(d) / sqrt(n)
    Welch     no seed in common:   m_b - m_a ± t(0.975, f) sqrt(v),   v = v_a + v_b,   v_i = std_i^2 / n_i,
              f = v^2 / (v_a^2 / (n_a - 1) + v_b^2 / (n_b - 1))

and of a method in the gap between random images and the whole training set, by the seeds that all three have,

    share     r = a / b,   a = mean (method_s - random_s),   b = mean (whole_s - random_s)
    Fieller   all r with (a - r b)^2 <= t(0.975, n - 1)^2 (v_a - 2 r v_ab + r^2 v_b),   v of the means;
              where b is not told apart from 0, this is no interval, and there is no share

with t the quantile of Student's distribution [1, 2, 3]. All of it takes the x_s for normal; of two or three seeds that is a
guess. A single seed has no deviation and no interval (NaN).

[1] Student (1908), The probable error of a mean. Biometrika 6.
[2] Welch (1947), The generalization of Student's problem when several different population variances are involved.
    Biometrika 34.
[3] Fieller (1954), Some problems in interval estimation. Journal of the Royal Statistical Society B 16.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

LEVEL = 0.95
NONE = math.nan
SMALLEST = 1e-9  # a deviation below it is rounding


class Mean(NamedTuple):
    """A mean over seeds, and what is known of it."""

    mean: float
    std: float
    n: int  # seeds
    low: float
    high: float


class Difference(NamedTuple):
    """A difference of two means, and what is known of it.

    `pairs` counts the seeds that both sides have; 0 says that they share none (Welch).
    """

    mean: float
    low: float
    high: float
    p: float
    pairs: int


class Share(NamedTuple):
    """The share of a gap that is closed, and its interval."""

    mean: float
    low: float
    high: float


def by_seed(seeds: Iterable[int], values: Iterable[float]) -> dict[int, float]:
    """Return the mean over students of each seed."""
    students: dict[int, list[float]] = {}
    for seed, value in zip(seeds, values, strict=True):
        students.setdefault(seed, []).append(value)
    return {seed: float(np.mean(scores)) for seed, scores in sorted(students.items())}


def spread(seeds: Iterable[int], values: Iterable[float]) -> float:
    """Return the standard deviation of the students of one distilled set, pooled over the sets; NaN if none has two.

    sqrt(sum_s sum_r (x_sr - x_s)^2 / sum_s (R_s - 1)), of the R_s students of seed s.
    """
    seeds, values = list(seeds), list(values)
    means = by_seed(seeds, values)
    freedom = len(values) - len(means)
    squares = sum((value - means[seed]) ** 2 for seed, value in zip(seeds, values, strict=True))
    return math.sqrt(squares / freedom) if freedom else NONE


def mean(values: Mapping[int, float]) -> Mean:
    """Return the mean over seeds, with its deviation and interval.

    Args:
        values: by seed, at least one.
    """
    each = np.array(list(values.values()))
    average, n = float(each.mean()), len(each)
    std = float(each.std(ddof=1)) if n > 1 else NONE
    half = _half(std / math.sqrt(n), n - 1) if n > 1 else NONE
    return Mean(average, std, n, average - half, average + half)


def difference(first: Mapping[int, float], second: Mapping[int, float]) -> Difference:
    """Return second - first: paired by seed where the sides have seeds in common, else by Welch.

    Args:
        first: by seed, at least one.
        second: the same.
    """
    seeds = sorted(first.keys() & second.keys())
    if seeds:
        each = np.array([second[seed] - first[seed] for seed in seeds])
        error = each.std(ddof=1) / math.sqrt(len(each)) if len(each) > 1 else NONE
        return _tested(float(each.mean()), float(error), len(each) - 1, len(each))
    a, b = (np.array(list(side.values())) for side in (first, second))
    gain = float(b.mean() - a.mean())
    if min(len(a), len(b)) < 2:
        return _tested(gain, NONE, 1, 0)
    shares = [float(side.var(ddof=1)) / len(side) for side in (a, b)]
    total, rest = sum(shares), sum(share**2 / (len(side) - 1) for share, side in zip(shares, (a, b), strict=True))
    return _tested(gain, math.sqrt(total), total**2 / rest if rest else 1.0, 0)


def share(control: Mapping[int, float], method: Mapping[int, float], limit: Mapping[int, float]) -> Share:
    """Return (method - control) / (limit - control) with Fieller's interval, by the seeds that all three have.

    Where the gap itself is not told apart from 0, or there are fewer than two seeds, there is no share (NaN).
    """
    from scipy.stats import t

    seeds = sorted(control.keys() & method.keys() & limit.keys())
    if len(seeds) < 2:
        return Share(NONE, NONE, NONE)
    gains = np.array([[side[seed] - control[seed] for seed in seeds] for side in (method, limit)])
    a, b = gains.mean(1)
    (v_a, v_ab), (_, v_b) = np.cov(gains) / len(seeds) * t.ppf((1 + LEVEL) / 2, len(seeds) - 1) ** 2
    square, middle, rest = b * b - v_b, a * b - v_ab, a * a - v_a
    if b <= 0 or square <= 0:
        return Share(NONE, NONE, NONE)
    half = math.sqrt(max(0.0, middle * middle - square * rest))
    if not half > SMALLEST:  # the same gain and gap for each seed
        return Share(float(a / b), NONE, NONE)
    return Share(float(a / b), (middle - half) / square, (middle + half) / square)


def _tested(gain: float, error: float, freedom: float, pairs: int) -> Difference:
    from scipy.stats import t

    if not error > SMALLEST:  # a single seed, or the same difference for each
        return Difference(gain, NONE, NONE, NONE, pairs)
    half = _half(error, freedom)
    return Difference(gain, gain - half, gain + half, float(2 * t.sf(abs(gain) / error, freedom)), pairs)


def _half(error: float, freedom: float) -> float:
    from scipy.stats import t

    return float(t.ppf((1 + LEVEL) / 2, freedom)) * error


def mean_text(mean: float, std: float, n: int, sets: int | None = None) -> str:
    """Return "mean ± std (n)", n the number of seeds; and how many distilled sets, where several seeds have the same one."""
    same = f", {sets} set{'s' * (sets > 1)}" if sets and sets < n else ""
    return f"{mean:.1f}{'' if math.isnan(std) else f' ± {std:.1f}'} ({n}{same})"


def interval_text(low: float, high: float, sign: str = "") -> str:
    """Return "low to high", empty where there is no interval."""
    return "" if math.isnan(low) else with_minus(f"{low:{sign}.1f} to {high:{sign}.1f}")


def difference_text(gain: Difference) -> str:
    """Return "difference (interval; n)", n the number of pairs of seeds."""
    interval = "" if math.isnan(gain.low) else f"{interval_text(gain.low, gain.high, '+')}; "
    return f"{signed(gain.mean)} ({interval}{gain.pairs or 'unpaired'})"


def share_text(closed: Share) -> str:
    """Return "share (low to high)", empty where there is none."""
    if math.isnan(closed.mean):
        return ""
    interval = "" if math.isnan(closed.low) else f" ({closed.low:.2f} to {closed.high:.2f})"
    return with_minus(f"{closed.mean:.2f}{interval}")


def signed(value: float) -> str:
    """Return a difference with its sign."""
    return with_minus(f"{value:+.1f}")


def with_minus(text: str) -> str:
    """Return numbers with the sign − that all tables have; exponents keep their hyphen."""
    return re.sub(r"(?<!e)-(?=\d)", "−", text)


def verdict(gain: Difference) -> str:
    """Return what the interval of a difference allows to say."""
    return "better" if gain.low > 0 else "worse" if gain.high < 0 else "not told apart"
