"""The map of real and distilled images."""

import numpy as np
import torch

from wmdd.stages import embedding


def test_near_features_are_near_on_the_map_and_always_at_the_same_place():
    draw = torch.Generator().manual_seed(0)
    centres = 20 * torch.randn(3, 16, generator=draw)
    features = torch.cat([centre + torch.randn(20, 16, generator=draw) for centre in centres])
    places = embedding.plane(features)
    assert places.shape == (60, 2)
    assert np.array_equal(places, embedding.plane(features))
    groups = places.reshape(3, 20, 2)
    within = max(np.linalg.norm(group - group.mean(0), axis=1).max() for group in groups)
    between = min(np.linalg.norm(a.mean(0) - b.mean(0)) for i, a in enumerate(groups) for b in groups[:i])
    assert between > 2 * within


def test_few_points_have_a_map_too():
    assert embedding.plane(torch.randn(4, 8)).shape == (4, 2)


def test_the_real_images_of_a_map_are_always_the_same():
    rows = np.arange(500)
    assert np.array_equal(embedding.sample(rows, "3"), embedding.sample(rows, "3"))
    assert len(embedding.sample(rows, "3")) == embedding.REAL
    assert not np.array_equal(embedding.sample(rows, "3"), embedding.sample(rows, "4"))
    assert np.array_equal(embedding.sample(rows[:5], "3"), rows[:5])
