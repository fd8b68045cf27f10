"""Every setting of every stage: type, default, bounds, unit, meaning and source. The single source of truth.

The check of experiment files, the command-line flags and the schema for editors are all made from these classes. A
default without a named source is this project's own choice.
"""

import math
import re
import shlex
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema, model_validator

from wmdd import catalogue
from wmdd.base.errors import WmddError

NAME = r"[A-Za-z0-9][A-Za-z0-9_.+-]*"  # of a dataset, method and so on: a part of a path
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
CHECKPOINTS = (".pt", ".pth", ".bin", ".tar", ".safetensors")


def _ordered(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError(f"the smaller share first: {value[1]:g} {value[0]:g}")
    return value


def _power_of_two(value: int) -> int:
    if value < 2 or value & (value - 1):
        raise ValueError("Input should be a power of two from 2 on: 2, 4, 8, 16")
    return value


Shares = Annotated[tuple[Fraction, Fraction], AfterValidator(_ordered)]
Count = Annotated[int, Field(ge=1)]
Mode = Literal["auto", "plain", "eager", "compile"]


def _known(source: str) -> str:
    try:
        catalogue.known(source)
    except WmddError as error:
        raise ValueError(str(error)) from None
    return source


Source = Annotated[str, AfterValidator(_known), WithJsonSchema({"enum": list(catalogue.table()), "type": "string"})]


@Parameter(name="*")
class Settings(BaseModel):
    """Base of all settings: immutable, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class EngineSettings(Settings):
    """Where and how precisely to compute; shared by all stages that run a network."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: the GPU where there is one")
    precision: Literal["auto", "fp32", "tf32", "bf16"] = Field(
        "auto",
        description="forward and backward passes; auto: bf16 where the hardware has it. Master copies are fp32. "
        "tf32: on GPUs, products of float32 with 10 bits",
    )
    mode: Mode = Field(
        "auto",
        description="plain: the reference, float32 and step by step; eager: fast; compile: and compiled by torch; "
        "auto: compiled where that is repaid",
    )
    images_at_once: int = Field(
        0, ge=0, description="in a pass whose result does not depend on it; 0: as many as caches or memory hold"
    )


class DataSettings(Settings):
    """Where a dataset comes from and how it is stored in `data/{dataset}.h5`."""

    source: Source = Field(
        "imagefolder",
        description=f"imagefolder: train/ and val/ with a folder a class; or one of wmdd/datasets.yaml: "
        f"{', '.join(name for name in catalogue.table() if name != 'imagefolder')}",
    )
    classes: Count = Field(
        10, description="how many there are; the DAG is built from it and the data are checked against it"
    )
    root: str = Field(
        "",
        description="folder of the pictures, or the one above it that holds the download; empty: the table's "
        "(imagefolder has none)",
    )
    download: bool = Field(True, description="fetch what the table has an address for (checksummed) when root lacks it")
    resolution: int = Field(0, ge=0, description="side in pixels; 0: as the pictures are, which must then all agree")
    storage: Literal["auto", "pixels", "encoded"] = Field(
        "auto", description="uint8 pixels where the sizes agree, else the files' own bytes"
    )
    on_corrupt: Literal["error", "skip"] = Field(
        "error", description="an unreadable picture stops the run or is left out"
    )
    images_per_class: int = Field(0, ge=0, description="keep the first N training images of a class; 0: all")
    train_images: int = Field(0, ge=0, description="how many there must be before any is left out; 0: not checked")
    val_images: int = Field(0, ge=0, description="how many there must be; 0: not checked")
    held_out: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of each class's training images that validates in place of the validation set, which is not read: "
        "to choose settings without looking at it; 0: none",
    )
    mean: tuple[Fraction, Fraction, Fraction] | None = Field(
        None,
        description="of red, green and blue in [0, 1], to normalise by; not set: measured from the training images",
    )
    std: tuple[Positive, Positive, Positive] | None = Field(None, description="as mean")

    @property
    def side(self) -> int:
        """Of the images in pixels, as far as it is stated here or follows from the source; 0: it does not."""
        return self.resolution or (32 if catalogue.known(self.source).layout in ("cifar", "digits") else 0)


