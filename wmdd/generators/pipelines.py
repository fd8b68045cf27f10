r"""Latent diffusion pipelines of the diffusers library [1] as generators, by its public interface alone.

A pipeline is a folder of parts, or its id on the Hugging Face hub. Its autoencoder (E, D) makes a latent of an image x,

    z = (E(x) - m) / s,        x = D(s z + m),

with m and s as the pipeline itself scales latents, so that their variance is about 1. E(x) is the mean of the posterior, not a
draw from it, so that latents are a function of the images. A decoder takes z image-to-image [2]: it is noised to where a share
`strength` of the diffusion is left, brought back in ceil(strength steps) of all steps under its class, and decoded:

  - Stable Diffusion (1, 2, XL, 3) under the class's prompt, by the library's own image-to-image pipeline, as D4M [3] does. That
    takes latents in place of images, neither scales nor draws them again, and has one generator for each image.
  - DiT [4] under the class's index. Its pipeline has no way to start from a latent; `ClassGuided` is its loop with one.
    Guidance acts on all channels of the latents, as in the library (the paper's code: on the first three); the variances that
    DiT learned are left out.

Schedulers are the pipeline's own. Those that draw do so from each image's generator, but for `UNKEYED`, in whose place DDIM
[5] is put. PNDM, Stable Diffusion's, does one evaluation more than there are steps and begins one step earlier, as in [1].
Watermarks and safety checkers are left out: both change images, the latter into black ones.

References:
    [1] von Platen et al.: Diffusers, https://github.com/huggingface/diffusers.
    [2] Meng et al.: SDEdit, ICLR 2022.
    [3] Su et al.: D4M: Dataset Distillation via Disentangled Diffusion Model, CVPR 2024.
    [4] Peebles, Xie: Scalable Diffusion Models with Transformers, ICCV 2023.
    [5] Song, Meng, Ermon: Denoising Diffusion Implicit Models, ICLR 2021.
"""

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmdd.base.errors import WmddError
from wmdd.generators.conditions import class_indices, prompts
from wmdd.generators.generator import noise
from wmdd.generators.pipeline_folder import LEFT_OUT, Model
from wmdd.generators.pipeline_hub import find, loading, say
from wmdd.generators.vae import scaled, to_pixels
from wmdd.networks.engine import Engine

if TYPE_CHECKING:
    from wmdd.settings.latent import DecodeSettings, GeneratorSettings

OFF: dict[str, Any] = {"requires_safety_checker": False, "add_watermarker": False} | dict.fromkeys(LEFT_OUT)
LARGE = 512  # side in pixels from which one image alone keeps a device busy, and many need much memory


@dataclass(frozen=True)
class Autoencoder:
    """A pipeline's autoencoder alone: a latent is decoded as it is."""

    model: Model  # the pipeline
    network: Any  # its vae, on the device
    size: int  # side of the images that it takes
    resolution: int  # side of those that come and go; bicubic with antialiasing between the two
    engine: Engine  # of whose type its parameters are, too

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        """Return the scaled means of the posteriors.

        Raises:
            WmddError: they are not finite.
        """
        pixels = _resized(scaled(images.to(self.engine.device)), self.size)
        arranged = self.engine.arranged(pixels.to(self.engine.dtype), self.network)
        shift, scale = self._scaling()
        means: Tensor = self.network.encode(arranged).latent_dist.mode().float()
        return self._finite((means - shift) / scale, "latents")

    @torch.inference_mode()
    def decode(self, latents: Tensor, labels: Tensor, draws: Sequence[torch.Generator]) -> Tensor:
        """Return images of latents; labels and draws have no part in it.

        Raises:
            WmddError: they are not finite.
        """
        shift, scale = self._scaling()
        unscaled = (latents.to(self.engine.device).float() * scale + shift).to(self.engine.dtype)
        decoded = self.network.decode(self.engine.arranged(unscaled, self.network)).sample.float()
        return to_pixels(_resized(self._finite(decoded, "images").clamp(-1, 1), self.resolution))

    def _scaling(self) -> tuple[Tensor, Tensor]:
        """Return m and s, [c, 1, 1] or numbers."""
        config = self.network.config
        shift, scale = torch.tensor(config.get("shift_factor") or 0.0), torch.tensor(1 / config.scaling_factor)
        if config.get("latents_mean") is not None and config.get("latents_std") is not None:
            shift = torch.tensor(config.latents_mean).view(-1, 1, 1)
            scale = torch.tensor(config.latents_std).view(-1, 1, 1) * scale
        return shift.to(self.engine.device), scale.to(self.engine.device)

    def _finite(self, values: Tensor, what: str) -> Tensor:
        if torch.isfinite(values).all():
            return values
        remedy = "its weights may be damaged: get them again"
        if self.engine.dtype != torch.float32:
            remedy = "it overflows: set engine.precision: fp32"
        kind = str(self.engine.dtype).removeprefix("torch.")
        raise WmddError(f"the {what} of {self.model.name}'s autoencoder are not finite in {kind}; {remedy}")


