"""One training on several processes, one a GPU: who takes what, sums over all, BatchNorm that sees the whole batch.

`wmdd.jobs.torchrun` starts the processes. A training on one process uses none of this.
"""

import functools
import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from wmdd.base.errors import WmddError
from wmdd.base.preemption import Preempted


@dataclass(frozen=True)
class World:
    """The processes that train one network together; by default there is only this one."""

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Return whether this process is the one that writes, tracks and speaks."""
        return self.rank == 0

    def share(self, items: Tensor) -> Tensor:
        """Return this process's part of a batch; the parts differ in length by one at most."""
        return items.tensor_split(self.size)[self.rank]

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over all processes, the same bits on each."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over all processes."""
        return self.sum(values) / self.size if self.size > 1 else values

    def parallel(self, network: nn.Module) -> nn.Module:
        """Wrap a network so that `backward` leaves the mean over the processes in its gradients; nothing else is exchanged."""
        if self.size == 1:
            return network
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch 2.11 does not know the new name of broadcast_buffers
            wrapped = DistributedDataParallel(network, broadcast_buffers=False)
        if dist.get_backend() == "gloo":
            wrapped.register_comm_hook(self.size, _mean_in_order)
        return wrapped

    def average_buffers(self, network: nn.Module) -> None:
        """Replace every buffer of floating point, as BatchNorm's running statistics, by its mean over the processes."""
        for buffer in network.buffers() if self.size > 1 else ():
            if buffer.is_floating_point():
                buffer.copy_(self.mean(buffer))

    def any(self, said: bool) -> bool:
        """Return whether any of the processes says so."""
        return bool(self.sum(torch.tensor(float(said), device=_device()))) if self.size > 1 else said

    def agree(self, number: int, what: str) -> None:
        """Refuse to go on when the processes have different numbers.

        Raises:
            WmddError: they have, as when a folder is not the same on all machines.
        """
        numbers = torch.zeros(self.size, dtype=torch.int64)
        numbers[self.rank] = number
        every = (self.sum(numbers.to(_device())) if self.size > 1 else numbers).tolist()
        if len(set(every)) > 1:
            raise WmddError(f"the processes disagree on {what} ({every}); do they all see the same folder?")

    def wait(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()


ALONE = World()


class Part(NamedTuple):
    """What a process takes of a step at once: positions of images; `share`, `last` as in `wmdd.networks.training.Batch`."""

    positions: Tensor
    share: float
    last: bool


def parts_of(batch: Tensor, micro_batches: int, world: World) -> list[Part]:
    r"""Cut a batch of B images into micro-batches, and return what this process takes of each.

    With P processes a part of n images has the share P n / B, so that the mean over the processes of \sum_parts share *
    (mean loss of the part) is the mean loss of the batch, however its images are divided.

    Raises:
        WmddError: a part would be empty.
    """
    if len(batch) < micro_batches * world.size:
        raise WmddError(
            f"a step of {len(batch)} images cannot be divided into {micro_batches} micro-batches on {world.size} processes; "
            "raise batch_size, or lower accumulate or the number of processes"
        )
    shares = [world.share(part) for part in batch.tensor_split(micro_batches)]
    return [Part(x, len(x) * world.size / len(batch), i == micro_batches) for i, x in enumerate(shares, 1)]


def _mean_in_order(size: int, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Average gradients in the order of the ranks, so that a resumed training goes on to the same bits.

    Gloo's own sum adds in an order that depends on a gradient's place in its bucket, which changes after the first step.
    """
    parts = [torch.empty_like(bucket.buffer()) for _ in range(size)]
    sent = dist.all_gather(parts, bucket.buffer(), async_op=True)
    return sent.get_future().then(lambda _: functools.reduce(torch.add, parts) / size)


def unsent(network: nn.Module) -> AbstractContextManager[Any]:
    """Return the context in which `backward` only adds to the gradients of this process, for all but a step's last part."""
    return network.no_sync() if isinstance(network, DistributedDataParallel) else nullcontext()


def _device() -> torch.device:
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


def started() -> bool:
    """Return whether this is one of several processes that torchrun, or we, have started."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


@contextmanager
def world(device: str = "auto") -> Iterator[World]:
    """Join the other processes, over NCCL on GPUs and Gloo on the CPU, and leave them at the end, all at once.

    Args:
        device: `engine.device`. On GPUs each process takes the one of its local rank.

    Raises:
        WmddError: there are fewer GPUs than processes here.
    """
    if not started():
        yield ALONE
        return
    gpu = device != "cpu" and torch.cuda.is_available()
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if gpu:
        if local >= torch.cuda.device_count():
            raise WmddError(f"process {local + 1} of this machine has no GPU; {torch.cuda.device_count()} are visible")
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if gpu else "gloo", device_id=torch.device("cuda", local) if gpu else None)
    processes = World(dist.get_rank(), dist.get_world_size())
    try:
        yield processes
    except Preempted as end:
        if end.agreed:
            processes.wait()
        raise
    processes.wait()  # no process ends before what the main one writes is whole
    dist.destroy_process_group()  # not after an exception: NCCL would wait for those that wait for this process


class _Sum(torch.autograd.Function):
    r"""y = \sum_p x_p over the processes p. Each loss is a function of the same y, so dL/dx_p is the sum of all dL_q/dy."""

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        values = values.clone()
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient


class SharedBatchNorm2d(nn.BatchNorm2d):
    r"""BatchNorm whose statistics are those of the batches of all processes p together (Ioffe and Szegedy 2015).

    From the n_p numbers a channel, means m_p and biased variances v_p of the shares, of any lengths:

        m = \sum_p n_p m_p / n,   v = \sum_p n_p (v_p + (m_p - m)^2) / n,   n = \sum_p n_p,

    which loses no digits where E[x^2] - E[x]^2 would. One exchange forward, one backward. The running statistics are those
    of BatchNorm on the whole batch (variance times n / (n - 1)). Not torch's SyncBatchNorm, which refuses CPU tensors.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [B, C, H, W]."""
        if not self.training:
            return super().forward(x)
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        mean, variance, count = self._statistics(values)
        self._follow(mean.detach(), variance.detach() * count / (count - 1).clamp(min=1))
        scale = self.weight * (variance + self.eps).rsqrt()
        return (values * scale[:, None, None] + (self.bias - mean * scale)[:, None, None]).to(x.dtype)

    @staticmethod
    def _statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean [C], biased variance [C] and count over all processes."""
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        row = torch.cat([mean, variance, mean.new_tensor([x.shape[0] * x.shape[2] * x.shape[3]])])
        rank, size = dist.get_rank(), dist.get_world_size()
        rows = _Sum.apply(torch.stack([row if p == rank else torch.zeros_like(row) for p in range(size)]))
        means, variances, counts = rows.split([len(mean), len(mean), 1], 1)  # [P, C], [P, C], [P, 1]
        counts = counts.detach()
        total = counts.sum()
        mean = (means * counts).sum(0) / total
        return mean, ((variances + (means - mean).square()) * counts).sum(0) / total, total

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        rate = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, rate)
        self.running_var.lerp_(variance, rate)


@contextmanager
def shared_statistics(network: nn.Module, among: World) -> Iterator[None]:
    """Let the BatchNorm layers of a network see the batches of all processes while this lasts.

    The layers stay the objects that they are, with their parameters and names; only their class is another for a while.

    Raises:
        WmddError: the network has a layer of which this isn't known.
    """
    layers = {name: m for name, m in network.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    if among.size > 1:
        for name, layer in layers.items():
            if type(layer) is not nn.BatchNorm2d:
                kind = type(layer).__name__
                raise WmddError(f"{name} is a {kind}, which can't see other processes; set sync_batchnorm: false")
            layer.__class__ = SharedBatchNorm2d
    try:
        yield
    finally:
        for layer in layers.values() if among.size > 1 else ():
            layer.__class__ = nn.BatchNorm2d
