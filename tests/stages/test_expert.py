"""Experts: what is kept are the parameters after each epoch of plain gradient descent, whatever became of the job meanwhile."""

from contextlib import suppress
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from wmdd.base.errors import WmddError
from wmdd.base.rng import generator
from wmdd.datasets.loader import Resident
from wmdd.networks import siamese, whitening
from wmdd.networks.context import quiet
from wmdd.networks.engine import plain
from wmdd.networks.models import build, normalise
from wmdd.networks.normalisation import Normalisation
from wmdd.networks.training import batches_of, evaluate
from wmdd.networks.whitening import Whitened
from wmdd.settings.match import ExpertSettings
from wmdd.stages.expert import flat, train

CLASSES, SIDE, EACH = 3, 8, 6
NORMALISATION = Normalisation([0.5, 0.4, 0.6], [0.2, 0.3, 0.25])
STEPS = 4  # of an epoch, and its end: five chances to keep something


def pictures(seed=0):
    """Classes of different brightness."""
    labels = torch.arange(CLASSES).repeat_interleave(EACH)
    noise = torch.randint(0, 80, (len(labels), 3, SIDE, SIDE), generator=generator("expert pictures", seed))
    return Resident((noise + 80 * labels[:, None, None, None]).to(torch.uint8), labels)


def settings(**changes):
    usual = {"architecture": "convnet2", "width": 4, "epochs": 3, "batch_size": 5, "lr": 0.1}
    return ExpertSettings(**usual | changes)


def trained(seed=0, context=None, white=None, **changes):
    return train(
        pictures(), pictures(1), CLASSES, NORMALISATION, white, settings(**changes), seed, context or quiet(plain())
    )


@pytest.mark.parametrize(("views", "whiten"), [("none", False), ("dsa", True)])
def test_rows_are_the_parameters_after_each_epoch_and_the_first_is_the_fresh_network(views, whiten):
    white = whitening.fit(pictures(), NORMALISATION) if whiten else None
    found, history = trained(2, white=white, views=views)
    network, labels = build(settings(), CLASSES, SIDE, generator("expert", "weights", 2)), pictures().labels
    assert found.shape == (4, sum(p.numel() for p in network.parameters()))
    assert torch.equal(found[0], flat(network))
    for epoch in range(3):
        how = siamese.draw(generator("expert", "views", 2, epoch), len(labels))
        order = torch.randperm(len(labels), generator=generator("expert", "order", 2, epoch))
        losses = []
        for index in batches_of(order, 5):
            x = normalise(pictures().images[index], NORMALISATION)
            x = white.apply(x) if white else x
            x = siamese.apply(x, how.of(index)) if views == "dsa" else x
            loss = F.cross_entropy(network(x), labels[index])
            gradients = torch.autograd.grad(loss, list(network.parameters()))
            with torch.no_grad():
                for p, gradient in zip(network.parameters(), gradients, strict=True):
                    p -= 0.1 * gradient
            losses.append(loss.item())
        torch.testing.assert_close(found[epoch + 1], flat(network), rtol=1e-4, atol=1e-6)
        assert history[epoch]["loss"] == pytest.approx(sum(losses) / STEPS, rel=1e-4)


def test_the_history_is_the_accuracy_of_the_rows():
    white = whitening.fit(pictures(), NORMALISATION)
    rows, history = trained(white=white)
    for row, entry in zip(rows[1:], history, strict=True):
        network = build(settings(), CLASSES, SIDE, generator("any"))
        torch.nn.utils.vector_to_parameters(row, network.parameters())
        found = evaluate(Whitened(network, white), pictures(1), NORMALISATION, plain())
        assert {"top1": entry["top1"], "top5": entry["top5"]} == found


def test_an_expert_learns():
    _, history = trained(epochs=12)
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]
    assert history[-1]["top1"] > 0.8


@pytest.mark.parametrize(
    ("save_at", "rows"),
    [(2, 1), (STEPS + 1, 2), (3 * STEPS + 2, 3), (3 * STEPS + 3, 4)],
    ids=["in the first epoch", "after it", "in the last", "at the end"],
)
def test_it_goes_on_after_any_kill_with_the_same_bits(dying_keeper, save_at, rows):
    whole, history = trained()
    keeper = dying_keeper(save_at, save_at + 1)
    context = replace(quiet(plain()), keeper=keeper)
    with suppress(keeper.Killed):  # at the end there is nothing left to kill
        trained(context=context)
    assert len(keeper.load()["trajectory"]) == rows
    again, told = trained(context=context)
    assert torch.equal(again, whole)
    assert told == history


def test_several_kills_leave_no_row_twice(dying_keeper):
    keeper = dying_keeper()
    context = replace(quiet(plain()), keeper=keeper)
    for save_at, die_at in (3, 4), (9, 10), (12, 14):  # of the chances of all attempts
        keeper.save_at, keeper.die_at = save_at, die_at
        with pytest.raises(keeper.Killed):
            trained(context=context)
    assert torch.equal(trained(context=context)[0], trained()[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": "batch"}, r"^expert: BatchNorm ties the images of a batch to each other; set norm: instance$"),
        ({"architecture": "resnet18"}, r"^expert: the network must be a ConvNet, not resnet18; set architecture: conv"),
        ({"architecture": "convnet4"}, r"^convnet4 halves pictures of 8 px to nothing"),
    ],
)
def test_networks_that_cannot_be_matched_are_refused(changes, message):
    with pytest.raises(WmddError, match=message):
        trained(**changes)


def test_a_loss_that_is_no_number_stops_with_the_remedy():
    with pytest.raises(WmddError, match=r"the loss is not a number after epoch 1; lower lr"):
        trained(lr=1e30, norm="none")
