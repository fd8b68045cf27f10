"""What a reader is told first."""

import numpy as np
import pytest

from tests.report.test_results import result
from wmdd.report.glance import answers
from wmdd.report.results import rows

from .page.material import METHODS, cells_of


def spread(method, *values):
    return [result(value, method=method, seed=seed) for seed, value in enumerate(values)]


RANDOM = spread("random", 0.40, 0.43, 0.43)


def test_methods_are_better_worse_or_not_told_apart_and_the_best_is_one_of_many():
    students = RANDOM + spread("wmdd", 0.50, 0.52, 0.54)
    students += spread("sre2l", 0.30, 0.32, 0.34) + spread("d4m", 0.31, 0.42, 0.50) + spread("ddoq", 0.55, 0.57, 0.59)
    (answer,) = answers(cells_of(students), {})
    assert answer.title == "digits, 10 images per class"
    assert answer.sentences == [
        "ddoq (+15.0 points; 95 % interval +12.5 to +17.5; 3 seeds) and wmdd (+10.0 points; 95 % interval +7.5 to +12.5; "
        "3 seeds) are better than random real images.",
        "sre2l (−10.0 points; 95 % interval −12.5 to −7.5; 3 seeds) is worse than random real images.",
        "d4m (−1.0 points; 95 % interval −20.9 to +18.9; 3 seeds) is not told apart from random real images.",
        "Random real images reach 42.0 ± 1.7 %.",
        "The highest mean of the 4 methods, that of ddoq, is picked by these same numbers.",
    ]
    assert answers(cells_of(RANDOM), {}) == [], "nothing to compare"


def test_a_set_that_holds_more_images_than_an_epoch_shows_is_called_so():
    coded = spread("wmdd-coded", 0.50, 0.52, 0.54)
    for _, content in coded:
        content["result"]["images_held"] = 1150
    (answer,) = answers(cells_of(RANDOM + coded), {})
    assert "3 seeds; 1,150 images per class held) is better" in answer.sentences[0]


def test_points_are_differences_of_the_same_seed():
    (answer,) = answers(cells_of(RANDOM + spread("wmdd", 0.50, 0.52, 0.54)), {})
    seeds = answer.points.dropna(subset="seed").set_index("seed")["gain"].to_dict()
    assert seeds == pytest.approx({0: 10, 1: 9, 2: 11})
    (mean,) = answer.points[answer.points["seed"].isna()].to_dict("records")
    assert (mean["gain"], mean["said"]) == (pytest.approx(10), "+10.0 (+7.5 to +12.5; 3)")
    assert mean["high"] - mean["gain"] == pytest.approx(4.303 / np.sqrt(3), abs=1e-3)  # t(0.975, 2) std / sqrt(n)
    other = [result(0.5, method="wmdd", seed=seed) for seed in (7, 8)]  # no seed of random images
    (answer,) = answers(cells_of(RANDOM + other), {})
    assert answer.points.dropna(subset="seed")["gain"].tolist() == pytest.approx([8, 8])
    assert "unpaired" in answer.sentences[0]


def test_the_whole_training_set_and_the_teacher_stand_beside_random_images_and_win_nothing():
    students = RANDOM + spread("whole", 0.80, 0.80, 0.83) + spread("wmdd", 0.5, 0.5, 0.5)
    cells = cells_of(students)
    cells = cells.assign(family=cells["method"].map({"random": "select", "whole": "select", "wmdd": "recover"}))
    (answer,) = answers(cells, {("digits", cells["teacher"].iloc[0]): 90.0, ("digits", "other"): 10.0})
    assert "Random real images reach 42.0 ± 1.7 %, the whole set 81.0 % and the teacher 90.0 %." in answer.sentences
    assert answer.references == pytest.approx({"whole set": 39, "teacher": 48})
    assert set(answer.points["method"]) == {"wmdd"}
    (answer,) = answers(cells[cells["method"] != "random"], {})
    assert answer.sentences == ["wmdd (distilled images) reaches 50.0 ± 0.0 %."]
    assert answer.points.empty


def test_without_random_images_the_best_distilled_set_stands_beside_the_best_of_real_images(all_of_it):
    found = answers(all_of_it.cells[all_of_it.cells["method"] != "random"], {})
    assert len(found) == 2 * 2 * 2
    (soft,) = [
        each for each in found if "10 images" in each.title and "resnet18" in each.title and "soft" in each.title
    ]
    assert soft.title == "imagenette, 10 images per class, student resnet18, protocol paper, soft labels"
    assert soft.sentences == [
        "wmdd (distilled images) reaches 47.1 ± 0.7 %, the highest mean of 5 distilled sets.",
        "kmeans-medoid (real images) reaches 38.1 ± 0.7 %.",
        "wmdd (+9.0 points; 2 seeds) is not told apart from kmeans-medoid.",
    ]
    assert len(METHODS) == 7


def test_selections_of_real_images_are_never_the_best_distilled_set():
    """`wmdd-plus`, `confident-medoid`, mosaics and patches are real images; what is not known is neither."""
    of = {"wmdd-plus": (0.8, 0.9), "theirs": (0.9, 0.95), "wmdd": (0.3, 0.4)}
    family = {"wmdd-plus": "select", "wmdd": "recover", "theirs": ""}
    cells = rows([student for method, values in of.items() for student in spread(method, *values)])
    (answer,) = answers(cells.assign(family=cells["method"].map(family)), {})
    assert answer.sentences[0].startswith("wmdd (distilled images) reaches 35.0")
    assert "theirs" not in " ".join(answer.sentences)
    assert answers(cells.assign(family="select"), {}) == []
