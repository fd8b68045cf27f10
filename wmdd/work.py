r"""Work: the jobs of an experiment and what each has to do, before anything runs.

The jobs are those of the workflow's DAG (rules/*.smk), as if nothing were done yet. With F the FLOP of one image's forward
pass, counted on the network itself at its resolution, a job computes

    teacher    E N 3 F + V M F         E epochs on N images, V looks at M validation images; 3: forward, two gradients
    features   N F
    recover    T n 2 F                 T iterations on n images; 2: forward, gradient of the image, none of parameters
    relabel    E n F                   E epochs for which labels are kept
    student    E n (3 F + F') + V M F  F' of the teacher, where labels are made as the student goes, else 0
    autoencoder, diffusion             as teacher, F of autoencoder or UNet
    encode     N F                     of the encoder
    expert     as teacher, E N 3 F + V M F
    match      T (C B F + n 3 F)       DM, DataDAM: T iterations, B real images of each of C classes, n distilled ones
               T N b 11 F              MTT: N steps of a student on b images; 3 the step, 8 it again with a reverse pass over it
    decode     n (S G F' + F)          S steps of the UNet F', G = 2 with guidance; F of the decoder
    distance   n F                     of the teacher

(docs/cost.md). What is not known is NaN, and stays it; or, for the workflow, it is assumed. No torch is imported for what
`wmdd.figures` counts by hand.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from wmdd import catalogue, rates
from wmdd.config import Experiment
from wmdd.errors import WmddError
from wmdd.figures import UNKNOWN, Figures, autoencoder, by_hand, denoiser, rated_width, recovering, stated_side
from wmdd.settings import (
    BarycenterSettings,
    DataSettings,
    ExpertSettings,
    NetworkSettings,
    RecoverSettings,
    RelabelSettings,
    StudentSettings,
    TrainingSettings,
    TransportSettings,
)
from wmdd.workflow.layout import Cell as Run

Key = tuple[str, ...]  # a rule and its wildcards
NAN = math.nan
DIGITS = {"train": 1438, "val": 359}  # of scikit-learn's 1,797, a fifth of each class validates
SAMPLE = 100  # files whose mean size stands for all
# Of the stages, whose modules import torch; a test compares them.
RESIDENT_MB = 4096  # wmdd.feeding
PIXELS = 2**32  # wmdd.data
SHARD, CACHED = 2**24, 2**19  # wmdd.features
AT_ONCE = (128, 2**21)  # images and pixels of a pass on CPU: wmdd.engine
LARGEST = 400  # images of 224 px at once on a GPU: wmdd.recover
LOOKED = 500  # pictures that are evaluated at once: wmdd.training
MAPPED = (10, 10, 60, 0.01, 5e10)  # classes, distilled and real images of each, seconds a point, FLOP/s: wmdd.embedding
LAUNCHED = 0.02  # seconds of the host a pass through a network that is too small to keep a GPU busy, assumed
WHITENED = (56, 5e-10)  # bytes times D^2 and seconds of a core times D^3, images of D numbers: measured at 32 px
MEASURED = 2000  # points whose intrinsic dimension is measured: wmdd.transport.dimension


@cache
def figures(settings: NetworkSettings, classes: int, resolution: int) -> Figures:
    """Count a network by hand, or a library's on itself, built without its numbers.

    Raises:
        WmddError: there is no such network, or it does not take images of this size.
    """
    if not resolution:
        return UNKNOWN
    return by_hand(settings, classes, resolution) or counted(settings, classes, resolution)


@cache
def assumed_figures(settings: NetworkSettings, classes: int, resolution: int) -> Figures:
    """Count a network by hand; the network of `unknown` stands for a library's."""
    other = NetworkSettings(architecture=rates.table()["asked"]["unknown"]["architecture"])
    return by_hand(settings, classes, resolution) or by_hand(other, classes, resolution) or UNKNOWN


def counted(settings: NetworkSettings, classes: int, resolution: int) -> Figures:
    """Build a network without its numbers and count: 2 FLOP a multiplication with addition, in convolutions and products.

    Raises:
        WmddError: there is no such network, or it does not take images of this size.
    """
    try:
        return _counted(settings, classes, resolution, "meta")
    except (NotImplementedError, RuntimeError):  # it does something that needs numbers
        return _counted(settings, classes, resolution, "cpu")


def _counted(settings: NetworkSettings, classes: int, resolution: int, device: str) -> Figures:
    import torch

    from wmdd.batchnorm import layers
    from wmdd.engine import flop
    from wmdd.models import build

    with torch.device(device):
        network = build(settings, classes, resolution, torch.Generator("cpu"))
    channels = sum(layer.num_features for layer in layers(network).values())
    stored = sum(tensor.nbytes for tensor in network.state_dict().values())
    return Figures(flop(network, resolution), network.head.in_features, channels, stored, NAN)


@dataclass(frozen=True)
class Pictures:
    """The images of a dataset: how many in each split, their side (0: not known), bytes of the data file and its kind."""

    train: float
    val: float
    resolution: int
    disk: float
    encoded: bool = False

    def decoded(self, train: float, val: float) -> float:
        """Return how many are decoded when the splits are looked at so often: all, where they are stored as files.

        A split that fits into memory is decoded once.
        """
        times = [
            (1.0 if looks and self.held(count) else looks) * count
            for count, looks in ((self.train, train), (self.val, val))
        ]
        return sum(times) if self.encoded else 0

    def held(self, count: float) -> float:
        """Return the bytes of a split in memory: all of it if it fits (`wmdd.feeding`), else nothing."""
        size = 3 * count * self.resolution**2
        return size if size <= _resident_mb() * 2**20 else 0


