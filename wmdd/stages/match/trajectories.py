r"""MTT: distilled images on which a student goes where networks went that were trained on the real ones.

An expert (`wmdd.stages.expert`) went from theta*_t to theta*_{t+M} in M epochs of the real data. A student begins at theta*_t
and takes N steps on batches b_i of the distilled images X with labels y, under siamese augmentation A
(`wmdd.networks.siamese`),

    theta_{i+1} = theta_i - alpha g_i,    g_i = grad_theta CE(f_theta(A(X_{b_i})), y_{b_i}) at theta_i

    L = ||theta_N - theta*_{t+M}||^2 / ||theta*_t - theta*_{t+M}||^2              (Cazenavette et al. 2022, Eq. 2)

and X, the learning rate alpha and, with `labels: learned`, the labels' logits descend L by gradient descent with momentum.

The gradient goes backwards through the steps by hand. With v_N = dL/dtheta_N, for i = N - 1, ..., 0

    dL/dX_{b_i} = -alpha d<g_i, v_{i+1}>/dX_{b_i},    dL/dalpha += -<g_i, v_{i+1}>
    v_i = v_{i+1} - alpha d<g_i, v_{i+1}>/dtheta_i

where each product is one reverse pass over g_i, recomputed from theta_i (`torch.func`). So no graph is older than one step, and
beside the activations of one step memory holds the theta_i alone, 4 P bytes each: 1.3 MB for ConvNet-3 of width 128. Published
code keeps the graphs of all steps; the recomputation takes about a third more FLOP (11 F a step and image in place of 8 F).

The images of all classes are one student's training set: nothing separates by class, and the stage has one block. A batch is
`student_batch` of them, all by default.

Departures: pixels are kept within [0, 255] (`wmdd.stages.match`); alpha is kept above zero; which expert, where a student
begins and the order of batches are drawn for (seed, iteration).
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmdd.base.errors import WmddError
from wmdd.base.rng import generator
from wmdd.networks import siamese
from wmdd.networks.context import Context
from wmdd.networks.engine import resume
from wmdd.networks.models import bounds_of, build, to_pixels
from wmdd.networks.training import batches_of
from wmdd.networks.whitening import Whitening
from wmdd.stages.match import Matched, Real, start, within

if TYPE_CHECKING:
    from wmdd.settings.match import ExpertSettings, MatchSettings

SURE = 10.0  # by which the logit of its class is above the others', where labels are learned
LEAST = 1e-6  # learning rate of a student


class Step(NamedTuple):
    """What a student's step is given: images [B, 3, R, R] and label probabilities [B, C], with graphs that end in X and y."""

    images: Tensor
    labels: Tensor


class Unrolled(NamedTuple):
    """Loss L, its derivative by the learning rate, and the student's end [P]; those by X and y are in their `.grad`."""

    loss: Tensor
    by_rate: Tensor
    end: Tensor


Grad = Callable[[Tensor, Tensor, Tensor], Tensor]


