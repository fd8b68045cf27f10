"""Every protocol that comes with the package labels a tiny set and trains a tiny student on it."""

import copy
import math

import pytest
import torch

from wmdd.base.rng import generator
from wmdd.datasets.loader import Resident
from wmdd.networks import whitening
from wmdd.networks.context import quiet
from wmdd.networks.engine import plain
from wmdd.networks.normalisation import Normalisation
from wmdd.stages.labels import hard, online, prune, pruned, stored
from wmdd.stages.relabel import relabel, seeds_of
from wmdd.stages.student import train
from wmdd.workflow.experiment import Experiment
from wmdd.workflow.experiment_file import presets

COUNT, CLASSES, EPOCHS = 15, 5, 2
NORMALISATION = Normalisation([0.5] * 3, [0.25] * 3)
PRESETS = Experiment({})


def labels_of(store, teacher, images, settings, batch):
    """The labels of a protocol's store, as the command opens them."""
    if store == "online":
        return online(0, teacher, batch)
    seeds = seeds_of(0, settings.labelled)
    logits = list(relabel(teacher, images, NORMALISATION, seeds, settings, 4, quiet(plain()), statistics_batch=batch))
    if store == "stored":
        return stored(logits, seeds)
    codes = [prune(each, settings.top_k, settings.temperature) for each in logits]
    return pruned(codes.__getitem__, seeds, CLASSES, EPOCHS)


@pytest.mark.parametrize("dataset", ["cifar10", "imagenette"])  # of 32 and of 224 px
@pytest.mark.parametrize("protocol", presets().protocols)
def test_a_protocol_trains_a_student(tiny_teacher, protocol, dataset):
    images = torch.randint(0, 256, (COUNT, 3, 16, 16), generator=generator("protocols"), dtype=torch.uint8)
    own = torch.arange(COUNT) % CLASSES
    views = PRESETS.resolve("relabel", dataset=dataset, method="random", protocol=protocol)
    settings = PRESETS.resolve("student", dataset=dataset, method="random", protocol=protocol, student="resnet18")
    assert settings.labels == "hard" or views.epochs >= settings.epochs
    views = views.model_copy(update={"epochs": EPOCHS})
    tiny = {"architecture": "convnet1", "width": 4, "epochs": EPOCHS, "batch_size": min(settings.batch_size, COUNT)}
    settings = settings.model_copy(update=tiny)
    batch = views.statistics_batch if views.statistics == "batch" else 0
    soft = settings.labels == "soft"
    labels = labels_of(views.store, copy.deepcopy(tiny_teacher), images, views, batch) if soft else hard(0)
    white = whitening.fit(Resident(images, own), NORMALISATION) if settings.whiten else None
    ((network, history, _),) = train(
        images, own, torch.ones(COUNT), labels, Resident(images, own), CLASSES, NORMALISATION, settings, views, 0, [0],
        quiet(plain()), white,
    )  # fmt: skip
    assert all(math.isfinite(entry["loss"]) and entry["loss"] > 0 for entry in history)
    assert "top1" in history[-1]
    assert network(torch.zeros(1, 3, 16, 16)).shape == (1, CLASSES)