def _resident_mb() -> float:
    try:
        return float(os.environ.get("WMDD_RESIDENT_MB", RESIDENT_MB))
    except ValueError:  # the stages will say so
        return RESIDENT_MB


def pictures(name: str, settings: DataSettings, note: Callable[[str], None], folder: Path = Path("data")) -> Pictures:
    """Return what is known of a dataset: by its data file, if that has these settings; else by settings and table.

    Folders of one's own are listed. What is missing is told to `note`.
    """
    path, entry = folder / f"{name}.h5", catalogue.known(settings.source)
    if path.is_file() and (meta := _meta(path)).get("settings") == settings.model_dump(mode="json"):
        train, val = (sum(meta["counts"][split]) for split in ("train", "val"))
        return Pictures(train, val, meta["resolution"], path.stat().st_size, meta["storage"] == "encoded")
    train, val, reason = _stated(settings, entry, "train"), _stated(settings, entry, "val"), ""
    resolution, each = stated_side(settings), _archived(entry)
    if settings.source == "imagefolder":
        try:
            train, val, side, each = _listed(settings)
            resolution = resolution or side
        except WmddError as error:
            reason = f" ({str(error).partition(';')[0]})"
    if settings.images_per_class:
        train = min(train, settings.images_per_class * settings.classes)
    if not resolution or math.isnan(train + val):
        note(
            f"{name}: its pictures are not known yet{reason}; make data/{name}.h5, or set data.train_images, "
            "val_images and resolution"
        )
    return _stored(settings, train, val, resolution, each)


def assumed_pictures(settings: DataSettings) -> Pictures:
    """Return what the settings and the table tell of a dataset, and `unknown` for the rest; no file is looked at."""
    entry, unknown = catalogue.known(settings.source), rates.table()["asked"]["unknown"]
    stated = {split: _stated(settings, entry, split) for split in ("train", "val")}
    train, val = (unknown[split] * settings.classes if math.isnan(n) else n for split, n in stated.items())
    train = min(train, (settings.images_per_class or math.inf) * settings.classes)
    resolution, each = stated_side(settings) or unknown["resolution"], _archived(entry)
    return _stored(settings, train, val, resolution, 3 * resolution**2 if math.isnan(each) else each)


def _stored(settings: DataSettings, train: float, val: float, resolution: int, each: float) -> Pictures:
    """Return pictures as the data stage will store them; `each` is the mean size of their files."""
    pixels = (train + val) * 3 * (resolution or NAN) ** 2
    encoded = pixels > PIXELS if settings.storage == "auto" else settings.storage == "encoded"
    return Pictures(train, val, resolution, (train + val) * each if encoded else pixels, encoded)


def _meta(path: Path) -> dict[str, Any]:
    from wmdd import artifacts

    return artifacts.load_meta(path)


def _stated(settings: DataSettings, entry: catalogue.Known, split: str) -> float:
    known = DIGITS[split] if entry.layout == "digits" else entry.data.get(f"{split}_images", 0)
    return float(getattr(settings, f"{split}_images") or known or NAN)


def _archived(entry: catalogue.Known) -> float:
    """Return the mean bytes of a picture in the published archives, of which a dataset may be a part."""
    if not entry.archives:
        return NAN
    same = [other for other in catalogue.table().values() if other.archives[:1] == entry.archives[:1]]
    count = max(other.data["train_images"] + other.data["val_images"] for other in same)
    return float(sum(archive.size for archive in entry.archives) / count)


def _listed(settings: DataSettings) -> tuple[float, float, int, float]:
    """List folders of one's own: pictures of both splits, side of the first, mean bytes of the first of each class."""
    from wmdd.pictures import UnreadableError, decode
    from wmdd.sources import find

    found, limit = find(settings), settings.images_per_class or math.inf
    some = [shelf.read(0) for shelf in found.train[:SAMPLE]]
    try:
        side = decode(some[0], 0).pixels.shape[-1]
    except UnreadableError:
        side = 0
    train = sum(min(len(shelf), limit) for shelf in found.train)
    return train, sum(map(len, found.val)), side, sum(map(len, some)) / len(some)


@dataclass(frozen=True)
class Job:
    """A job of the DAG and its work.

    Attributes:
        rule: its rule.
        of: dataset, method, images per class, as far as it has them.
        needs: the jobs that go before it.
        images: that pass through a network, each as often as it does.
        steps: of the optimiser.
        flop: of all passes.
        moved: bytes that go through memory at least: inputs, outputs, and what every step changes.
        disk: bytes of its outputs, before compression.
        resolution: side of the images.
        width: of the network; 0 where it has none.
        decoded: pictures that are decoded beside it.
        seconds: of work that runs no network, on one core; of a job that runs one, what the host needs at least.
        gpus: that share it.
        memory: bytes of the arrays that it holds in the memory of the CPU.
        passed: bytes of the images and layers of its largest pass through a network, on the GPU if there is one.
    """

    rule: str
    of: tuple[str, ...] = ()
    needs: tuple[Key, ...] = ()
    images: float = 0
    steps: float = 0
    flop: float = 0
    moved: float = 0
    disk: float = 0
    resolution: int = 0
    width: int = 0
    decoded: float = 0
    seconds: float = 0
    gpus: int = 1
    memory: float = 0
    passed: float = 0

    @property
    def stage(self) -> str | None:
        """The stage that runs a network, if it is of one."""
        stage = self.rule.removesuffix("_part")
        if stage == "select" and not self.width:  # of the selections some ask a network
            return None
        return stage if stage in rates.RATED else None


