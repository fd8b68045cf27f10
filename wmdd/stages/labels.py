r"""Labels: what a student learns from in each epoch, and where it is: in a file, whole or pruned, or in the teacher's head.

Three stores of soft labels (`relabel.store`), and hard labels, stand behind one `Labels`:

- stored: the logits of all N views of all E epochs, float16: 2 C bytes a view, and the teacher is needed no more;
- pruned: of each view the k largest logits in 8 bits, and of the epochs only some, which the student goes through in turn;
- online: nothing; the teacher is asked about every view that the student sees, as it sees it.

Pruned labels of one view with logits v (rounded to float16, as stored ones are), the k largest of which are kept (of equal
ones those of the first classes), lo and hi the smallest and the largest kept:

    q_j = round(255 (v_j - lo) / (hi - lo))          v'_j = lo + q_j / 255 (hi - lo)         |v'_j - v_j| <= (hi - lo) / 510
    (C - k) exp(r / T) = \sum_{j left out} exp(v_j / T)          v'_j = r for all that are left out

so that at the temperature T of the student what is left out keeps its mass (the sum above; r in float16 changes it by a
factor of 1 +- 2^-11 |r| / T at most). A view is k bytes of values, k or (C > 256) 2 k of classes, and 6 of lo, hi and r;
with k = C there are neither classes nor r, and it is C + 4 bytes. At C = 1000 and k = 50: 156 bytes in place of 2,000, and
with a quarter of the epochs 51 times less than all logits.

Fewer labelled epochs are the label pruning of Xiao and He 2024 (LPLD, "Are Large-scale Soft Labels Necessary for Large-scale
Dataset Distillation?"), who keep a 40th on ImageNet-1K. That the values can be coarse is from its follow-up (Xiao and He
2026, LPQLD, arXiv 2604.18135); the code above, the turns and the calibration of the rest are this project's.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from wmdd.artifacts import hdf5, hdf5_writer
from wmdd.base.errors import WmddError
from wmdd.networks.normalisation import Normalisation
from wmdd.stages.relabel import seed_of_views

if TYPE_CHECKING:
    from wmdd.settings.student import RelabelSettings

LEVELS = 255  # steps between the smallest and the largest kept logit


@dataclass(frozen=True)
class Labels:
    """Labels of the views of every epoch of a student.

    With `logits` they are read, with a `teacher` it is to be asked, and with neither the labels are hard: the classes that
    the views show.
    """

    seed: Callable[[int], int]  # of the views of an epoch
    logits: Callable[[int], Tensor] | None = None  # the teacher's on these views, [N, C], on the CPU
    teacher: nn.Module | None = None  # takes the views as the student does, but never whitened
    turn: Callable[[int], int] = lambda epoch: epoch  # the epoch that is shown: itself, or one that comes again
    epochs: float = math.inf  # for which there are labels
    statistics_batch: int = 0  # views that share the statistics of the teacher's BatchNorm; 0: its running ones count

    @property
    def soft(self) -> bool:
        """Whether they are a teacher's."""
        return self.logits is not None or self.teacher is not None


@dataclass(frozen=True)
class Pruned:
    """Pruned labels of N views (the equations stand above). Without classes, all are kept and in their order."""

    values: Tensor  # q, [N, k] uint8
    low: Tensor  # lo, [N] float16
    high: Tensor  # hi, [N] float16
    classes: Tensor | None = None  # [N, k] uint8 or uint16, ascending
    rest: Tensor | None = None  # r, [N] float16

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what is to be written."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: part.cpu().numpy() for name, part in parts.items() if part is not None}


def prune(logits: Tensor, k: int, temperature: float) -> Pruned:
    """Prune finite logits [N, C] to the k largest of each view (0, or more than C: all), in 8 bits."""
    v = logits.half().float()
    total = v.shape[1]
    k = min(k, total) or total
    order = v.sort(stable=True, dim=1, descending=True).indices
    kept, left = order[:, :k].sort(1).values, order[:, k:]
    chosen = v.gather(1, kept)
    low, high = chosen.aminmax(dim=1, keepdim=True)
    span = torch.where(high > low, high - low, 1)
    q = ((chosen - low) / span * LEVELS).round().to(torch.uint8)
    if k == total:
        return Pruned(q, low[:, 0].half(), high[:, 0].half())
    mass = (v.gather(1, left) / temperature).logsumexp(1)
    rest = temperature * (mass - math.log(total - k))
    classes = kept.to(torch.uint8 if total <= 256 else torch.uint16)
    return Pruned(q, low[:, 0].half(), high[:, 0].half(), classes, rest.half())


