"""Blocks: how many classes a job takes, so that it lasts about `jobs.minutes` on `jobs.device`.

Nothing but the settings decides: not the machine, nor which files are there, so that every machine cuts the same blocks.
"""

import math

from wmdd.cost import rates
from wmdd.cost.flop import by_hand, rated_width, recovering
from wmdd.workflow.experiment import Experiment
from wmdd.workflow.layout import Cell, block_of

IMAGES_PER_BLOCK = 1000  # of a barycenter or recover job, where nothing is known that its time could be told by
PIXELS_PER_BLOCK = 2**33  # bytes of its images as float32, of which it holds up to four copies: 14,000 of 224 px
COARSE = (1, 2, 5)  # times powers of ten: the sizes of blocks, so that a rate measured anew seldom cuts them anew


class Blocks:
    """How the classes of each distilled set of an experiment are cut into jobs.

    Attributes:
        device: that jobs are sized for, in the precision that the engine computes in on it.
    """

    def __init__(self, experiment: Experiment) -> None:
        """Take the device of an experiment.

        Raises:
            WmddError: there is no such device, or the engine is told not to use one of its kind.
        """
        self._experiment = experiment
        self.device = rates.device_of(experiment.file.jobs.device, experiment.file.engine)

    def names(self, cell: Cell) -> list[str]:
        """Return the class blocks of a distilled set, e.g. `["classes0-4", "classes5-9"]`.

        Args:
            cell: has dataset, teacher, method and ipc.
        """
        classes = self._experiment.settings("data", cell).classes
        size = self.classes_per_block(cell)
        return [block_of(first, min(first + size, classes) - 1) for first in range(0, classes, size)]

    def classes_per_block(self, cell: Cell) -> int:
        """Return how many classes a barycenter or recover job takes.

        That is what the dataset's entry says, or the largest size of the series 1, 2, 5, 10, 20, ... with which recover takes
        no more than `jobs.minutes` on `jobs.device` and its images no more than `PIXELS_PER_BLOCK` bytes. The batches of
        coupled losses are part of the method: with `composition: across` a block is the classes of a batch, with `within`
        whole batches.
        """
        family = self._experiment.family(cell.method)
        chosen = self._experiment.entry_value("datasets", cell.dataset, "classes_per_block")
        if family == "match" and self._experiment.trajectories(cell.dataset, cell.method):
            return int(self._experiment.settings("data", cell).classes)  # all images are one student's training set
        if family != "recover":
            return chosen or max(1, IMAGES_PER_BLOCK // cell.ipc)
        recover = self._experiment.settings("recover", cell)
        if recover.coupled and recover.composition == "across":
            return int(recover.batch_size)
        size = chosen or self._classes_in_time(cell)
        batch = max(1, recover.batch_size // cell.ipc) if recover.coupled else 1
        return batch * max(1, size // batch)

    def _classes_in_time(self, cell: Cell) -> int:
        """Return for how many classes recover takes the minutes, or how many have a thousand images where it can't be told."""
        data, network, recover = (self._experiment.settings(stage, cell) for stage in ("data", "teacher", "recover"))
        figures = by_hand(network, data.classes, data.side)
        if figures is None:
            return max(1, IMAGES_PER_BLOCK // cell.ipc)
        flop, moved = recovering(recover, cell.ipc, figures.flop, data.side)
        rate, _ = self.device.rate("recover", data.side, rated_width(network))
        seconds = max(flop / rate, moved / self.device.peak.bytes_per_s)
        in_time = 60 * self._experiment.file.jobs.minutes / seconds
        return coarse(min(in_time, PIXELS_PER_BLOCK / (12 * data.side**2 * cell.ipc)))


def coarse(value: float) -> int:
    """Return the largest of 1, 2, 5, 10, 20, 50, ... that is not above a value, and at least 1."""
    power = 10 ** max(0, math.floor(math.log10(max(value, 1)) + 1e-9))
    return max([1, *(step * power for step in COARSE if step * power <= value * (1 + 1e-9))])
