"""The published code's way through three stages, written plainly and run eagerly in float32: what ours is compared with.

- recover: as SRe2L (Yin et al., NeurIPS 2023) and WMDD's released code go about it: a forward hook on each BatchNorm layer, in
  it a loop over the classes of the batch; Adam; the loss taken to the CPU in every iteration; a clamp after each step.
- labels: as FKD (Shen and Xing, ECCV 2022) keeps them: one pickled file for each (epoch, batch).
- student: pictures decoded from their files in every epoch by a `DataLoader`, whose workers begin anew with each epoch.

Nothing of this is the authors' text. Where our draws are keyed (start images, the view of an iteration, crops and flips of an
epoch) the same ones are taken, so that losses and accuracies can be compared. CutMix is as published, within a batch and with
one box for all of it, so those draws are its own.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import functional as pixels

from wmdd.base.rng import generator
from wmdd.networks import augment
from wmdd.networks.batchnorm import Statistics, layers
from wmdd.networks.models import Network
from wmdd.stages.recover import noise
from wmdd.stages.relabel import seeds_of, views_of

Mix = tuple[Tensor, tuple[int, int, int, int]]  # partner of each image within the batch; top, left, bottom, right
Stored = tuple[Tensor, Tensor, Mix | None, Tensor]  # crops [B, 4], flips [B], mix, logits [B, C] float16
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # of the pixels of ImageNet, by which all sets are normalised


class Distance:
    """A hook on a BatchNorm layer that keeps how far its input is from the statistics of each class of the batch."""

    def __init__(self, layer: nn.BatchNorm2d, mean: Tensor, variance: Tensor) -> None:
        self.mean, self.variance, self.total = mean, variance, torch.zeros(())
        self.handle = layer.register_forward_hook(self)

    def __call__(self, _layer: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        """Take mean and biased variance over the images of a class, for one class after the other."""
        k = len(inputs[0]) // len(self.mean)
        terms = []
        for c, (mean, variance) in enumerate(zip(self.mean, self.variance, strict=True)):
            mine = inputs[0][c * k : (c + 1) * k]
            found = mine.permute(1, 0, 2, 3).reshape(mine.shape[1], -1).var(1, unbiased=False)
            terms += [torch.norm(mine.mean((0, 2, 3)) - mean), torch.norm(found - variance)]
        self.total = sum(terms, torch.zeros((), device=mine.device))


def seen(images: Tensor, settings: Any, seed: int, iteration: int) -> Tensor:
    """Return the view of images [B, 3, R, R] that `wmdd.stages.recover` draws for an iteration: crop, flip, cyclic shift."""
    draws = generator("recover", "view", seed, iteration)
    side = images.shape[-1]
    box = augment.resized_crop(draws, 1, settings.crop_scale)[0]
    flip = torch.rand((), generator=draws).item() < 0.5
    down, right = torch.randint(-settings.jitter, settings.jitter + 1, (2,), generator=draws).tolist()
    if settings.crop_scale[0] < 1:
        top, left, height, width = (int(v) for v in (box * side).round().tolist())
        top, left = min(top, side - 1), min(left, side - 1)
        images = images[:, :, top : top + max(height, 1), left : left + max(width, 1)]
        images = F.interpolate(images, size=(side, side), mode="bilinear", align_corners=False)
    if flip and settings.flip:
        images = torch.flip(images, (3,))
    return torch.roll(images, (down, right), (2, 3))


def recover(
    network: Network,
    labels: Tensor,
    atoms: Tensor,
    statistics: Statistics,
    resolution: int,
    mean: list[float],
    std: list[float],
    settings: Any,
    seed: int,
    device: torch.device,
    progress: Callable[[Iterable[int]], Iterator[int]] = iter,
) -> tuple[Tensor, list[float]]:
    r"""Return normalised images [C * K, 3, R, R] and the loss of each iteration.

    The loss is \sum |f(x) - b|^2 + lambda \sum_l g_l \sum_c (|mu_lc(x) - mu_lc| + |sigma^2_lc(x) - sigma^2_lc|), all images in
    one batch, g_l = `first_layer_weight` for the first layer and 1 for the others.

    Args:
        network: the teacher; moved to the device.
        labels: [C].
        atoms: [C, K, D].
        statistics: per class, [C, ch] by layer.
        resolution: R.
        mean: per channel, of the normalisation.
        std: per channel.
        settings: of `wmdd.stages.recover`; per-class statistics, squared feature loss and no cross-entropy are taken for
        granted.
        seed: of the distillation.
        device: where to run.
        progress: wraps the iterations, may stop before the last one.
    """
    network.eval().requires_grad_(False).to(device)
    statistics = statistics.to(device, torch.float32)
    hooks = [Distance(at, statistics.mean[name], statistics.variance[name]) for name, at in layers(network).items()]
    gains = [settings.first_layer_weight] + [1.0] * (len(hooks) - 1)
    targets = atoms.flatten(0, 1).to(device)
    x = noise(labels, atoms.shape[1], resolution, seed).flatten(0, 1).to(device).requires_grad_()
    optimizer = torch.optim.Adam([x], lr=settings.lr, betas=settings.betas)
    trace = []
    for i in progress(range(settings.iterations)):
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * 0.5 * (1 + math.cos(math.pi * i / settings.iterations))
        optimizer.zero_grad()
        features = network.embed(seen(x, settings, seed, i))
        distance = sum(gain * hook.total for gain, hook in zip(gains, hooks, strict=True))
        loss = settings.feature_weight * (features - targets).square().sum() + settings.regularisation * distance
        loss.backward()
        optimizer.step()
        for channel in range(3):
            low, high = (0 - mean[channel]) / std[channel], (1 - mean[channel]) / std[channel]
            x.data[:, channel] = torch.clamp(x.data[:, channel], low, high)
        trace.append(loss.item())
    for hook in hooks:
        hook.handle.remove()
    return x.detach().cpu(), trace


def file_of(folder: Path, epoch: int, batch: int) -> Path:
    """Return the file with the labels of a batch."""
    return folder / f"epoch_{epoch}" / f"batch_{batch}.tar"


def write_labels(file: Path, crop: Tensor, flip: Tensor, mix: Mix | None, logits: Tensor) -> None:
    """Write what a student needs to see a batch as the teacher saw it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save([crop.float(), flip, mix, logits.half()], file)


