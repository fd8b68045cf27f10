"""Laws of the family match: experts, and images that are matched to them or to features (`wmdd.cost.laws`)."""

from dataclasses import replace
from typing import Any

from wmdd.cost.flop import Counts
from wmdd.cost.scene import AT_ONCE, Scene, Work

LAUNCHED = 0.02  # seconds of the host a pass through a network that is too small to keep a GPU busy, assumed


def expert(s: Scene) -> Work:
    """Return the work of a training that keeps the network after each epoch."""
    settings = s.settings("expert")
    network = s.counts(settings)
    kept = network._replace(bytes=(settings.epochs + 1) * network.bytes)
    trained = s.training(settings, kept)
    memory, seconds = s.whitening(settings.whiten)
    return replace(trained, memory=trained.memory + memory, seconds=seconds)


def match(s: Scene) -> Work:
    """Return the work of matching distributions of features, or trajectories of experts."""
    settings = s.settings("match")
    if settings.objective == "mtt":
        expert = s.settings("expert")
        matched = _trajectories(s, settings, s.counts(expert), expert.whiten)
    else:
        matched = _distributions(s, settings, s.counts(settings))
    return replace(matched, steps=settings.iterations, disk=s.bytes, memory=matched.memory + 32 * s.bytes)


def _trajectories(s: Scene, settings: Any, network: Counts, whiten: bool) -> Work:
    batch, steps = min(s.images, settings.student_batch or s.images), settings.iterations * settings.student_steps
    memory, seconds = s.whitening(whiten)
    return Work(
        images=steps * batch, flop=11 * steps * batch * network.flop, moved=steps * 5 * network.bytes,
        passed=3 * s.step_bytes(batch, network), memory=memory + 2 * settings.student_steps * network.bytes,
        seconds=seconds + LAUNCHED * steps, width=network.width,
    )  # fmt: skip


def _distributions(s: Scene, settings: Any, network: Counts) -> Work:
    real, steps = s.mine * settings.real_batch, settings.iterations
    passes = steps * (real + s.images)
    return Work(
        images=passes, flop=steps * (real + 3 * s.images) * network.flop, moved=passes * s.pixels,
        passed=s.step_bytes(min(s.images, max(s.ipc, AT_ONCE[0])), network) + 24 * real * s.pixels,
        memory=s.pictures.held(s.train) + 2 * network.bytes, seconds=LAUNCHED * steps, width=network.width,
    )  # fmt: skip


LAWS = (expert, match)
