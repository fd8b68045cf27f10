"""Settings of the family latent: autoencoder, diffusion, encode, quantize, decode, decay."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from wmdd.base.errors import WmddError
from wmdd.settings.barycenter import TransportSettings
from wmdd.settings.base import Count, Fraction, NonNegative, Positive, Settings
from wmdd.settings.network import OptimisationSettings


def _power_of_two(value: int) -> int:
    if value < 2 or value & (value - 1):
        raise ValueError("Input should be a power of two from 2 on: 2, 4, 8, 16")
    return value


class GeneratorSettings(Settings):
    """What turns images into latents, and latents into images."""

    kind: Literal["vae", "latent-diffusion", "ldm"] = Field(
        "vae",
        description="vae: a small autoencoder, trained by the workflow; latent-diffusion: a small class-conditional diffusion "
        "model of its latents, trained too; ldm: a pipeline of the diffusers library (Stable Diffusion, DiT)",
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
        1e-3, description="weight of the Kullback-Leibler term: twice the variance of the noise of pixels in [-1, 1]"
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
        description="share of the diffusion that a latent is noised by and brought back from; 0: none (D4M: 0.7)",
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