def _resized(images: Tensor, side: int) -> Tensor:
    """Return images from -1 to 1 at another side."""
    if images.shape[-1] == side:
        return images
    resized = F.interpolate(images, (side, side), mode="bicubic", antialias=True, align_corners=False)
    return resized.clamp(-1, 1)


@dataclass(frozen=True)
class Guided:
    """A pipeline: a latent is moved through its diffusion, and then decoded."""

    autoencoder: Autoencoder
    pipeline: Any  # the whole of it, on the device
    conditions: list[Any]  # one for each class of the data: prompts, or classes of DiT
    settings: "DecodeSettings"

    def encode(self, images: Tensor) -> Tensor:
        """Return the autoencoder's latents."""
        return self.autoencoder.encode(images)

    @torch.inference_mode()
    def decode(self, latents: Tensor, labels: Tensor, draws: Sequence[torch.Generator]) -> Tensor:
        """Return images of latents, each under its class's condition and with its own draws.

        Raises:
            WmddError: they are not finite.
        """
        conditions = [self.conditions[label] for label in labels.tolist()]
        moved = self.moved(latents.to(self.autoencoder.engine.device), conditions, list(draws))
        return self.autoencoder.decode(moved, labels, draws)

    def moved(self, latents: Tensor, conditions: list[Any], draws: list[torch.Generator]) -> Tensor:
        """Return latents [B, c, h, w] after the reverse process, begun at themselves."""
        raise NotImplementedError


class TextGuided(Guided):
    """An image-to-image pipeline under prompts."""

    def moved(self, latents: Tensor, conditions: list[Any], draws: list[torch.Generator]) -> Tensor:
        """Return latents after the pipeline's own loop; with guidance 0, under the negative prompt alone."""
        how, side = self.settings, self.autoencoder.size
        negative = [how.negative_prompt] * len(conditions)
        call: dict[str, Any] = {
            "prompt": conditions if how.guidance else negative,
            "negative_prompt": negative if how.negative_prompt else None,  # of XL, none is not the same as an empty one
            "image": latents.to(self.autoencoder.engine.dtype),
            "strength": min(1.0, (steps_done(how) + self.autoencoder.model.family.rounding) / how.steps),
            "num_inference_steps": how.steps,
            "guidance_scale": how.guidance or 1.0,
            "generator": draws,
            "output_type": "latent",
        }
        if "height" in inspect.signature(self.pipeline.__call__).parameters:
            call |= {"height": side, "width": side}
        moved: Tensor = self.pipeline(**call).images
        return moved


class ClassGuided(Guided):
    """DiT under class indices."""

    def moved(self, latents: Tensor, conditions: list[Any], draws: list[torch.Generator]) -> Tensor:
        """Return latents after the loop of DiT's pipeline, begun at them where that begins at noise."""
        how, scheduler = self.settings, self.pipeline.scheduler
        scheduler.set_timesteps(how.steps, device=latents.device)
        first = (how.steps - steps_done(how)) * scheduler.order
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(first)
        times = scheduler.timesteps[first:]
        classes = torch.tensor(conditions, device=latents.device)
        drawn = noise(latents.shape[1:], draws).to(latents.device)
        z: Tensor = scheduler.add_noise(latents, drawn, times[:1].expand(len(latents)))
        keyed = {"generator": draws} if "generator" in inspect.signature(scheduler.step).parameters else {}
        for time in times:
            noise_in_z = self._guided(scheduler.scale_model_input(z, time), time, classes)
            z = scheduler.step(noise_in_z, time, z, **keyed).prev_sample
        return z

    def _guided(self, z: Tensor, time: Tensor, classes: Tensor) -> Tensor:
        """Return what the transformer says of z [B, c, h, w]: e_0 + g (e_y - e_0), with e_0 of no class."""
        count = int(self.pipeline.transformer.config.num_embeds_ada_norm)
        guidance, none = self.settings.guidance, torch.full_like(classes, count)  # behind the last class: of no class
        if guidance in (0, 1):
            return self._predicted(z, time, classes if guidance else none)
        under, without = self._predicted(torch.cat([z, z]), time, torch.cat([classes, none])).chunk(2)
        return without + guidance * (under - without)

    def _predicted(self, z: Tensor, time: Tensor, classes: Tensor) -> Tensor:
        network = self.pipeline.transformer
        z_in = z.to(self.autoencoder.engine.dtype)
        moments: Tensor = network(z_in, timestep=time.expand(len(z)), class_labels=classes).sample
        return moments[:, : z.shape[1]].float()


