"""Which classes students get right, and what they take others for."""

import numpy as np

from tests.report.test_results import result
from wmdd.report.by_class import MISTAKES, by_class, for_page
from wmdd.report.results import rows

COUNTS = [
    {"right": [1, 2, 0], "total": [2, 2, 2], "confusion": [[1, 1, 0], [0, 2, 0], [1, 1, 0]]},
    {"right": [2, 2, 1], "total": [2, 2, 2], "confusion": [[2, 0, 0], [0, 2, 0], [0, 1, 1]]},
]


def counted(counts):
    results = [result(0.5, seed=seed) for seed in range(len(counts))]
    contents = [
        content | ({} if count is None else {"by_class": count})
        for (_, content), count in zip(results, counts, strict=True)
    ]
    return by_class(contents, rows(results))


def test_students_of_a_method_are_counted_together_and_results_of_earlier_versions_left_out():
    (students,) = counted([*COUNTS, None])
    assert (students.method, students.place["ipc"]) == ("wmdd", 10)
    assert students.right.tolist() == [3, 4, 1]
    assert students.confusion.tolist() == [[3, 1, 0], [0, 4, 0], [1, 2, 1]]
    assert counted([None]) == []


def test_the_page_has_tenths_of_a_percent_and_the_most_frequent_mistakes_first():
    page = for_page(counted(COUNTS), {"digits": ["a", "b", "a"]}, lambda place: place["dataset"])
    assert page["names"] == {"digits": ["a (0)", "b", "a (2)"]}
    (setting,) = page["settings"]
    assert setting == {
        "title": "digits", "dataset": "digits",
        "methods": [{"name": "wmdd", "top1": [750, 1000, 250], "confusion": [2, 1, 500, 0, 1, 250, 2, 0, 250]}],
    }  # fmt: skip
    many = [{name: counts for name, counts in COUNTS[0].items() if name != "confusion"}]  # more classes than are kept
    assert "confusion" not in for_page(counted(many), {"digits": "abc"}, str)["settings"][0]["methods"][0]


def test_a_page_has_a_bounded_number_of_mistakes():
    confusion = np.random.default_rng(0).integers(1, 9, (100, 100))
    count = {
        "right": confusion.diagonal().tolist(),
        "total": confusion.sum(1).tolist(),
        "confusion": confusion.tolist(),
    }
    page = for_page(counted([count]), {"digits": ["a"] * 100}, str)
    assert len(page["settings"][0]["methods"][0]["confusion"]) == 3 * MISTAKES
