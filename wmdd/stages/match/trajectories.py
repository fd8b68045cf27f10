r"""MTT: distilled images on which a student goes where networks went that were trained on the real ones.

An expert (`wmdd.stages.expert`) went from theta*_t to theta*_{t+M} in M epochs of the real data. A student begins at theta*_t
and takes N steps on batches b_i of the distilled images X with labels y, under siamese augmentation A
(`wmdd.networks.siamese`),

    theta_{i+1} = theta_i - alpha g_i,    g_i = grad_theta CE(f_theta(A(X_{b_i})), y_{b_i}) at theta_i

    L = ||theta_N - theta*_{t+M}||^2 / ||theta*_t - theta*_{t+M}||^2              (Cazenavette et al. 2022, Eq. 2)

and X, the learning rate alpha and, with `labels: learned`, the labels' logits descend L by gradient descent with momentum.

The gradient goes backwards through the steps by hand (`wmdd.stages.match.unrolling`).

The images of all classes are one student's training set: nothing separates by class, and the stage has one block. A batch is
`student_batch` of them, all by default.

Departures: alpha is kept above zero; which expert, where a student
begins and the order of batches are drawn for (seed, iteration).
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmdd.base.errors import WmddError
from wmdd.base.rng import generator
from wmdd.networks import siamese
from wmdd.networks.context import Context
from wmdd.networks.engine import Engine, resume
from wmdd.networks.models import build
from wmdd.networks.normalisation import Normalisation
from wmdd.networks.training import batches_of
from wmdd.networks.whitening import Whitening
from wmdd.stages.match import Matched, Real, finished, limits, start, within
from wmdd.stages.match.unrolling import Step, gradient_of, unrolled

if TYPE_CHECKING:
    from wmdd.settings.match import ExpertSettings, MatchSettings

SURE = 10.0  # by which the logit of its class is above the others', where labels are learned
LEAST = 1e-6  # learning rate of a student


class _Distilled:
    """What is learned: images X, whitened if the experts saw whitened ones, alpha, and the labels' logits or None."""

    def __init__(
        self,
        x: Tensor,
        logits: Tensor | None,
        rate: float,
        white: Whitening | None,
        settings: "MatchSettings",
        engine: Engine,
    ) -> None:
        self.x = x.to(engine.device).requires_grad_()
        self.rate = torch.tensor(rate, device=engine.device, requires_grad=True)
        self.logits = None if logits is None else logits.to(engine.device).requires_grad_()
        self._white = white
        parts = [(self.x, settings.lr), (self.rate, settings.rate_lr), (self.logits, settings.labels_lr)]
        self.parts = [part for part, _ in parts if part is not None]
        self._optimizers = [
            engine.optimizer("sgd", [part], lr, momentum=settings.momentum) for part, lr in parts if part is not None
        ]

    def zero_grad(self) -> None:
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)

    def step(self, bounds: list[Tensor] | None) -> None:
        """Make a step of gradient descent; alpha stays above zero, and pixels between `bounds`, if there are any."""
        for optimizer in self._optimizers:
            optimizer.step()
        with torch.no_grad():
            self.rate.clamp_(min=LEAST)
            if bounds is None:
                return
            pixels = self.images()
            within(pixels, bounds)
            if self._white is not None:
                self.x.copy_(self._white.apply(pixels))

    def images(self) -> Tensor:
        """Return the images [C K, 3, R, R], not whitened."""
        return self.x.detach() if self._white is None else self._white.undo(self.x.detach())

    def state(self) -> dict[str, Any]:
        """Return what is to be kept."""
        return {
            "images": self.x.detach().cpu(), "rate": self.rate.item(),
            "logits": None if self.logits is None else self.logits.detach().cpu(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
        }  # fmt: skip

    def resume(self, state: dict[str, Any]) -> None:
        """Go on with the optimizers as they were kept."""
        for optimizer, kept in zip(self._optimizers, state["optimizers"], strict=True):
            resume(optimizer, kept)


def match(
    real: Real,
    classes: int,
    k: int,
    normalisation: Normalisation,
    experts: "Sequence[Any]",
    trained: "ExpertSettings",
    whitening: Whitening | None,
    settings: "MatchSettings",
    seed: int,
    context: Context,
) -> Matched:
    """Return the images of all C classes, the learned rate and, if they are learned, labels [C, K, C] (probabilities).

    Experts are trajectories [E + 1, P], of which rows are read; their settings `trained` are those of the student too. With a
    `whitening`, that of the training images, the experts saw whitened ones: X is then whitened, and the result is not.

    Raises:
        WmddError: the experts are too short, or a student's step leads to no number.
    """
    _check_length(experts, settings)
    engine, side, iterations = context.engine, real.pictures.resolution, settings.iterations
    network = engine.place(build(trained, classes, side, generator("match", "student", seed))).train()
    gradient = gradient_of(network)
    white = None if whitening is None else whitening.to(engine.device)
    state = context.keeper.load()
    begun = _begin(real, classes, k, normalisation, white, settings, seed, engine.device) if state is None else state
    distilled = _Distilled(begun["images"], begun["logits"], begun["rate"], white, settings, engine)
    if state is not None:
        distilled.resume(state)
    first, every = int(begun["iteration"]), max(1, iterations // 200)
    bounds = limits(settings, normalisation, engine.device)
    for i in context.progress(range(first, iterations), "matching", iterations, first):
        begin, target = (theta.to(engine.device) for theta in _segment(experts, settings, seed, i))
        step_of = _steps(distilled, network, classes, k, settings, seed, i, engine)
        distilled.zero_grad()
        result = unrolled(gradient, begin, target, step_of, settings.student_steps, distilled.rate.item())
        distilled.rate.grad = result.by_rate.reshape(())
        value = float(result.loss)
        if i % every == 0 or i + 1 == iterations or not math.isfinite(value):
            context.log({"loss": value, "student_lr": distilled.rate.item()}, i)
        _check_finite(value, distilled, settings, i)
        distilled.step(bounds)
        if context.keeper.due():
            context.keeper.save(distilled.state() | {"iteration": i + 1}, i + 1, iterations, "iteration")
    shape = (len(real.labels), k)
    labels = None if distilled.logits is None else distilled.logits.detach().softmax(1).cpu().view(*shape, classes)
    images = finished(distilled.images().cpu(), normalisation, settings).view(*shape, 3, side, side)
    return Matched(images, distilled.rate.item(), labels)


def _check_length(experts: "Sequence[Any]", settings: "MatchSettings") -> None:
    shortest = min(len(trajectory) for trajectory in experts) - 1
    if settings.start_epochs - 1 + settings.expert_epochs > shortest:
        raise WmddError(
            f"an expert has {shortest} epochs, but match begins at up to {settings.start_epochs - 1} of them and goes on for "
            f"{settings.expert_epochs}; train the experts longer, or lower start_epochs or expert_epochs"
        )


def _check_finite(loss: float, distilled: _Distilled, settings: "MatchSettings", iteration: int) -> None:
    grads = [part.grad for part in distilled.parts if part.grad is not None]
    if not (math.isfinite(loss) and all(bool(grad.isfinite().all()) for grad in grads)):
        raise WmddError(
            f"a student's {settings.student_steps} steps lead to no number at iteration {iteration} (its learning rate is "
            f"{distilled.rate.item():.3g}); lower match.lr ({settings.lr:g}), rate_lr ({settings.rate_lr:g}) or student_lr "
            f"({settings.student_lr:g}); what was kept is of before it"
        )


def _begin(
    real: Real,
    classes: int,
    k: int,
    normalisation: Normalisation,
    white: Whitening | None,
    settings: "MatchSettings",
    seed: int,
    device: torch.device,
) -> dict[str, Any]:
    """Return X, alpha and the labels' logits to begin with, as a state that was kept."""
    x = start(real, k, normalisation, settings, seed).flatten(0, 1).to(device)
    x = x if white is None or settings.init == "noise" else white.apply(x)
    logits = SURE * _one_hot(classes, k) if settings.labels == "learned" else None
    return {"images": x, "logits": logits, "rate": settings.student_lr, "iteration": 0}


def _segment(experts: "Sequence[Any]", settings: "MatchSettings", seed: int, iteration: int) -> tuple[Tensor, Tensor]:
    """Draw an expert and an epoch t; return theta*_t and theta*_{t+M}."""
    draws = generator("match", "trajectory", seed, iteration)
    expert = experts[int(torch.randint(len(experts), (), generator=draws))]
    t = int(torch.randint(settings.start_epochs, (), generator=draws))
    return torch.as_tensor(expert[t]), torch.as_tensor(expert[t + settings.expert_epochs])


def _steps(
    distilled: _Distilled,
    network: nn.Module,
    classes: int,
    k: int,
    settings: "MatchSettings",
    seed: int,
    iteration: int,
    engine: Engine,
) -> Callable[[int], Step]:
    """Return a function that gives step i of the student of an iteration, the same whenever it is asked."""
    batches = _batches(len(distilled.x), settings, seed, iteration)
    hard = _one_hot(classes, k).to(engine.device)

    def step_of(number: int) -> Step:
        index = batches[number].to(engine.device)
        images = distilled.x[index]
        if settings.views == "dsa":
            distortions = siamese.draw(generator("match", "view", seed, iteration, number), len(index))
            images = siamese.apply(images, distortions.to(engine.device))
        labels = hard if distilled.logits is None else distilled.logits.softmax(1)
        return Step(engine.arranged(images, network), labels[index])

    return step_of


def _one_hot(classes: int, k: int) -> Tensor:
    """Return the classes of the images as probabilities, [C K, C]."""
    return F.one_hot(torch.arange(classes).repeat_interleave(k), classes).float()


def _batches(count: int, settings: "MatchSettings", seed: int, iteration: int) -> list[Tensor]:
    """Return the images of each step: orders of all, one behind the other, cut into batches."""
    size = settings.student_batch or count
    steps_of_order = len(batches_of(torch.arange(count), size))
    orders = [
        torch.randperm(count, generator=generator("match", "order", seed, iteration, n))
        for n in range(-(-settings.student_steps // steps_of_order))
    ]
    return [part for order in orders for part in batches_of(order, size)][: settings.student_steps]