class NetworkSettings(Settings):
    """A network; the number of classes and the input size come from the data."""

    architecture: str = Field(
        "resnet18", description="resnet18|34|50|101, convnet1 to 6, vit-tiny, torchvision:NAME or timm:NAME"
    )
    width: Count = Field(64, description="channels of the first stage (ResNet: 64 published; ConvNet: 128 published)")
    stem: Literal["auto", "cifar", "tiny", "imagenet"] = Field(
        "auto", description="cifar 3x3 stride 1; tiny 3x3 stride 2; imagenet 7x7 stride 2 + pool; auto by resolution"
    )
    norm: Literal["batch", "instance", "layer", "group", "none"] = Field(
        "batch", description="normalisation layers of a ConvNet (DM, DataDAM, MTT: instance)"
    )
    pooling: Literal["avg", "max", "none"] = Field("avg", description="of a ConvNet's blocks")


class OptimisationSettings(Settings):
    """Stochastic gradient descent, shared by all networks that are trained."""

    epochs: Count = Field(50, description="passes over the training set")
    batch_size: Count = Field(128, description="images a step, at most; over all GPUs")
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: Positive = Field(0.1, description="peak learning rate")
    momentum: Fraction = Field(0.9, description="SGD only, Nesterov")
    weight_decay: NonNegative = 5e-4
    warmup_epochs: NonNegative = Field(0, description="linear rise of the learning rate")
    schedule: Literal["cosine", "step", "constant"] = Field(
        "cosine", description="of the learning rate; step: a tenth from half of the epochs on (DM, DataDAM, MTT)"
    )
    schedule_stretch: float = Field(
        1.0,
        ge=1,
        description="zeta: the cosine is stretched to zeta x epochs, so that the rate does not end at 0 (EDC, RD3)",
    )
    evaluate_every: Count = Field(
        10, description="epochs between two looks at the validation set; the last always counts"
    )
    ema: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="decay a step of the moving average of the weights that is kept; 0: the last ones are",
    )


class TrainingSettings(NetworkSettings, OptimisationSettings):
    """A network and its optimisation, shared by teacher and student."""


class AdoptedSettings(NetworkSettings):
    """A teacher whose weights come from outside: nothing of a training, but the same gate."""

    weights: str = Field(
        "",
        description="empty: train one; else a name of torchvision (ResNet18_Weights.IMAGENET1K_V1), pretrained "
        "(timm's, for architecture timm:NAME), or a file: .pt, .pth, .bin, .tar, .safetensors",
    )
    min_accuracy: Fraction = Field(0.0, description="gate: stop the run when the teacher's validation top-1 is below")

    @property
    def checkpoint(self) -> str:
        """The file that the weights are taken from, or nothing."""
        return self.weights if "/" in self.weights or self.weights.endswith(CHECKPOINTS) else ""


class TeacherSettings(TrainingSettings, AdoptedSettings):
    """The squeeze stage: one network trained on the real training set, gated on its validation accuracy."""

    crop: Literal["none", "pad", "resized"] = Field("resized", description="pad: shift by up to `pad` px")
    pad: int = Field(4, ge=0, description="pixels")
    crop_scale: Shares = Field((0.08, 1.0), description="share of the area (resized)")
    flip: bool = Field(True, description="mirror left-right with probability 1/2")
    label_smoothing: Fraction = 0.0
    accumulate: Count = Field(
        1, description="parts of a step, computed one after the other to need less memory; BatchNorm sees one at a time"
    )
    sync_batchnorm: bool = Field(
        True,
        description="on several GPUs, BatchNorm over the images of all (as torch's SyncBatchNorm); else each its own",
    )
    progressive_from: float = Field(
        1.0,
        gt=0,
        le=1,
        description="side of the images in the first epoch, as a share of the full side that is reached at 3/4 of the epochs "
        "(fastai's entry to DAWNBench 2018; FFCV); 1: off",
    )

    @model_validator(mode="before")
    @classmethod
    def _untrained(cls, values: Any) -> Any:
        """Leave settings of the training at their defaults where there is none, so that changing them reruns nothing."""
        if not isinstance(values, dict) or not values.get("weights"):
            return values
        unused = cls.model_fields.keys() - AdoptedSettings.model_fields.keys()
        return {name: value for name, value in values.items() if name not in unused}