def read_labels(file: Path) -> Stored:
    """Read what `write_labels` wrote."""
    return torch.load(file, weights_only=True)


def batches_in(count: int, size: int, seed: int, epoch: int) -> tuple[Tensor, ...]:
    """Return the batches of an epoch; teacher and student go through the same ones."""
    return torch.randperm(count, generator=generator("published", "order", seed, epoch)).split(size)


def drawn(count: int, side: int, draws: torch.Generator) -> Mix:
    """Draw the CutMix of a batch: partners, and one box whose area is uniform before it is cut to the picture."""
    half = int(side * math.sqrt(torch.rand((), generator=draws))) // 2
    y, x = torch.randint(side, (2,), generator=draws).tolist()
    box = (max(y - half, 0), max(x - half, 0), min(y + half, side), min(x + half, side))
    return torch.randperm(count, generator=draws), box


def mixed(images: Tensor, mix: Mix | None) -> Tensor:
    """Paste the box of each image's partner into it, in place."""
    if mix is not None:
        partner, (top, left, bottom, right) = mix
        images[:, :, top:bottom, left:right] = images[partner.to(images.device), :, top:bottom, left:right]
    return images


def opened(file: Path, mean: list[float], std: list[float]) -> Tensor:
    """Return a picture as it is, normalised [3, R, R]."""
    with Image.open(file) as image:
        return pixels.normalize(pixels.to_tensor(image.convert("RGB")), mean, std)


def view_of(file: Path, crop: Sequence[float], flip: bool, mean: list[float], std: list[float]) -> Tensor:
    """Return the view of a picture, normalised [3, R, R]; the crop is (top, left, height, width) as shares of the side."""
    with Image.open(file) as image:
        picture = image.convert("RGB")
    top, left, height, width = crop
    across, down = picture.size
    box = (left * across, top * down, min((left + width) * across, across), min((top + height) * down, down))
    picture = picture.resize((across, down), Image.Resampling.BILINEAR, box)
    if flip:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return pixels.normalize(pixels.to_tensor(picture), mean, std)