@dataclass
class Work:
    """The jobs of an experiment by rule and wildcards, and what is to be said about them, a line each."""

    jobs: dict[Key, Job] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def note(self, line: str) -> None:
        """Say something, once."""
        if line not in self.notes:
            self.notes.append(line)


def work(experiment: Experiment, assume: bool = False) -> Work:
    """Return all jobs of an experiment.

    Args:
        experiment: its matrix is run.
        assume: what the settings don't tell, as the workflow does: no file is looked at and no network built.

    Raises:
        WmddError: the matrix is empty, or a network is unknown or does not take the images.
    """
    draft = _Draft(experiment, assume)
    for r in experiment.runs():
        draft.add(r)
    found = draft.found
    if not found.jobs:
        raise WmddError("the experiment has an empty matrix; list datasets, methods and ipc under `matrix:`")
    measured = tuple(key for key in found.jobs if key[0] in ("distance", "quantize", "decay"))
    if any(key[0] == "distance" for key in measured):
        found.jobs[("distances",)] = Job("distances", needs=measured, memory=2**27 + 2**18 * len(measured))
    needs = tuple(key for key in found.jobs if key[0] not in ("grid", "distances"))
    found.jobs[("report",)] = Job("report", needs=needs, memory=2**27 + 2**18 * len(needs))  # the JSON of each
    if experiment.file.embedding:
        draft.maps()
    needs = tuple(key for key in found.jobs if key[0] != "grid")
    found.jobs[("page",)] = Job("page", needs=needs, memory=2**29 + 2**18 * len(needs))  # and the pictures
    return found


def evaluations(settings: TrainingSettings) -> int:
    """Return how often a training looks at the validation set."""
    return math.ceil(settings.epochs / settings.evaluate_every)


def bytes_of_view(settings: RelabelSettings, classes: int) -> float:
    """Return the bytes of one view's labels in the file (`wmdd.labels`), before compression."""
    if settings.store == "pruned":
        k = min(settings.top_k, classes) or classes
        return classes + 4 if k == classes else k * (2 if classes <= 256 else 3) + 6
    return 2 * classes


@dataclass(frozen=True)
class _Scene:
    """What the jobs of a dataset and a teacher share."""

    classes: int
    pictures: Pictures
    network: NetworkSettings
    teacher: Figures
    pixels: float  # bytes of an image

    @property
    def points(self) -> float:
        """Training images of a class."""
        return self.pictures.train / self.classes

    def runs(self, network: NetworkSettings) -> dict[str, int]:
        """Return what decides the rate of a job that runs a network."""
        return {"resolution": self.pictures.resolution, "width": rated_width(network)}

    def training(self, images: float, network: Figures) -> float:
        """Return the bytes of a step: images and the copies that views make, and the layers' outputs with normalised ones."""
        return images * (24 * self.pixels + 8 * network.outputs)

    def looking(self, images: float, network: Figures) -> float:
        """Return the bytes of a pass without a gradient, in which outputs are soon forgotten."""
        return images * (12 * self.pixels + 4 * network.outputs)

    def whitening(self, settings: ExpertSettings | StudentSettings) -> tuple[float, float]:
        """Return the bytes and seconds of whitening, where a network sees whitened images."""
        size = 3 * self.pictures.resolution**2 if settings.whiten else 0
        return WHITENED[0] * size**2, WHITENED[1] * size**3

    def solving(self, atoms: int, features: float) -> float:
        """Return the bytes of the barycenter of a class: its points and some copies, plans; and the labels of all."""
        return self.points * 16 * (features + atoms) + 24 * self.pictures.train


@dataclass(frozen=True)
class _Coder:
    """A generator: its kind, numbers of a latent, and its networks, as far as they are known."""

    name: str
    kind: str
    size: float
    encoder: Figures = UNKNOWN
    decoder: Figures = UNKNOWN
    unet: Figures = UNKNOWN

    @property
    def both(self) -> Figures:
        """Encoder and decoder as one network."""
        return Figures(*(a + b for a, b in zip(self.encoder, self.decoder, strict=True)))

    @property
    def bytes(self) -> float:
        """Of its weights in memory."""
        if self.kind == "ldm":
            return float(rates.table()["asked"]["memory"]["ldm"]) * 2**20
        return 2 * sum(_known(part.bytes) for part in (self.encoder, self.decoder, self.unet))


def _known(value: float) -> float:
    return 0.0 if math.isnan(value) else value


_FREE = BarycenterSettings(weights="free")