class FeaturesSettings(Settings):
    """One pass of the teacher over the training set."""

    batch_size: Count = Field(
        256, description="images a forward pass, at most; does not change the result, but with variance: batches"
    )
    variance: Literal["class", "batches"] = Field(
        "class",
        description="of the BatchNorm inputs of a class: over all its images, or the mean of those within batches of "
        "batch_size, which leaves out what differs between batches (WMDD's released code)",
    )
    exact: bool = Field(
        False,
        description="always in float32; else in the engine's precision: in bf16 two times faster, features within 1 % and "
        "statistics within 0.2 % of a class's standard deviation (docs/studies/datasets.md)",
    )


class TransportSettings(Settings):
    """A solver of free-support W2 barycenters with K atoms."""

    weights: Literal["uniform", "free"] = Field(
        "uniform", description="1/K each (what the published code runs), or optimised with the atoms (the paper's text)"
    )
    solver: Literal["quantize", "stream", "cuturi-doucet", "released", "d4m"] = Field(
        "quantize",
        description="quantize: ours; stream: mini-batch CLVQ for points too large for memory, free weights only; "
        "cuturi-doucet: the alternation that WMDD's paper prescribes; released: what its published code computes; "
        "d4m: mini-batch k-means in one pass, as D4M's code runs it",
    )
    expand: Count = Field(10, description="d4m: points of a mini-batch for each atom (D4M's km_expand)")
    max_iterations: Count = Field(
        300, description="steps, at most (stream: passes after the learning, never more than 10; released: has its own)"
    )
    tolerance: NonNegative = Field(1e-6, description="stop when the cost falls by less than this share of itself")
    restarts: Count = Field(1, description="independent starts; the cheapest result is kept")
    exchanges: int = Field(
        10, ge=0, description="rounds of local search by exchanges of cells, at most (quantize with free weights)"
    )
    compare_restarts: int = Field(
        0,
        ge=0,
        description="also solve from this many starts and report the gap to the best; 20 is a good number. "
        "Changes no atoms",
    )

    def check(self, where: str = "") -> None:
        """Refuse what no solver does; the message begins with `where`.

        Raises:
            WmddError: stream with uniform weights.
        """
        if self.solver == "stream" and self.weights == "uniform":
            raise WmddError(f"{where}the solver stream has free weights only; set weights: free, or solver: quantize")


class BarycenterSettings(TransportSettings):
    """Free-support W2 barycenter of one class's features with K atoms (WMDD, Section 3; Cuturi and Doucet 2014)."""

    confident: float = Field(
        1.0,
        gt=0,
        le=1,
        description="share of a class's images that count, those of which the teacher is surest; 1: all (WMDD). For methods "
        "that select, too, but patches",
    )


class GeneratorSettings(Settings):
    """What turns images into latents, and latents into images."""

    kind: Literal["vae", "latent-diffusion", "ldm"] = Field(
        "vae",
        description="vae: a small autoencoder that the workflow trains; latent-diffusion: a small class-conditional diffusion "
        "model of its latents, trained too; ldm: a latent diffusion pipeline of the diffusers library (Stable Diffusion, DiT)",
    )
    encoder: str = Field("", description="latent-diffusion: the generator of kind vae whose latents it is a model of")
    model: str = Field("", description="ldm: a folder with the pipeline's parts, or its id on the Hugging Face hub")
    revision: str = Field("", description="ldm: commit or tag of a hub id; empty: its main branch")
    size: int = Field(
        0,
        ge=0,
        description="ldm: side in pixels of its images (Stable Diffusion 1.5: 512; DiT-XL/2: 256); 0: the dataset's",
    )

    def check(self, where: str = "") -> None:
        """Refuse a kind that lacks what it needs; the message begins with `where`.

        Raises:
            WmddError: an ldm without a model, or a latent-diffusion without an encoder.
        """
        if self.kind == "ldm" and not self.model:
            raise WmddError(f"{where}kind ldm needs model: a folder with the pipeline, or its id on the hub")
        if self.kind == "latent-diffusion" and not self.encoder:
            raise WmddError(f"{where}kind latent-diffusion needs encoder: the name of a generator of kind vae")