@torch.no_grad()
def relabel(
    network: Network,
    files: Sequence[Path],
    folder: Path,
    epochs: int,
    size: int,
    augmentation: Any,
    mean: list[float],
    std: list[float],
    seed: int,
    device: torch.device,
) -> None:
    """Write the teacher's labels of every epoch to `folder`, batch by batch."""
    network.eval().to(device)
    for epoch, view_seed in enumerate(seeds_of(seed, epochs)):
        views = views_of(augmentation, len(files), view_seed)
        for batch, index in enumerate(batches_in(len(files), size, seed, epoch)):
            crop, flip = views.crop[index], views.flip[index]
            parameters = zip(index.tolist(), crop.tolist(), flip.tolist(), strict=True)
            images = torch.stack([view_of(files[i], c, f, mean, std) for i, c, f in parameters]).to(device)
            draws = generator("published", "mix", seed, epoch, batch)
            mix = drawn(len(index), images.shape[-1], draws) if augmentation.mix == "cutmix" else None
            logits = network(mixed(images, mix)).cpu()
            write_labels(file_of(folder, epoch, batch), crop, flip, mix, logits)


class Batches(Dataset):
    """The batches of an epoch as their label files describe them: images before CutMix, the mix, logits."""

    def __init__(
        self,
        files: Sequence[Path],
        folder: Path,
        epoch: int,
        order: Sequence[Tensor],
        mean: list[float],
        std: list[float],
    ) -> None:
        self.files, self.folder, self.epoch, self.order, self.mean, self.std = files, folder, epoch, order, mean, std

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, batch: int) -> tuple[Tensor, Mix | None, Tensor]:
        crop, flip, mix, logits = read_labels(file_of(self.folder, self.epoch, batch))
        parameters = zip(self.order[batch].tolist(), crop.tolist(), flip.tolist(), strict=True)
        images = [view_of(self.files[i], c, f, self.mean, self.std) for i, c, f in parameters]
        return torch.stack(images), mix, logits


class Files(Dataset):
    """Pictures on disk with their labels."""

    def __init__(self, files: Sequence[Path], labels: Sequence[int], mean: list[float], std: list[float]) -> None:
        self.files, self.labels, self.mean, self.std = files, labels, mean, std

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return opened(self.files[index], self.mean, self.std), self.labels[index]


def student(
    network: Network,
    files: Sequence[Path],
    folder: Path,
    settings: Any,
    mean: list[float],
    std: list[float],
    seed: int,
    device: torch.device,
    workers: int,
) -> list[float]:
    """Train `network` in place on the pictures and labels of `relabel`; return the mean loss of each epoch.

    KL(softmax(t / T) || softmax(s / T)) averaged over a batch, AdamW, a cosine to 0 that goes down once an epoch.

    Args:
        network: freshly drawn; moved to the device.
        files: the distilled pictures.
        folder: of the labels.
        settings: of `wmdd.stages.student`.
        mean: per channel, of the normalisation.
        std: per channel.
        seed: that the labels were made with.
        device: where to run.
        workers: processes of the loader; 0: none.
    """
    network.train().to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda epoch: 0.5 * (1 + math.cos(math.pi * epoch / settings.epochs))
    )
    divergence, temperature = nn.KLDivLoss(reduction="batchmean"), settings.temperature
    history = []
    for epoch in range(settings.epochs):
        order = batches_in(len(files), settings.batch_size, seed, epoch)
        data = Batches(files, folder, epoch, order, mean, std)
        total = 0.0
        for images, mix, logits in DataLoader(data, None, num_workers=workers, pin_memory=device.type == "cuda"):
            output = network(mixed(images.to(device), mix))
            target = F.softmax(logits.to(device).float() / temperature, 1)
            loss = divergence(F.log_softmax(output / temperature, 1), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(images)
        schedule.step()
        history.append(total / len(files))
    return history


@torch.no_grad()
def evaluate(network: Network, data: Files, device: torch.device, workers: int, size: int = 500) -> float:
    """Return the top-1 accuracy in [0, 1] on pictures that are decoded on the way."""
    network.eval()
    right = 0
    for images, labels in DataLoader(data, size, num_workers=workers, pin_memory=device.type == "cuda"):
        right += (network(images.to(device)).argmax(1).cpu() == labels).sum().item()
    return right / len(data)
