"""The published way to label a distilled set and to train a student on it, written plainly and run eagerly in float32.

- labels: as FKD (Shen and Xing, ECCV 2022) keeps them: one pickled file for each (epoch, batch).
- student: pictures decoded from their files in every epoch by a `DataLoader`, whose workers begin anew with each epoch.

Nothing of this is the authors' text. Crops and flips of an epoch are drawn as ours are. CutMix is as published, within a batch
and with one box for all of it, so those draws are its own.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import functional as pixels

from wmdd.base.rng import generator
from wmdd.networks.models import Network
from wmdd.stages.relabel import seeds_of, views_of

Mix = tuple[Tensor, tuple[int, int, int, int]]  # partner of each image within the batch; top, left, bottom, right
Stored = tuple[Tensor, Tensor, Mix | None, Tensor]  # crops [B, 4], flips [B], mix, logits [B, C] float16
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # of the pixels of ImageNet, by which all sets are normalised


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