class AutoencoderSettings(OptimisationSettings):
    """A small convolutional variational autoencoder (Kingma and Welling 2014), trained on the dataset's images."""

    width: Count = Field(32, description="channels at half the resolution; twice as many from a quarter on")
    channels: Count = Field(4, description="of a latent (Stable Diffusion: 4)")
    factor: Annotated[Count, AfterValidator(_power_of_two)] = Field(
        4, description="side of an image over that of its latent, a power of two from 2 on (Stable Diffusion: 8)"
    )
    divergence: NonNegative = Field(
        1e-3, description="weight of the Kullback-Leibler term; twice the variance of the noise in pixels from -1 to 1"
    )
    flip: bool = Field(True, description="mirror left-right with probability 1/2")
    epochs: Count = Field(10, description="passes over the training set")
    optimizer: Literal["sgd", "adam", "adamw"] = "adamw"
    lr: Positive = Field(2e-3, description="peak learning rate")
    weight_decay: NonNegative = 0.0
    warmup_epochs: NonNegative = Field(0.2, description="linear rise of the learning rate")


class DiffusionSettings(OptimisationSettings):
    """A small class-conditional diffusion model of latents (Ho et al. 2020; Nichol and Dhariwal 2021; Salimans and Ho 2022)."""

    width: Count = Field(64, description="channels of the UNet at the latents' side; twice as many at half of it")
    layers: Count = Field(2, description="residual blocks at each side")
    label_dropout: Fraction = Field(
        0.1, description="share of the images whose class is hidden in training, for guidance (Ho and Salimans 2022)"
    )
    epochs: Count = Field(50, description="passes over the latents")
    optimizer: Literal["sgd", "adam", "adamw"] = "adamw"
    lr: Positive = Field(1e-3, description="peak learning rate")
    weight_decay: NonNegative = 0.0
    warmup_epochs: NonNegative = Field(0.5, description="linear rise of the learning rate")
    ema: float = Field(0.999, ge=0, lt=1, description="decay a step of the moving average of the weights that is kept")


class EncodeSettings(Settings):
    """One pass of the encoder over the training set."""

    batch_size: Count = Field(64, description="images a forward pass, at most; does not change the result")


class QuantizeSettings(TransportSettings):
    """Optimal quantization of the latents of each class by K atoms (DDOQ, Section 3; D4M)."""

    weights: Literal["uniform", "free"] = Field(
        "free", description="free: the masses of the cells (DDOQ); uniform: 1/K each (D4M)"
    )


class DecodeSettings(Settings):
    """Images of the atoms: image-to-image from the noised latent, conditioned on the class. A vae has no use for these."""

    strength: Fraction = Field(
        0.7,
        description="share of the diffusion that is undone from the noised latent; 0: none, the latent as it is (D4M: 0.7)",
    )
    guidance: NonNegative = Field(
        8.0, description="classifier-free: 1 follows the class as trained, 0 leaves it out (D4M: 8; DiT's paper: 4)"
    )
    steps: Count = Field(50, description="of the whole diffusion, of which the strength's share is done")
    prompt: str = Field("{name}", description="text pipelines: {name} stands for the readable name of the class (D4M)")
    negative_prompt: str = Field("", description="text pipelines: what to stay away from")
    batch_size: Count = Field(
        16, description="images a forward pass, at most; does not change the result beyond rounding"
    )


class DecaySettings(Settings):
    """How fast W2 falls with the number of atoms, against the intrinsic dimension of the latents."""

    most: Count = Field(64, description="atoms: 1, 2, 4, ... up to this many")
    classes: Count = Field(10, description="that are looked at, evenly from the first to the last")


