"""Blocks: how many classes a job takes, so that it lasts about `jobs.minutes` on `jobs.device`.

Nothing but the settings decides: not the machine, nor which files are there, so that every machine cuts the same blocks.
"""

import math

from wmdd.cost.flop import by_hand, rated_width, recovering
from wmdd.workflow.experiment import Experiment

IMAGES_PER_BLOCK = 1000  # of a barycenter or recover job, where nothing is known that its time could be told by
PIXELS_PER_BLOCK = 2**33  # bytes of its images as float32, of which it holds up to four copies: 14,000 of 224 px
COARSE = (1, 2, 5)  # times powers of ten: the sizes of blocks, so that a rate measured anew seldom cuts them anew


def classes_per_block(
    experiment: Experiment, dataset: str, teacher: str, method: str, ipc: int, chosen: int | None = None
) -> int:
    """Return how many classes a barycenter or recover job takes.

    That is the dataset's setting `chosen`, or the largest size of the series 1, 2, 5, 10, 20, ... with which recover takes no
    more than `jobs.minutes` on `jobs.device` and its images no more than `PIXELS_PER_BLOCK` bytes. The batches of coupled
    losses are part of the method: with `composition: across` a block is the classes of a batch, with `within` whole batches.
    """
    family = experiment.family(method)
    if family == "match" and experiment.trajectories(dataset, method):
        return int(experiment.resolve("data", dataset=dataset).classes)  # all images are one student's training set
    if family != "recover":
        return chosen or max(1, IMAGES_PER_BLOCK // ipc)
    recover = experiment.resolve("recover", dataset=dataset, method=method)
    if recover.coupled and recover.composition == "across":
        return int(recover.batch_size)
    size = chosen or _classes_in_time(experiment, dataset, teacher, method, ipc)
    batch = max(1, recover.batch_size // ipc) if recover.coupled else 1
    return batch * max(1, size // batch)


def _classes_in_time(experiment: Experiment, dataset: str, teacher: str, method: str, ipc: int) -> int:
    """Return for how many classes recover takes the minutes, or how many have a thousand images where it can't be told."""
    data, recover = (
        experiment.resolve("data", dataset=dataset),
        experiment.resolve("recover", dataset=dataset, method=method),
    )
    network = experiment.resolve("teacher", dataset=dataset, teacher=teacher)
    figures = by_hand(network, data.classes, data.side)
    if figures is None:
        return max(1, IMAGES_PER_BLOCK // ipc)
    flop, moved = recovering(recover, ipc, figures.flop, data.side)
    rate, _ = experiment.device.rate("recover", data.side, rated_width(network))
    seconds = max(flop / rate, moved / experiment.device.peak.bytes_per_s)
    return coarse(min(60 * experiment.file.jobs.minutes / seconds, PIXELS_PER_BLOCK / (12 * data.side**2 * ipc)))


def coarse(value: float) -> int:
    """Return the largest of 1, 2, 5, 10, 20, 50, ... that is not above a value, and at least 1."""
    power = 10 ** max(0, math.floor(math.log10(max(value, 1)) + 1e-9))
    return max([1, *(step * power for step in COARSE if step * power <= value * (1 + 1e-9))])