def restore(code: Pruned, classes: int) -> Tensor:
    """Return the logits [N, C] float32 that stand for a pruned code of C classes."""
    low, high = code.low.float()[:, None], code.high.float()[:, None]
    chosen = low + code.values.float() / LEVELS * (high - low)
    if code.classes is None or code.rest is None:
        return chosen
    whole = code.rest.float()[:, None].repeat(1, classes)
    return whole.scatter_(1, code.classes.long(), chosen)


def hard(seed: int) -> Labels:
    """Return hard labels of the views that soft ones would have."""
    return Labels(lambda epoch: seed_of_views(seed, epoch))


def online(seed: int, teacher: nn.Module, statistics_batch: int = 0) -> Labels:
    """Return the labels of a teacher that is asked as the student goes; the views are those of the stored ones."""
    return Labels(lambda epoch: seed_of_views(seed, epoch), teacher=teacher, statistics_batch=statistics_batch)


class Committee(nn.Module):
    """Several teachers that speak as one: the mean of their logits."""

    def __init__(self, teachers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.teachers = nn.ModuleList(teachers)

    def forward(self, images: Tensor) -> Tensor:
        """Return the mean logits [B, C], float32."""
        return torch.stack([teacher(images).float() for teacher in self.teachers]).mean(0)


class Renormalised(nn.Module):
    """A teacher that takes pictures in another normalisation than its own: x std'/std + (mean' - mean)/std."""

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, own: Normalisation, given: Normalisation) -> None:
        super().__init__()
        mean, std, given_mean, given_std = (torch.tensor(values).view(3, 1, 1) for values in (*own, *given))
        self.network = network
        self.register_buffer("scale", given_std / std)
        self.register_buffer("shift", (given_mean - mean) / std)

    def forward(self, images: Tensor) -> Tensor:
        """Return the teacher's logits [B, C]."""
        return cast(Tensor, self.network(images * self.scale + self.shift))


def stored(logits: "Sequence[Any] | Tensor | hdf5.Array", seeds: list[int]) -> Labels:
    """Return the labels of logits [E, N, C], in memory or in an open file, of which an epoch is read at a time."""
    return Labels(seeds.__getitem__, lambda epoch: torch.as_tensor(logits[epoch]), epochs=len(seeds))


def pruned(code_of: Callable[[int], Pruned], seeds: list[int], classes: int, epochs: int) -> Labels:
    """Return the labels of codes of E' = len(seeds) epochs: epoch e has the views and labels of epoch e mod E'."""
    return Labels(
        lambda epoch: seeds[epoch % len(seeds)],
        lambda epoch: restore(code_of(epoch % len(seeds)), classes),
        epochs=epochs,
        turn=lambda epoch: epoch % len(seeds),
    )


def rows_of(logits: Tensor, settings: "RelabelSettings") -> dict[str, np.ndarray]:
    """Return what is kept of the logits [N, C] of an epoch, pruned or whole: a row [1, N, ...] of each array."""
    if settings.store == "pruned":
        arrays = prune(logits, settings.top_k, settings.temperature).arrays()
    else:
        arrays = {"logits": logits.half().cpu().numpy()}
    return {name: array[None] for name, array in arrays.items()}


def append(writer: hdf5_writer.Writer, rows: dict[str, np.ndarray]) -> None:
    """Add the rows of an epoch to a file; they are chunks of their own.

    Pruned ones are compressed, because their classes ascend. Whole ones are not once they count: of Gaussian logits gzip saves
    8 % (14 % with the bytes shuffled, lzf nothing), and a student would read each epoch ten times slower.

    Raises:
        OSError: the disk is full.
    """
    for name, row in rows.items():
        writer.append(name, row, compressed=name != "logits" or row.nbytes < hdf5_writer.CHUNK)


@contextmanager
def opened(path: Path) -> Iterator[tuple[Labels, hdf5.Meta]]:
    """Open a file of the relabel stage; yield its labels, read an epoch at a time, and its meta data.

    Raises:
        WmddError: the file is damaged, cut short or not of the relabel stage.
    """
    with hdf5.reading(path, "seeds") as file:
        meta = file.meta
        seeds = file["seeds"][()].tolist()
        if "logits" in file:
            yield stored(file["logits"], seeds), meta
        elif "values" in file:
            classes, epochs = len(meta["classes"]), meta["settings"]["epochs"]
            yield pruned(lambda epoch: _read(file, epoch), seeds, classes, epochs), meta
        else:
            raise WmddError(f"{path} lacks logits; delete it and run again to rebuild it")


def _read(file: hdf5.Artifact, epoch: int) -> Pruned:
    return Pruned(**{f.name: torch.from_numpy(file[f.name][epoch]) for f in fields(Pruned) if f.name in file})