class RecoverSettings(Settings):
    """Images optimised to match the barycenter under BatchNorm statistics (WMDD, Eq. 5-7)."""

    init: str = Field(
        "noise",
        pattern=f"^(noise|method:{NAME})$",
        description="where to start: noise (WMDD, SRe2L), or method:NAME, the images of another method of the same cell",
    )
    iterations: Count = Field(2000, description="Adam steps (WMDD and SRe2L: 2,000)")
    batch_size: Count = Field(
        100, description="images a step of a coupled loss (below); others do not depend on it: engine.images_at_once"
    )
    lr: Positive = Field(
        0.1, description="Adam, in units of normalised pixels; cosine to 0 (WMDD: 0.1 Tiny, 0.25 others)"
    )
    betas: tuple[Fraction, Fraction] = Field((0.5, 0.9), description="Adam (WMDD and SRe2L)")
    feature_weight: NonNegative = Field(1.0, description="weight of the distance to the barycenter's atoms, Eq. 5")
    feature_loss: Literal["mean", "squared", "norm"] = Field(
        "mean",
        description="mean of the squared distances by the barycenter's weights (lambda is the same for any images per class), "
        "their sum (paper), or the norm of the whole batch's residual (released code; couples)",
    )
    regularisation: NonNegative = Field(
        10.0, description="lambda, weight of the BatchNorm term, Eq. 7 (WMDD: 10 or 500)"
    )
    statistics: Literal["per-class", "global"] = Field(
        "per-class",
        description="BatchNorm statistics of the class (WMDD) or the teacher's running ones (SRe2L; couples)",
    )
    first_layer_weight: NonNegative = Field(1.0, description="factor of the first BatchNorm layer (SRe2L's code: 10)")
    cross_entropy: NonNegative = Field(0.0, description="weight of the classification loss (SRe2L: 1)")
    composition: Literal["within", "across"] = Field(
        "within",
        description="batches of a coupled loss: all images of few classes, or few images of as many classes as fit",
    )
    crop_scale: Shares = Field((0.08, 1.0), description="RandomResizedCrop, share of the area; 1 1: none")
    flip: bool = Field(True, description="mirror with probability 1/2")
    jitter: int = Field(32, ge=0, description="cyclic shift by up to this many pixels (32 at 224 px)")
    draws: Literal["iteration", "image"] = Field(
        "iteration",
        description="of crop, flip and shift: one an iteration for all images (WMDD, SRe2L), or one for each",
    )
    jpeg: int = Field(
        0,
        ge=0,
        le=100,
        description="quality of a JPEG file that the images go through at the end (released code: 75); 0: none",
    )

    @property
    def start(self) -> str:
        """The method whose images are the start, or nothing."""
        return self.init.removeprefix("method:") if self.init != "noise" else ""

    @property
    def coupled(self) -> bool:
        """Whether the images of a batch depend on each other beyond their class, so that batches are part of the method."""
        return self.statistics == "global" or self.feature_loss == "norm"


class SelectSettings(Settings):
    """Real images as they are, the controls; or several in one; or the crops that the teacher is surest of (RDED)."""

    strategy: Literal["random", "kmeans-medoid", "patches"] = Field(
        "random",
        description="uniformly; the real image nearest to each atom of the free-weights barycenter; or the crops of random "
        "images that the teacher is surest of",
    )
    tiles: Count = Field(
        1, description="m: a distilled image is m x m chosen ones, each of 1/m of its side (RDED: 2, at 32 px 1)"
    )
    candidates: Count = Field(300, description="patches: random images of a class that are cropped (RDED: 300)")
    crops: Count = Field(5, description="patches: of each of them, of which the best may be chosen (RDED: 5)")
    crop_scale: Shares = Field((0.08, 1.0), description="patches: share of the area of a crop (RDED's code)")

    @model_validator(mode="before")
    @classmethod
    def _uncropped(cls, values: Any) -> Any:
        """Leave settings of the crops at their defaults where there are none, so that changing them reruns nothing."""
        if not isinstance(values, dict) or values.get("strategy") == "patches":
            return values
        return {name: value for name, value in values.items() if name not in ("candidates", "crops", "crop_scale")}


class ConvNetSettings(NetworkSettings):
    """The network of the family match: a ConvNet, three blocks at 32 px and four at 64 (DM, DataDAM, MTT)."""

    architecture: str = Field("convnet3", description="convnet1 to 6; 3 for 32 px, 4 for 64 px published")
    width: Count = Field(128, description="channels of each block (published: 128)")
    norm: Literal["batch", "instance", "layer", "group", "none"] = Field(
        "instance", description="normalisation layers (published: instance); not batch, which ties images to each other"
    )
    views: Literal["dsa", "none"] = Field(
        "dsa", description="siamese augmentation: one random distortion a step, or none"
    )

    def check(self, where: str = "") -> None:
        """Refuse a network that is no ConvNet, or whose features of an image depend on others; the message begins with `where`.

        Raises:
            WmddError: names the remedy.
        """
        if not re.fullmatch(r"convnet\d", self.architecture):
            raise WmddError(
                f"{where}the network must be a ConvNet, not {self.architecture}; set architecture: convnet3"
            )
        if self.norm == "batch":
            raise WmddError(f"{where}BatchNorm ties the images of a batch to each other; set norm: instance")