def steps_done(how: "DecodeSettings") -> int:
    """Return how many of all steps are done: ceil(strength steps), one at least unless the strength is 0."""
    return math.ceil(how.strength * how.steps - 1e-9)


def autoencoder(settings: "GeneratorSettings", resolution: int, engine: Engine) -> Autoencoder:
    """Load a pipeline's autoencoder and nothing else of it; images of the side `resolution`, in pixels, come and go.

    Raises:
        WmddError: as of `find`; it can't be loaded, or can't divide the images.
    """
    return _autoencoder(find(settings), settings, resolution, engine)


def _autoencoder(model: Model, settings: "GeneratorSettings", resolution: int, engine: Engine) -> Autoencoder:
    size, latent_side = model.image_side(settings, resolution), model.denoiser_config().get("sample_size")
    if isinstance(latent_side, int) and size != latent_side * model.factor:
        say(f"{model.name} is given images of {size} px; it was made for {latent_side * model.factor} (generator.size)")
    with loading(model) as library:
        network = library.AutoencoderKL.from_pretrained(
            model.folder, subfolder="vae", dtype=engine.dtype, use_safetensors=True
        )
    if size >= LARGE:
        network.enable_slicing()
    return Autoencoder(model, engine.place(network.eval()), size, resolution, engine)


def load(
    settings: "GeneratorSettings", resolution: int, engine: Engine,
    classes: list[str], names: list[str], how: "DecodeSettings",
) -> Autoencoder | Guided:  # fmt: skip
    """Load a pipeline, to decode latents as `how` says; with strength 0 its autoencoder alone.

    `classes` are the folder names of the data in the order of their labels, `names` the readable ones.

    Raises:
        WmddError: as of `autoencoder`; the prompt has a placeholder other than {name}, or the classes are not DiT's.
    """
    model = find(settings)
    if steps_done(how) == 0:
        return _autoencoder(model, settings, resolution, engine)
    by_class = model.pipeline == "DiTPipeline"
    conditions = class_indices(model, classes) if by_class else prompts(how, names)
    encoder = _autoencoder(model, settings, resolution, engine)
    pipeline = _pipeline(model, encoder.network, engine)
    return (ClassGuided if by_class else TextGuided)(encoder, pipeline, conditions, how)


def _pipeline(model: Model, network: nn.Module, engine: Engine) -> Any:
    """Load the whole of a pipeline around its autoencoder."""
    own, used = model.parts["scheduler"][1], model.scheduler
    with loading(model) as library:
        kind = getattr(library, model.family.loads)
        accepted = inspect.signature(kind.__init__).parameters
        options = {name: value for name, value in (OFF | dict.fromkeys(model.unused)).items() if name in accepted}
        options |= {"vae": network} | ({} if own == used else {"scheduler": None})
        pipeline = kind.from_pretrained(model.folder, dtype=engine.dtype, use_safetensors=True, **options)
        if own != used:
            say(f"{own} draws for all images of a batch at once; DDIM stands in for it")
            replacement = library.DDIMScheduler.from_pretrained
            pipeline.scheduler = replacement(model.folder, subfolder="scheduler", clip_sample=False)
        pipeline.set_progress_bar_config(disable=True)
    if model.has_checker:
        say("safety checker off: it would blank images")
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            engine.place(part.eval())
    return pipeline
