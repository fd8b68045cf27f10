"""Numbers, times and bytes as they are written: rounding never leaves a number too large for its unit."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wmdd.base.units import BYTES, count, hours, seconds, size

SECONDS = {"s": 1, "min": 60, "h": 3600}


def digits(text: str) -> str:
    """The digits of a number that carry its value."""
    return text.partition("e")[0].replace(",", "").replace(".", "").lstrip("0")


@pytest.mark.parametrize(
    ("write", "value", "text"),
    [
        (size, 1, "1 B"), (size, 999, "999 B"), (size, 999.4, "999 B"), (size, 999.6, "1 kB"), (size, 999_499, "999 kB"),
        (size, 999_999, "1 MB"), (size, 1.5e9, "1.5 GB"), (size, 999.6e9, "1 TB"), (size, 999.6e15, "1 EB"),
        (size, 2e21, "2,000 EB"),
        (seconds, 0.0314, "0.031 s"), (seconds, 9.96, "10 s"), (seconds, 45, "45 s"), (seconds, 119.4, "119 s"),
        (seconds, 119.7, "2.0 min"), (seconds, 145, "2.4 min"), (seconds, 598, "10 min"), (seconds, 7169, "119 min"),
        (seconds, 7199, "2.0 h"), (seconds, 36e5, "1,000 h"),
        (hours, 360, "0.1"), (hours, 3599, "1.0"), (hours, 359_999, "100"), (hours, 36e5, "1,000"),
        (count, 7, "7"), (count, 1234.0, "1,234"), (count, 9_999_999, "9,999,999"), (count, 9_999_999.7, "1.00e07"),
        (count, 1.452e17, "1.45e17"),
    ],
)  # fmt: skip
def test_rounding_comes_before_the_unit(write, value, text):
    assert write(value) == text


@pytest.mark.parametrize("write", [count, seconds, hours, size])
def test_what_is_not_known_and_nothing(write):
    assert (write(math.nan), write(0)) == ("?", "")


@given(st.floats(1, 999.4e18))
def test_bytes_are_three_digits_of_a_unit(value):
    text, unit = size(value).split()
    power = BYTES.index(unit)
    assert 1 <= float(text) < 1000
    assert len(digits(text)) <= 3
    assert abs(float(text) * 1000**power - value) <= 0.0051 * value


@given(st.floats(1e-3, 7e6))
def test_times_are_in_the_first_unit_that_they_fit(value):
    text, unit = seconds(value).split()
    number = float(text.replace(",", ""))
    assert number < {"s": 120, "min": 120, "h": 2000}[unit]
    assert number >= {"s": 0, "min": 2, "h": 2}[unit]
    assert abs(number * SECONDS[unit] - value) <= 0.051 * value
    assert len(digits(text)) <= (3 if number < 1000 else 4)


@given(st.floats(1, 1e30))
def test_counts_keep_their_value(value):
    text = count(value)
    assert abs(float(text.replace(",", "")) - value) <= max(0.5, 0.0051 * value * (value > 9.9e6))