class _Draft:
    """Collects the jobs, each once."""

    def __init__(self, experiment: Experiment, assume: bool = False) -> None:
        self.experiment, self.found, self.assume = experiment, Work(), assume
        self.resolve = experiment.resolve
        self.scene = cache(self._scene)
        self.pictures = cache(self._pictures)
        self.figures = assumed_figures if assume else figures
        self.first = min((r.seed for r in experiment.runs()), default=0)

    def _pictures(self, dataset: str) -> Pictures:
        settings = self.resolve("data", dataset=dataset)
        return assumed_pictures(settings) if self.assume else pictures(dataset, settings, self.found.note)

    def _scene(self, dataset: str, teacher: str) -> _Scene:
        known, classes = self.pictures(dataset), self.resolve("data", dataset=dataset).classes
        network = network_of(self.resolve("teacher", dataset=dataset, teacher=teacher))
        found = self.figures(network, classes, known.resolution)
        return _Scene(classes, known, network, found, 3 * known.resolution**2 or NAN)

    def job(self, key: Key, of: tuple[Any, ...], needs: list[Key], **about: Any) -> Key:
        self.found.jobs[key] = Job(key[0], tuple(map(str, of)), tuple(needs), **about)
        return key

    def add(self, r: Run) -> None:
        """Add the jobs of a run that are not there yet."""
        scene, cell = self.scene(r.dataset, r.teacher), (r.dataset, r.teacher, r.method, str(r.ipc), str(r.seed))
        self.features(r, scene)  # the report counts its cost, whether a method uses it or not
        images = self.distilled(r, scene, cell)
        if r.seed == self.first:
            self.job(("grid", *cell), (r.dataset, r.method, r.ipc), [images], memory=2**28)
        self.student(r, scene, cell, images)

    def distilled(self, r: Run, scene: _Scene, cell: Key) -> Key:
        """Add what makes the images of a method, and measures them."""
        family = self.experiment.family(r.method)
        images = (self.select if family == "select" else self.images)(r, scene, cell)
        if self.experiment.file.distances or family == "latent":
            self.distance(r, scene, cell, images)
        return images

    def distance(self, r: Run, scene: _Scene, cell: Key, images: Key) -> Key:
        count = scene.classes * r.ipc
        return self.job(
            ("distance", *cell), (r.dataset, r.method, r.ipc), [images, self.teacher(r, scene), self.features(r, scene)],
            images=count,
            flop=count * scene.teacher.flop,
            moved=count * scene.pixels + 4 * scene.pictures.train * scene.teacher.features,
            memory=2 * count * scene.pixels + scene.solving(r.ipc, scene.teacher.features) + 2 * scene.teacher.bytes,
            passed=scene.looking(min(count, 128), scene.teacher),
            **scene.runs(scene.network),
        )  # fmt: skip

    def coder(self, r: Run, scene: _Scene, name: str) -> _Coder:
        """Return what is known of a generator."""
        settings = self.resolve("generator", dataset=r.dataset, generator=name)
        side = scene.pictures.resolution
        if settings.kind == "ldm":
            return _Coder(name, "ldm", 4 * ((settings.size or side) // 8) ** 2)
        trained = self.resolve("autoencoder", dataset=r.dataset, generator=settings.encoder or name)
        if not side:
            return _Coder(name, settings.kind, NAN)
        encoder, decoder = autoencoder(trained, side)
        unet = UNKNOWN
        if settings.kind == "latent-diffusion":
            model = self.resolve("diffusion", dataset=r.dataset, generator=name)
            unet = denoiser(model, trained.channels, side // trained.factor, scene.classes)
        return _Coder(name, settings.kind, encoder.features, encoder, decoder, unet)

    def trained(self, r: Run, scene: _Scene, coder: _Coder) -> list[Key]:
        """Add the networks of a generator that the workflow trains; return them."""
        if coder.kind == "ldm":
            return []
        seed, known = str(self.experiment.teacher_seed(r.seed)), scene.pictures
        encoder = self.experiment.encoder(coder.name, r.dataset)
        made: list[Key] = [("autoencoder", r.dataset, encoder, seed)]
        if made[0] not in self.found.jobs:
            settings = self.resolve("autoencoder", dataset=r.dataset, generator=encoder)
            self.training(
                made[0], settings, scene, [self.data(r.dataset)], coder.both, known.decoded(settings.epochs, 1)
            )
        if coder.kind == "latent-diffusion":
            made.append(("diffusion", r.dataset, coder.name, seed))
            if made[1] not in self.found.jobs:
                settings = self.resolve("diffusion", dataset=r.dataset, generator=coder.name)
                needs = [*self.latents(r, scene, encoder), made[0], self.data(r.dataset)]
                self.training(made[1], settings, scene, needs, coder.unet, 0, 8 * known.train * coder.size)
        return made

    def training(
        self,
        key: Key,
        settings: Any,
        scene: _Scene,
        needs: list[Key],
        network: Figures,
        decoded: float,
        more: float = 0,
        seconds: float = 0,
    ) -> Key:
        """Add the training of a part of a generator, or of an expert."""
        known, looks = scene.pictures, evaluations(settings)
        seen, looked = settings.epochs * known.train, looks * known.val
        return self.job(
            key, key[1:2], needs,
            images=seen + looked,
            steps=settings.epochs * _batches(known.train, settings.batch_size),
            flop=(3 * seen + looked) * network.flop,
            moved=(seen + looked) * scene.pixels,
            disk=network.bytes,
            decoded=decoded,
            seconds=seconds,
            memory=known.held(known.train) + known.held(known.val) + 6 * network.bytes + 16 * LOOKED * scene.pixels + more,
            passed=max(scene.training(settings.batch_size, network), scene.looking(LOOKED, network)),
            resolution=known.resolution, width=settings.width,
        )  # fmt: skip

    def latents(self, r: Run, scene: _Scene, encoder: str) -> list[Key]:
        """Add the jobs that encode the training images, and the one that looks at how W2 falls; return the former."""
        seed, known = str(self.experiment.teacher_seed(r.seed)), scene.pictures
        blocks = self.experiment.features_blocks(r.dataset)
        keys: list[Key] = [("encode", r.dataset, encoder, seed, block) for block in blocks]
        if keys[0] in self.found.jobs:
            return keys
        coder = self.coder(r, scene, encoder)
        needs = [self.data(r.dataset), *self.trained(r, scene, coder)]
        size = self.resolve("encode", dataset=r.dataset, generator=encoder).batch_size
        for key in keys:
            share = known.train * size_of(key[-1]) / scene.classes
            self.job(
                key, (r.dataset,), needs,
                images=share,
                flop=share * coder.encoder.flop,
                moved=share * (scene.pixels + 2 * coder.size),
                disk=2 * share * coder.size,
                decoded=known.decoded(1, 0) / len(keys),
                memory=5 * SHARD + 16 * share + 16 * size * scene.pixels + coder.bytes,
                passed=scene.looking(size, coder.encoder),
                resolution=known.resolution,
            )  # fmt: skip
        settings = self.resolve("decay", dataset=r.dataset, generator=encoder)
        seconds = min(settings.classes, scene.classes) * 2 * self.seconds(_FREE, scene, settings.most, coder.size)
        self.job(
            ("decay", r.dataset, encoder, seed), (r.dataset,), keys, seconds=seconds,
            memory=scene.solving(settings.most, coder.size) + 16 * MEASURED * coder.size,
        )  # fmt: skip
        return keys

    def decode(self, r: Run, scene: _Scene, cell: Key) -> Key:
        """Add the atoms and the images of a block."""
        name, count = self.experiment.generator(r.method), size_of(cell[-1])
        coder, solver = self.coder(r, scene, name), self.resolve("quantize", dataset=r.dataset, method=r.method)
        encoded = self.latents(r, scene, self.experiment.encoder(name, r.dataset))
        atoms = 4 * count * r.ipc * (coder.size + 1)
        quantized = self.job(
            ("quantize", *cell), (r.dataset, r.method, r.ipc), encoded,
            seconds=count * self.seconds(solver, scene, r.ipc, coder.size),
            flop=2 * count * scene.points * coder.size * r.ipc,
            moved=2 * count * scene.points * coder.size + atoms,
            disk=atoms,
            memory=2 * atoms + scene.solving(r.ipc, coder.size) + 16 * MEASURED * coder.size,
        )  # fmt: skip
        how = self.resolve("decode", dataset=r.dataset, generator=name, method=r.method)
        steps = math.ceil(how.strength * how.steps) * (1 if how.guidance in (0, 1) else 2)
        flop = coder.decoder.flop + (steps * coder.unet.flop if coder.kind == "latent-diffusion" else 0)
        images = count * r.ipc
        return self.job(
            ("decode", *cell), (r.dataset, r.method, r.ipc), [quantized, *self.trained(r, scene, coder)],
            images=images,
            flop=images * (NAN if coder.kind == "ldm" else flop),
            moved=images * (scene.pixels + 4 * coder.size),
            disk=images * scene.pixels,
            memory=3 * images * scene.pixels + 2 * atoms + coder.bytes,
            passed=scene.looking(how.batch_size, coder.decoder) + 2 * how.batch_size * 4 * _known(coder.unet.outputs),
            resolution=scene.pictures.resolution,
        )  # fmt: skip

    def data(self, dataset: str) -> Key:
        if (key := ("data", dataset)) not in self.found.jobs:
            known = self.pictures(dataset)
            seconds = (known.train + known.val) / rates.nearest(rates.table()["cpu"]["data"], known.resolution)
            pixels = 3 * (known.train + known.val) * known.resolution**2
            memory = 2.5 * min(pixels, 2**28)  # read by pieces, but for CIFAR's few files
            self.job(key, (dataset,), [], seconds=seconds, moved=2 * known.disk, disk=known.disk, memory=memory)
        return key

    def teacher(self, r: Run, scene: _Scene) -> Key:
        key = ("teacher", r.dataset, r.teacher, str(self.experiment.teacher_seed(r.seed)))
        if key not in self.found.jobs:
            settings, known = self.resolve("teacher", dataset=r.dataset, teacher=r.teacher), scene.pictures
            epochs, looks = (0, 1) if settings.weights else (settings.epochs, evaluations(settings))
            seen, looked = epochs * known.train, looks * known.val
            epoch = self.mean_flop(settings, scene) if epochs else 0
            step = scene.training(epochs and settings.batch_size / settings.accumulate, scene.teacher)
            self.job(
                key, (r.dataset,), [self.data(r.dataset)],
                images=seen + looked,
                steps=epochs * _batches(known.train, settings.batch_size),
                flop=3 * seen * epoch + looked * scene.teacher.flop,
                moved=(seen + looked) * scene.pixels,
                disk=scene.teacher.bytes,
                decoded=known.decoded(epochs, looks),
                gpus=self.experiment.gpus(r.teacher) if epochs else 1,
                memory=(known.held(known.train) if epochs else 0) + known.held(known.val)
                + 6 * scene.teacher.bytes + 16 * LOOKED * scene.pixels,
                passed=max(step, scene.looking(LOOKED, scene.teacher)),
                **scene.runs(scene.network),
            )  # fmt: skip
        return key

    def maps(self) -> None:
        """Add the map of each dataset and teacher: of its first seed's sets with most images per class (`wmdd.embedding`)."""
        runs = list(self.experiment.runs())
        for dataset, teacher in dict.fromkeys((r.dataset, r.teacher) for r in runs):
            mine = [r for r in runs if (r.dataset, r.teacher) == (dataset, teacher)]
            most, scene = max(r.ipc for r in mine), self.scene(dataset, teacher)
            shown = {r.method: r for r in mine if (r.ipc, r.seed) == (most, mine[0].seed)}
            images = min(MAPPED[0], scene.classes) * min(MAPPED[1], most) * len(shown)
            needs = [self.teacher(mine[0], scene), self.features(mine[0], scene)]
            needs += [
                (
                    "select" if self.experiment.family(method) == "select" else "images",
                    *map(str, (r.dataset, r.teacher, r.method, r.ipc, r.seed)),
                )
                for method, r in shown.items()
            ]
            points = images + min(MAPPED[0], scene.classes) * MAPPED[2]
            self.job(
                ("embedding", dataset, teacher), (dataset,), needs,
                flop=images * scene.teacher.flop,
                moved=images * scene.pixels,
                seconds=MAPPED[3] * points + images * scene.teacher.flop / MAPPED[4],
                memory=2**28 + 32 * points * scene.teacher.features + 16 * images * scene.pixels,
            )  # fmt: skip

    def features(self, r: Run, scene: _Scene) -> Key:
        blocks = self.experiment.features_blocks(r.dataset)
        shared = len(blocks) > 1
        of = (r.dataset, r.teacher, str(self.experiment.teacher_seed(r.seed)))
        if (key := ("gather" if shared else "features", *of)) in self.found.jobs:
            return key
        needs, count = [self.data(r.dataset), self.teacher(r, scene)], scene.pictures.train
        moments = 16 * scene.classes * scene.teacher.channels
        disk = count * (4 * scene.teacher.features + 8) + moments
        runs, size = scene.runs(scene.network), self.resolve("features", dataset=r.dataset).batch_size
        at_once = min(size, max(1, CACHED // max(1, scene.pictures.resolution) ** 2))

        def part(key: Key, share: float) -> Key:
            images, written = share * count, share * disk
            return self.job(
                key, (r.dataset,), needs,
                images=images,
                flop=images * scene.teacher.flop,
                moved=images * scene.pixels + written,
                disk=written,
                decoded=share * scene.pictures.decoded(1, 0),
                memory=5 * SHARD + 3 * moments + 16 * count + 16 * size * scene.pixels + scene.teacher.bytes,
                passed=scene.looking(at_once, scene.teacher),
                **runs,
            )  # fmt: skip

        if not shared:
            return part(key, 1)
        parts = [part(("features_part", *of, block), size_of(block) / scene.classes) for block in blocks]
        return self.job(
            key, (r.dataset,), parts, moved=2 * disk, disk=disk, memory=5 * SHARD + 3 * moments + 16 * count
        )

    def images(self, r: Run, scene: _Scene, cell: Key) -> Key:
        """Add what makes each block of the families recover, latent and match, and the job that joins them."""
        key, of = ("images", *cell), (r.dataset, r.method, r.ipc)
        if key not in self.found.jobs:
            blocks = self.experiment.blocks(r.dataset, r.teacher, r.method, r.ipc)
            make = {"recover": self.recover, "latent": self.decode, "match": self.match}[
                self.experiment.family(r.method)
            ]
            parts = [make(r, scene, (*cell, block)) for block in blocks]
            disk = scene.classes * r.ipc * scene.pixels
            largest = max(map(size_of, blocks)) * r.ipc * scene.pixels
            self.job(key, of, parts, moved=2 * disk, disk=disk, memory=3 * largest)
        return key

    def recover(self, r: Run, scene: _Scene, cell: Key) -> Key:
        settings, count = self.resolve("recover", dataset=r.dataset, method=r.method), size_of(cell[-1])
        needs = [self.teacher(r, scene), self.features(r, scene)]
        needs += [self.barycenter(r, scene, cell)] if settings.feature_weight > 0 else []
        needs += [self.start(r, scene, settings.start)] if settings.start else []
        flop, moved = recovering(settings, count * r.ipc, scene.teacher.flop, scene.pictures.resolution)
        pixels = scene.pixels / 3
        few, many = min(AT_ONCE[0], AT_ONCE[1] / pixels), LARGEST * 224**2 / pixels
        at_once = settings.batch_size if settings.coupled else max(r.ipc, few)
        return self.job(
            ("recover", *cell), (r.dataset, r.method, r.ipc), needs,
            images=settings.iterations * count * r.ipc,
            steps=settings.iterations * _recover_batches(count, r.ipc, settings),
            flop=flop,
            moved=moved,
            disk=count * r.ipc * scene.pixels,
            # four copies of the block as float32 in the end, three of the images at once in a checkpoint; statistics, atoms
            memory=4 * scene.pixels * (4 * count * r.ipc + 3 * min(count * r.ipc, many)) + 2 * scene.teacher.bytes
            + count * (32 * scene.teacher.channels + 8 * r.ipc * scene.teacher.features),
            passed=scene.training(min(count * r.ipc, at_once), scene.teacher),
            **scene.runs(scene.network),
        )  # fmt: skip

    def match(self, r: Run, scene: _Scene, cell: Key) -> Key:
        """Add the images of a block, and the experts that they need."""
        settings, count = self.resolve("match", dataset=r.dataset, method=r.method), size_of(cell[-1])
        needs, known, images = [self.data(r.dataset)], scene.pictures, count * r.ipc
        experts = self.experiment.trajectories(r.dataset, r.method)
        if experts:
            name = self.experiment.expert(r.method)
            trained = self.resolve("expert", dataset=r.dataset, expert=name)
            needs += [self.expert(r, scene, name, trained, seed) for seed in range(experts)]
            network = network_of(trained)
            found = self.figures(network, scene.classes, known.resolution)
            batch = min(images, settings.student_batch or images)
            passes = settings.iterations * settings.student_steps * batch
            flop, held = 11 * passes * found.flop, 3 * scene.training(batch, found)
            moved = settings.iterations * settings.student_steps * 5 * found.bytes
            white, seconds = scene.whitening(trained)
            memory = 2 * settings.student_steps * found.bytes + white
            seconds += LAUNCHED * settings.iterations * settings.student_steps
        else:
            network = network_of(settings)
            found = self.figures(network, scene.classes, known.resolution)
            real = count * settings.real_batch
            passes = settings.iterations * (real + images)
            flop, moved = settings.iterations * (real + 3 * images) * found.flop, passes * scene.pixels
            held = scene.training(min(images, max(r.ipc, AT_ONCE[0])), found) + 24 * real * scene.pixels
            memory = known.held(known.train) + 2 * found.bytes
            seconds = LAUNCHED * settings.iterations
        return self.job(
            ("match", *cell), (r.dataset, r.method, r.ipc), needs,
            images=passes,
            steps=settings.iterations,
            flop=flop,
            moved=moved,
            disk=images * scene.pixels,
            seconds=seconds,
            memory=memory + 32 * images * scene.pixels,
            passed=held,
            **scene.runs(network),
        )  # fmt: skip

    def expert(self, r: Run, scene: _Scene, name: str, settings: Any, seed: int) -> Key:
        """Add an expert."""
        if (key := ("expert", r.dataset, name, str(seed))) not in self.found.jobs:
            network = self.figures(network_of(settings), scene.classes, scene.pictures.resolution)
            looks = scene.pictures.decoded(settings.epochs, evaluations(settings))
            kept = (settings.epochs + 1) * network.bytes
            needs, white = [self.data(r.dataset)], scene.whitening(settings)
            self.training(key, settings, scene, needs, network._replace(bytes=kept), looks, *white)
        return key

    def start(self, r: Run, scene: _Scene, method: str) -> Key:
        """Add what makes the images that a method starts from."""
        other = r.having(method=method)
        make = self.select if self.experiment.family(method) == "select" else self.images
        return make(other, scene, (r.dataset, r.teacher, method, str(r.ipc), str(r.seed)))

    def barycenter(self, r: Run, scene: _Scene, cell: Key) -> Key:
        """Add the barycenters of a block. At least every point meets every atom once."""
        solver, count = self.resolve("barycenter", dataset=r.dataset, method=r.method), size_of(cell[-1])
        features, disk = count * scene.points * scene.teacher.features, 4 * count * r.ipc * (scene.teacher.features + 1)
        return self.job(
            ("barycenter", *cell), (r.dataset, r.method, r.ipc), [self.features(r, scene)],
            seconds=count * self.seconds(solver, scene, r.ipc),
            flop=2 * features * r.ipc,
            moved=4 * features + disk,
            disk=disk,
            memory=2 * disk + scene.solving(r.ipc, scene.teacher.features),
        )  # fmt: skip

    def seconds(self, solver: TransportSettings, scene: _Scene, atoms: int, features: float = 0) -> float:
        """Return the seconds of one class, by the law fitted to measurements of its solver; D is the teacher's, or given."""
        names = {"quantize": solver.weights, "stream": "free", "d4m": "free", "released": f"released-{solver.weights}"}
        law = rates.table()["cpu"]["barycenter"].get(names.get(solver.solver))
        if law is None:
            self.found.note(f"barycenter: nothing was measured of solver {solver.solver}, weights {solver.weights}")
            return NAN
        starts = solver.restarts + solver.compare_restarts
        size = (
            scene.points ** law["points"]
            * (features or scene.teacher.features) ** law["features"]
            * atoms ** law["atoms"]
        )
        return float(starts * law["scale"] * size)

    def select(self, r: Run, scene: _Scene, cell: Key) -> Key:
        if (key := ("select", *cell)) not in self.found.jobs:
            settings, disk = (
                self.resolve("select", dataset=r.dataset, method=r.method),
                scene.classes * r.ipc * scene.pixels,
            )
            needs, about = [self.data(r.dataset)], {"moved": 2 * disk, "memory": 2 * disk}
            solver = self.resolve("barycenter", dataset=r.dataset, method=r.method)
            if settings.strategy == "patches":
                looked = scene.classes * min(settings.candidates, scene.points) * settings.crops
                needs.append(self.teacher(r, scene))
                about |= {"images": looked, "flop": looked * scene.teacher.flop} | scene.runs(scene.network)
                about["passed"] = scene.looking(128, scene.teacher)
            elif solver.confident < 1:
                needs.append(self.teacher(r, scene))
            if settings.strategy == "random" and solver.confident < 1:
                needs.append(self.features(r, scene))
            if settings.strategy not in ("random", "patches"):
                needs.append(self.features(r, scene))
                free = BarycenterSettings(weights="free", restarts=solver.restarts)
                features = scene.classes * scene.points * scene.teacher.features
                atoms = r.ipc * settings.tiles**2
                about = {"moved": 2 * disk + 4 * features, "flop": 2 * features * atoms}
                about["seconds"] = scene.classes * self.seconds(free, scene, atoms)
                about["memory"] = 2 * disk + scene.solving(atoms, scene.teacher.features)
            self.job(key, (r.dataset, r.method, r.ipc), needs, disk=disk, **about)
        return key

    def student(self, r: Run, scene: _Scene, cell: Key, images: Key) -> Key:
        together = self.experiment.file.runs_per_job
        settings = self.resolve("student", dataset=r.dataset, method=r.method, protocol=r.protocol, student=r.student)
        labels = self.resolve("relabel", dataset=r.dataset, method=r.method, protocol=r.protocol)
        taught = labels.store if settings.labels == "soft" else "hard"
        needs, asked, each = [self.data(r.dataset), images], 0.0, 0.0
        if taught == "online":
            needs, asked = [*needs, self.teacher(r, scene)], scene.teacher.flop
        elif taught != "hard":
            needs, each = [*needs, self.relabel(r, scene, cell, images)], bytes_of_view(labels, scene.classes)
        network, count = network_of(settings), scene.classes * r.ipc
        mine, looks = self.figures(network, scene.classes, scene.pictures.resolution), evaluations(settings)
        flop, size = mine.flop, min(count, settings.batch_size)
        seen, looked = settings.epochs * count, looks * scene.pictures.val
        step = scene.training(size, mine) + (scene.looking(size, scene.teacher) if taught == "online" else 0)
        white, seconds = scene.whitening(settings)
        return self.job(
            ("student", *cell, r.student, r.protocol, str(r.run // together)), (r.dataset, r.method, r.ipc), needs,
            images=together * (seen + looked),
            steps=together * settings.epochs * _batches(count, settings.batch_size),
            flop=together * (seen * (3 * flop + asked) + looked * flop),
            moved=together * (seen * (4 * scene.pixels + each) + looked * scene.pixels),
            decoded=together * scene.pictures.decoded(0, looks),
            seconds=seconds,
            memory=white + 1.25 * count * scene.pixels + scene.pictures.held(scene.pictures.val) + 16 * LOOKED * scene.pixels
            + 6 * together * mine.bytes + 8 * count * scene.classes,
            passed=together * max(step, scene.looking(LOOKED, mine)),
            **scene.runs(network),
        )  # fmt: skip

    def mean_flop(self, settings: Any, scene: _Scene) -> float:
        """Return the FLOP of a forward pass in training, the mean over epochs, whose images may grow; assumed full."""
        side = scene.pictures.resolution
        if settings.progressive_from == 1 or not side or self.assume:
            return scene.teacher.flop
        from wmdd.teacher import side_of

        sides = [side_of(settings, side, epoch) for epoch in range(settings.epochs)]
        return sum(figures(scene.network, scene.classes, each).flop for each in sides) / len(sides)

    def relabel(self, r: Run, scene: _Scene, cell: Key, images: Key) -> Key:
        protocol = self.experiment.labelled(r.dataset, r.method, r.protocol)
        if (key := ("relabel", *cell, protocol)) not in self.found.jobs:
            settings = self.resolve("relabel", dataset=r.dataset, method=r.method, protocol=protocol)
            seen, each = settings.labelled * scene.classes * r.ipc, bytes_of_view(settings, scene.classes)
            self.job(
                key, (r.dataset, r.method, r.ipc), [images, self.teacher(r, scene)],
                images=seen,
                flop=seen * scene.teacher.flop,
                moved=seen * (4 * scene.pixels + each),
                disk=seen * each,
                memory=scene.classes * r.ipc * (1.25 * scene.pixels + 16 * scene.classes) + 2 * scene.teacher.bytes,
                passed=2 * scene.looking(min(scene.classes * r.ipc, settings.batch_size), scene.teacher),
                **scene.runs(scene.network),
            )  # fmt: skip
        return key


def network_of(settings: NetworkSettings) -> NetworkSettings:
    """Return those of a teacher's or student's settings that its network depends on."""
    return NetworkSettings(**{name: getattr(settings, name) for name in NetworkSettings.model_fields})


def _recover_batches(classes: int, k: int, settings: RecoverSettings) -> int:
    """Return the batches of `batch_size` images of a block; the engine may cut those of decoupled losses otherwise."""
    if settings.coupled and settings.composition == "across":
        return math.ceil(k / max(1, settings.batch_size // classes))
    return math.ceil(classes / max(1, settings.batch_size // k))


def _batches(images: float, size: int) -> float:
    return NAN if math.isnan(images) else math.ceil(images / size)


def size_of(block: str) -> int:
    """Return how many classes a block `classes{first}-{last}` has."""
    first, _, last = block.removeprefix("classes").partition("-")
    return int(last) - int(first) + 1