def gradient_of(network: nn.Module) -> Grad:
    """Return (theta [P], images [B, 3, R, R], label probabilities [B, C]) -> the gradient of the mean cross-entropy, [P]."""
    shapes = {name: p.shape for name, p in network.named_parameters()}
    sizes = [shape.numel() for shape in shapes.values()]

    def loss(theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        parts = {n: part.view(shape) for (n, shape), part in zip(shapes.items(), theta.split(sizes), strict=True)}
        return F.cross_entropy(torch.func.functional_call(network, parts, (images,)), labels)

    return torch.func.grad(loss)


def unrolled(
    gradient: Grad, begin: Tensor, target: Tensor, step_of: Callable[[int], Step], steps: int, rate: float
) -> Unrolled:
    """Take N steps from `begin` [P], and return L and its derivatives; memory does not grow with N but by the theta_i.

    Args:
        gradient: of `gradient_of`.
        begin: theta*_t.
        target: theta*_{t+M}.
        step_of: gives step i, the same whenever it is asked.
        steps: N.
        rate: alpha.
    """
    places = [begin]
    for i in range(steps):
        with torch.no_grad():
            images, labels = step_of(i)
        places.append(places[-1] - rate * gradient(places[-1], images, labels).detach())
    end = places.pop()
    distance = (begin - target).square().sum()
    loss = (end - target).square().sum() / distance
    v = 2 * (end - target) / distance
    by_rate = torch.zeros((), device=begin.device)
    for i in reversed(range(steps)):
        step = step_of(i)
        inputs = (places.pop(), step.images.detach(), step.labels.detach())
        g, pull = cast(tuple[Tensor, Any], torch.func.vjp(gradient, *inputs))
        by_theta, by_images, by_labels = pull(v)
        by_rate = by_rate - (g * v).sum()
        ends = [(step.images, -rate * by_images), (step.labels, -rate * by_labels)]
        known = [(made, by) for made, by in ends if made.requires_grad]
        torch.autograd.backward([made for made, _ in known], [by for _, by in known])
        v = v - rate * by_theta
    return Unrolled(loss, by_rate, end)


def match(
    found: Real,
    classes: int,
    k: int,
    mean: list[float],
    std: list[float],
    experts: "Sequence[Any]",
    trained: "ExpertSettings",
    whitening: Whitening | None,
    settings: "MatchSettings",
    seed: int,
    context: Context,
) -> Matched:
    """Return the images of all classes, the learned rate and, if they are learned, labels [C, K, C] (probabilities).

    Args:
        found: the real images.
        classes: C.
        k: images per class.
        mean: per channel, of the normalisation.
        std: per channel.
        experts: trajectories [E + 1, P], rows of which are read.
        trained: their settings; the student is the same network.
        whitening: of the training images, if the experts saw whitened ones; X is then whitened, and the result is not.
        settings: the student and the optimisation.
        seed: of the distillation.
        context: engine, checkpoints, log, progress.

    Raises:
        WmddError: the experts are too short, or a student's step leads to no number.
    """
    engine, side = context.engine, found.pictures.resolution
    shortest = min(len(each) for each in experts) - 1
    if settings.start_epochs - 1 + settings.expert_epochs > shortest:
        raise WmddError(
            f"an expert has {shortest} epochs, but match begins at up to {settings.start_epochs - 1} of them and goes on for "
            f"{settings.expert_epochs}; train the experts longer, or lower start_epochs or expert_epochs"
        )
    network = engine.place(build(trained, classes, side, generator("match", "student", seed))).train()
    gradient = gradient_of(network)
    white = None if whitening is None else whitening.to(engine.device)
    state = context.keeper.load()
    x, logits, rate = _begin(state, found, classes, k, mean, std, white, settings, seed, engine.device)
    pixels = engine.optimizer("sgd", [x], settings.lr, momentum=settings.momentum)
    others = [
        engine.optimizer("sgd", [each], each_lr, momentum=settings.momentum)
        for each, each_lr in [(rate, settings.rate_lr), (logits, settings.labels_lr)]
        if each is not None and each.requires_grad
    ]
    first = 0
    if state:
        for optimizer, kept in zip([pixels, *others], state["optimizers"], strict=True):
            resume(optimizer, kept)
        first = int(state["iteration"])
    bounds = bounds_of(mean, std, engine.device)
    hard = F.one_hot(torch.arange(classes).repeat_interleave(k), classes).float().to(engine.device)
    every = max(1, settings.iterations // 200)
    for i in context.progress(range(first, settings.iterations), "matching", settings.iterations, first):
        draws = generator("match", "trajectory", seed, i)
        expert = experts[int(torch.randint(len(experts), (), generator=draws))]
        t = int(torch.randint(settings.start_epochs, (), generator=draws))
        begin, target = (torch.as_tensor(expert[place]).to(engine.device) for place in (t, t + settings.expert_epochs))
        parts = _batches(len(x), settings, seed, i)

        def step_of(number: int, parts: list[Tensor] = parts, i: int = i) -> Step:
            index = parts[number].to(engine.device)
            seen = x[index]
            if settings.views == "dsa":
                how = siamese.draw(generator("match", "view", seed, i, number), len(index))
                seen = siamese.apply(seen, how.to(engine.device))
            labels = hard if logits is None else logits.softmax(1)
            return Step(engine.arranged(seen, network), labels[index])

        for optimizer in (pixels, *others):
            optimizer.zero_grad(set_to_none=True)
        made = unrolled(gradient, begin, target, step_of, settings.student_steps, rate.item())
        rate.grad = made.by_rate.reshape(())
        value = float(made.loss)
        if i % every == 0 or i + 1 == settings.iterations or not math.isfinite(value):
            context.log({"loss": value, "student_lr": rate.item()}, i)
        grads = [each.grad for each in (x, rate, logits) if each is not None and each.grad is not None]
        if not (math.isfinite(value) and all(bool(grad.isfinite().all()) for grad in grads)):
            raise WmddError(
                f"a student's {settings.student_steps} steps lead to no number at iteration {i} (its learning rate is "
                f"{rate.item():.3g}); lower match.lr ({settings.lr:g}), rate_lr ({settings.rate_lr:g}) or student_lr "
                f"({settings.student_lr:g}); what was kept is of before it"
            )
        for optimizer in (pixels, *others):
            optimizer.step()
        with torch.no_grad():
            rate.clamp_(min=LEAST)
            if white is None:
                within(x, bounds)
            else:
                inner = white.undo(x)
                within(inner, bounds)
                x.copy_(white.apply(inner))
        if context.keeper.due():
            kept = {
                "images": x.detach().cpu(), "rate": rate.item(), "iteration": i + 1,
                "logits": None if logits is None else logits.detach().cpu(),
                "optimizers": [optimizer.state_dict() for optimizer in (pixels, *others)],
            }  # fmt: skip
            context.keeper.save(kept, i + 1, settings.iterations, "iteration")
    final = x.detach() if white is None else white.undo(x.detach())
    shape = (len(found.labels), k)
    soft = None if logits is None else logits.detach().softmax(1).cpu().view(*shape, classes)
    return Matched(to_pixels(final.cpu(), mean, std).view(*shape, 3, side, side), rate.item(), soft)


def _begin(
    state: dict[str, Any] | None,
    found: Real,
    classes: int,
    k: int,
    mean: list[float],
    std: list[float],
    white: Whitening | None,
    settings: "MatchSettings",
    seed: int,
    device: torch.device,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return X, the labels' logits or None, and alpha, as they were kept or to begin with."""
    if state is not None:
        x, logits, rate = state["images"].to(device), state["logits"], state["rate"]
    else:
        x = start(found, k, mean, std, settings, seed).flatten(0, 1).to(device)
        x = x if white is None or settings.init == "noise" else white.apply(x)
        own = torch.arange(classes).repeat_interleave(k)
        logits = SURE * F.one_hot(own, classes).float() if settings.labels == "learned" else None
        rate = settings.student_lr
    logits = None if logits is None else logits.to(device).requires_grad_()
    return x.requires_grad_(), logits, torch.tensor(rate, device=device, requires_grad=True)


def _batches(count: int, settings: "MatchSettings", seed: int, iteration: int) -> list[Tensor]:
    """Return the images of each step: orders of all, one behind the other, cut into batches."""
    size = settings.student_batch or count
    each = len(batches_of(torch.arange(count), size))
    orders = [
        torch.randperm(count, generator=generator("match", "order", seed, iteration, n))
        for n in range(-(-settings.student_steps // each))
    ]
    return [part for order in orders for part in batches_of(order, size)][: settings.student_steps]