class ExpertSettings(ConvNetSettings, OptimisationSettings):
    """A network trained on the real data, of which every epoch is kept (MTT; its released code's defaults)."""

    batch_size: Count = Field(256, description="images a step")
    lr: Positive = Field(0.01, description="of plain gradient descent")
    momentum: Fraction = Field(0.0, description="SGD only, Nesterov")
    weight_decay: NonNegative = 0.0
    schedule: Literal["cosine", "step", "constant"] = Field("constant", description="of the learning rate")
    evaluate_every: Count = Field(1, description="epochs between two looks at the validation set")
    whiten: bool = Field(False, description="the network sees ZCA-whitened images, and so do students of MTT then")


class MatchSettings(ConvNetSettings):
    """Images optimised in their pixels, on which networks behave as on real ones (DM, DataDAM, MTT)."""

    objective: Literal["dm", "datadam", "mtt"] = Field(
        "dm", description="mean features of untrained networks; their attention maps; where trained networks go"
    )
    init: Literal["real", "noise"] = Field("real", description="where to start: the images of `random`, or noise")
    iterations: Count = Field(20000, description="steps of the pixels (DM, DataDAM: 20,000; MTT: 5,000)")
    lr: Positive = Field(
        1.0, description="of gradient descent on normalised pixels (DM: 1; DataDAM: 100; MTT: 100 to 1,000)"
    )
    momentum: Fraction = Field(0.5, description="of the pixels' descent (all three: 0.5)")
    real_batch: Count = Field(
        256, description="dm, datadam: real images of a class a step (DM: 256; DataDAM's code: 64)"
    )
    pool: int = Field(0, ge=0, description="dm, datadam: untrained networks taken in turn; 0: a fresh one each step")
    attention_power: Positive = Field(4.0, description="datadam: p of the attention maps")
    task_balance: NonNegative = Field(0.01, description="datadam: weight of the last layer's term")
    trajectories: Count = Field(100, description="mtt: how many experts there are (published: 100)")
    expert_epochs: Count = Field(2, description="mtt: M, epochs of an expert that a student is to go in its steps")
    start_epochs: Count = Field(20, description="mtt: a student begins at one of an expert's first so many epochs")
    student_steps: Count = Field(30, description="mtt: N, steps of a student")
    student_batch: int = Field(0, ge=0, description="mtt: distilled images a step of a student; 0: all")
    student_lr: Positive = Field(0.01, description="mtt: alpha, of a student, to begin with; it is learned")
    rate_lr: NonNegative = Field(1e-5, description="mtt: learning rate of alpha; 0: it stays")
    labels: Literal["fixed", "learned"] = Field(
        "fixed", description="mtt: the classes, or probabilities learned with the pixels"
    )
    labels_lr: Positive = Field(1.0, description="mtt: learning rate of the logits of learned labels")

    @model_validator(mode="before")
    @classmethod
    def _unused(cls, values: Any) -> Any:
        """Leave settings of the other objectives at their defaults, so that changing them reruns nothing."""
        if not isinstance(values, dict):
            return values
        mine = values.get("objective", "dm")
        return {name: value for name, value in values.items() if mine in _OBJECTIVES.get(name, (mine,))}


_OBJECTIVES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("real_batch", "pool", "architecture", "width", "stem", "norm", "pooling"), ("dm", "datadam")
    ),  # a student of MTT is the experts' network
    **dict.fromkeys(("attention_power", "task_balance"), ("datadam",)),
    **dict.fromkeys(
        (
            "trajectories",
            "expert_epochs",
            "start_epochs",
            "student_steps",
            "student_batch",
            "student_lr",
            "rate_lr",
            "labels",
            "labels_lr",
        ),
        ("mtt",),
    ),
}


