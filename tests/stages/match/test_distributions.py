"""DM and DataDAM: the loss against a plain evaluation, classes that do not know of each other, resuming, bad input."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from wmdd.base.errors import WmddError
from wmdd.base.rng import generator
from wmdd.datasets.loader import Resident
from wmdd.networks import siamese
from wmdd.networks.context import quiet
from wmdd.networks.engine import plain
from wmdd.networks.models import build, normalise
from wmdd.networks.normalisation import Normalisation
from wmdd.settings.match import MatchSettings
from wmdd.stages.match import real, start
from wmdd.stages.match.distributions import attention, loss, match, means
from wmdd.stages.select import random

CLASSES, K, SIDE, EACH = 3, 2, 8, 9
NORMALISATION = Normalisation([0.5, 0.4, 0.6], [0.2, 0.3, 0.25])
NAMES = ["a", "b", "c"]
DM = MatchSettings(objective="dm", architecture="convnet2", width=4, iterations=3, lr=2.0, real_batch=4)
DATADAM = DM.model_copy(update={"objective": "datadam", "lr": 50.0})
BOTH = pytest.mark.parametrize("settings", [DM, DATADAM], ids=["dm", "datadam"])


def pictures():
    labels = torch.arange(CLASSES).repeat_interleave(EACH)
    images = torch.randint(0, 256, (len(labels), 3, SIDE, SIDE), generator=generator("dm pictures"))
    return Resident(images.to(torch.uint8), labels)


def found_of(block=range(CLASSES), least=4):
    return real(pictures(), list(block), NAMES, least)


def matched(settings, block=range(CLASSES), **changes):
    context = replace(quiet(plain()), **changes)
    return match(found_of(block), CLASSES, K, NORMALISATION, settings, 0, context).images


def network(settings):
    return build(settings, CLASSES, SIDE, generator("dm network"))


def test_attention_is_where_the_energy_is_with_norm_one():
    maps = torch.zeros(1, 2, 2, 2)
    maps[0, :, 0, 1] = torch.tensor([1.0, 2.0])
    maps[0, 0, 1, 1] = -2.0
    energy = torch.tensor([[0.0, 17.0, 0.0, 16.0]])
    torch.testing.assert_close(attention(maps, 4), energy / energy.norm())


@BOTH
def test_the_loss_is_the_equation_evaluated_class_by_class(settings):
    net = network(settings)
    truth = torch.randn(CLASSES * 5, 3, SIDE, SIDE, generator=generator("dm truth"))
    fake = torch.randn(CLASSES, K, 3, SIDE, SIDE, generator=generator("dm fake"))
    found = loss(net, fake, means(net, truth, CLASSES, settings, plain()), settings, plain())
    for c in range(CLASSES):
        x, s = truth[5 * c : 5 * c + 5], fake[c]
        if settings.objective == "dm":
            wanted = (net.embed(x).mean(0) - net.embed(s).mean(0)).square().sum()
        else:
            (first, _, last), (first_s, _, last_s) = net.maps(x), net.maps(s)
            rows, rows_s = (F.normalize(m.pow(4).sum(1).flatten(1), dim=1) for m in (first, first_s))
            wanted = (rows.mean(0) - rows_s.mean(0)).square().sum()
            wanted = wanted + 0.01 * (last.mean(0) - last_s.mean(0)).square().sum()
        torch.testing.assert_close(found[c], wanted)


@BOTH
def test_a_class_is_the_same_alone_and_beside_others(settings):
    together = matched(settings)
    alone = torch.cat([matched(settings, range(c, c + 1)) for c in range(CLASSES)])
    assert (together.int() - alone.int()).abs().max() <= 1


@BOTH
def test_one_step_is_that_of_the_gradient_of_the_equation(settings):
    """A step of the whole stage, against its parts put together by hand: network, real images, distortion, momentum, range."""
    settings = settings.model_copy(update={"iterations": 1})
    found, net = found_of(), build(settings, CLASSES, SIDE, generator("match", "network", 0, 0))
    x = start(found, K, NORMALISATION, settings, 0).requires_grad_()
    total = torch.zeros(())
    for c in range(CLASSES):
        order = torch.randperm(EACH, generator=generator("match", "real", 0, 0, c))[:4]
        truth = normalise(pictures().images[EACH * c + order], NORMALISATION)
        how = siamese.draw(generator("match", "view", 0, 0, c), 1)
        target = means(net, siamese.apply(truth, how.repeated(4)), 1, settings, plain())
        total = total + loss(net, siamese.apply(x[c], how.repeated(K))[None], target, settings, plain()).sum()
    total.backward()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in NORMALISATION)
    wanted = (x - settings.lr * x.grad) * std + mean
    torch.testing.assert_close(matched(settings), wanted.detach(), atol=1e-4, rtol=0)
    picture = matched(settings.model_copy(update={"pixels": "picture"}))
    assert picture.dtype == torch.uint8
    assert (picture.float() - 255 * wanted.clamp(0, 1)).abs().max() <= 0.53
    assert (matched(settings) != matched(settings.model_copy(update={"lr": 1e-9}))).any()


@BOTH
def test_the_loss_falls(settings):
    losses = []
    still = {"iterations": 100, "init": "noise", "pool": 1, "views": "none"}
    matched(settings.model_copy(update=still), log=lambda metrics, step: losses.append(metrics["loss"]))
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_real_starts_are_the_images_of_random_under_the_same_seed():
    begun = start(found_of(), K, NORMALISATION, DM, 3)
    for c in range(CLASSES):
        chosen, _ = random(EACH, K, 3, c)
        torch.testing.assert_close(begun[c], normalise(pictures().images[EACH * c + chosen], NORMALISATION))
    noise = start(found_of(), K, NORMALISATION, DM.model_copy(update={"init": "noise"}), 3)
    assert not torch.equal(begun, noise)


@BOTH
def test_it_goes_on_after_any_kill_with_the_same_bits(settings, dying_keeper):
    again = dying_keeper.after(lambda keeper: matched(settings, keeper=keeper), 2, 3)
    assert torch.equal(matched(settings, keeper=again), matched(settings))


def test_networks_of_a_pool_come_again():
    one = matched(DM.model_copy(update={"pool": 1}))
    assert not torch.equal(one, matched(DM))
    assert torch.equal(matched(DM.model_copy(update={"pool": 3})), matched(DM))  # three steps see all three


def test_too_few_real_images_for_the_batch_are_refused_by_name():
    said = r"class a has 9 real images, but 10 are to be drawn at once; lower match.real_batch"
    with pytest.raises(WmddError, match=said):
        found_of(least=10)


def test_networks_that_tie_images_together_and_runs_that_change_nothing_are_refused():
    for change, said in (
        ({"norm": "batch"}, "match: BatchNorm ties the images of a batch to each other; set norm: instance"),
        (
            {"architecture": "resnet18"},
            "match: the network must be a ConvNet, not resnet18; set architecture: convnet3",
        ),
        ({"lr": 0.0}, "match: lr 0 leaves the images as they are, and dm learns nothing else; raise lr"),
    ):
        with pytest.raises(WmddError, match=said):
            matched(DM.model_copy(update=change))


def test_a_loss_that_is_no_number_stops_with_the_remedy():
    with pytest.raises(WmddError, match=r"the loss is not a number at iteration \d+; lower match.lr"):
        matched(DM.model_copy(update={"lr": float("inf")}))