class AugmentationSettings(Settings):
    """The random views of the distilled images that teacher and student share."""

    views: Literal["crops", "dsa"] = Field(
        "crops",
        description="crop, mirror image and mix as below, or siamese augmentation, without them (DM, DataDAM, MTT)",
    )
    crop_scale: Shares = Field((0.08, 1.0), description="RandomResizedCrop, share of the area")
    flip: bool = Field(True, description="mirror with probability 1/2")
    mix: Literal["cutmix", "none"] = "cutmix"


class LabelSettings(AugmentationSettings):
    """What the relabel stage and the student must agree on: the views, and where their soft labels are."""

    store: Literal["stored", "pruned", "online"] = Field(
        "stored",
        description="stored: the logits of all views, float16; pruned: the largest, in 8 bits, of fewer epochs; online: none, "
        "the student asks the teacher",
    )


class RelabelSettings(LabelSettings):
    """Soft labels of augmented views (FKD, SRe2L's relabel stage), kept whole, pruned or not at all."""

    epochs: Count = Field(300, description="views of every image, one a student epoch; at least the student's epochs")
    batch_size: Count = Field(256, description="images a forward pass; does not change the result")
    keep_epochs: float = Field(
        0.25,
        gt=0,
        le=1,
        description="pruned: share of the epochs whose views are labelled; the student goes through them in turn. Xiao and He "
        "2024 (LPLD) prune labels by epochs and batches, to a 40th",
    )
    top_k: int = Field(
        50,
        ge=0,
        description="pruned: logits kept a view; 0: all. 50 of 1,000 are 50 bytes of values, 100 of classes and 6 of range and "
        "remainder: 156 in place of 2,000, so with a quarter of the epochs 51 times less. 8 bits a logit are this project's "
        "choice; LPQLD quantizes too",
    )
    temperature: Positive = Field(
        20.0, description="pruned: at which the logits that are left out keep their mass; the student's"
    )

    @property
    def labelled(self) -> int:
        """For how many epochs there are labels in the file."""
        return math.ceil(self.keep_epochs * self.epochs - 1e-9) if self.store == "pruned" else self.epochs

    @model_validator(mode="before")
    @classmethod
    def _unpruned(cls, values: Any) -> Any:
        """Leave settings of the pruning at their defaults where there is none, so that changing them reruns nothing."""
        if not isinstance(values, dict) or values.get("store") == "pruned":
            return values
        return {name: value for name, value in values.items() if name not in ("keep_epochs", "top_k", "temperature")}


class WeightsSettings(Settings):
    """How much each distilled image counts in a student's loss, normalised to mean 1 over the distilled set."""

    weights: Literal["mass", "sqrt-mass", "variance-reduced", "uniform"] = Field(
        "mass",
        description="of the masses w that a method leaves: w; their square roots; half-way to equal ones, (w + 1/K) / 2; none. "
        "Where a method's masses are equal, all are the same",
    )


class StudentSettings(TrainingSettings, WeightsSettings):
    """A network trained from scratch on the distilled images."""

    epochs: Count = Field(300, description="passes over the distilled set")
    batch_size: Count = Field(100, description="images a step, at most")
    optimizer: Literal["sgd", "adam", "adamw"] = "adamw"
    lr: Positive = Field(1e-3, description="peak learning rate")
    weight_decay: NonNegative = 0.01
    labels: Literal["soft", "hard"] = Field(
        "soft", description="the teacher's, or the set's own: the class, or the labels that a method learned (MTT)"
    )
    temperature: Positive = Field(20.0, description="of the softmax on both sides (WMDD, SRe2L: 20)")
    learned_lr: bool = Field(
        False, description="take the learning rate that the method learned, if it did (MTT), as lr"
    )
    whiten: bool = Field(False, description="the student sees ZCA-whitened images (MTT's published numbers at 32 px)")
    evaluate_every: Count = Field(
        50, description="epochs between two looks at the validation set; the last always counts"
    )


def flags(*parts: Settings) -> str:
    """Return settings as sorted command-line flags, so that equal settings are equal text whatever their order in a file.

    What is not set (None) has no flag.
    """
    values = {name: value for part in parts for name, value in part.model_dump(mode="json").items()}
    return " ".join(_flag(name.replace("_", "-"), values[name]) for name in sorted(values) if values[name] is not None)


def _flag(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    values = value if isinstance(value, list) else [value]
    return f"--{name} {' '.join(shlex.quote(str(v)) for v in values)}"
