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

import hashlib
import inspect
import json
import math
import os
import re
import string
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmdd.base.errors import WmddError
from wmdd.datasets import imagenet_classes
from wmdd.generators.generator import noise
from wmdd.generators.vae import scaled, to_pixels
from wmdd.networks.engine import Engine

if TYPE_CHECKING:
    from wmdd.settings.latent import DecodeSettings, GeneratorSettings

INDEX = "model_index.json"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
BY_HAND = (
    f"put {INDEX} and the folders that it names (vae, unet or transformer, scheduler, text_encoder, tokenizer, ...; weights as "
    ".safetensors) into one folder and name that in model"
)
LEFT_OUT = {"safety_checker": None, "feature_extractor": None, "image_encoder": None}
OFF = LEFT_OUT | {"requires_safety_checker": False, "add_watermarker": False}  # what a pipeline is told, if it knows it
UNKEYED = ("DPMSolverSDEScheduler",)  # one stream of draws for a whole batch
NULL = 1000  # classes of DiT, and so the index that stands for none
LARGE = 512  # side in pixels from which one image alone keeps a device busy, and many need much memory


@dataclass(frozen=True)
class Family:
    """What is to be known of a class of pipelines.

    Attributes:
        loads: the class that is loaded in its place.
        parts: those that it can't be without; the second denoises.
        channels: of latents that it takes as such; 0: any.
        rounding: added to the number of steps so that the share passed on gives this number: the pipeline takes its floor
            (1/2), or its ceiling (-1/2).
    """

    loads: str
    parts: tuple[str, ...]
    channels: int = 0
    rounding: float = 0.5


_TEXT, _TEXT_2 = ("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2")
_SD = Family("StableDiffusionImg2ImgPipeline", ("vae", "unet", "scheduler", *_TEXT), 4)
_XL = Family("StableDiffusionXLImg2ImgPipeline", ("vae", "unet", "scheduler", *_TEXT_2), 4)
_SD3 = Family("StableDiffusion3Img2ImgPipeline", ("vae", "transformer", "scheduler", *_TEXT, *_TEXT_2), 0, -0.5)
FAMILIES = {
    "StableDiffusionPipeline": _SD,
    "StableDiffusionImg2ImgPipeline": _SD,
    "StableDiffusionXLPipeline": _XL,
    "StableDiffusionXLImg2ImgPipeline": _XL,
    "StableDiffusion3Pipeline": _SD3,
    "StableDiffusion3Img2ImgPipeline": _SD3,
    "DiTPipeline": Family("DiTPipeline", ("vae", "transformer", "scheduler")),
}


@dataclass(frozen=True)
class Model:
    """A pipeline on disk, of which nothing is loaded.

    Attributes:
        folder: where it is.
        name: the folder's, or the hub id.
        revision: commit of a hub id.
        pipeline: its class.
        parts: library and class of each part that is used.
        unused: names of those that are not there on purpose.
        checked: whether it comes with a safety checker.
    """

    folder: Path
    name: str
    revision: str
    pipeline: str
    parts: dict[str, tuple[str, str]]
    unused: tuple[str, ...] = ()
    checked: bool = False

    @property
    def family(self) -> Family:
        """What is known of its class."""
        return FAMILIES[self.pipeline]

    @property
    def scheduler(self) -> str:
        """The class of the scheduler that is used."""
        own = self.parts["scheduler"][1]
        return "DDIMScheduler" if own in UNKEYED else own

    def config(self, part: str) -> dict[str, Any]:
        """Return the settings of a network among the parts."""
        return _json(self.folder / part / "config.json")

    def files(self, part: str) -> list[Path]:
        """Return the files that a part is loaded from.

        Raises:
            WmddError: one is missing, the weights are only there in a form that can run code, or the part brings code along.
        """
        library, kind = self.parts[part]
        place = self.folder / part
        if library not in ("diffusers", "transformers") or (place / f"{library}.py").exists():
            raise WmddError(
                f"{self.name}: {part} is a {kind} of {library}, code from outside that is not run; take another"
            )
        if part == "scheduler":
            found = [place / "scheduler_config.json"]
        elif part.startswith("tokenizer"):
            found = _vocabulary(place)
        else:
            stem = "diffusion_pytorch_model" if library == "diffusers" else "model"
            found = [place / "config.json", *self._weights(place, stem)]
        lacking = [path.name for path in found if not path.is_file()]
        if lacking:
            where = f"{part}/{lacking[0]}" if place.is_dir() else f"{part}/ with {', '.join(lacking)}"
            raise WmddError(f"{self.name} lacks {where}; get it from where the rest of {self.folder} is from")
        return found

    def _weights(self, place: Path, stem: str) -> list[Path]:
        whole, listed = place / f"{stem}.safetensors", place / f"{stem}.safetensors.index.json"
        if whole.is_file() or not place.is_dir():
            return [whole]
        if listed.is_file():
            names = set(_json(listed).get("weight_map", {}).values())
            if outside := [name for name in names if Path(str(name)).name != name]:
                raise WmddError(f"{listed} names a file that is not in its folder ({outside[0]}); get it again")
            return [listed, *sorted(place / name for name in names)]
        pickled = sorted(path.name for end in ("bin", "pt", "pth", "ckpt") for path in place.glob(f"*.{end}"))
        if not pickled:
            return [whole]
        raise WmddError(
            f"{self.name} has {place.name}/{pickled[0]} but no {whole.name}; {_converted(self.pipeline, str(self.folder))}"
        )

    def digest(self, *parts: str) -> str:
        """Return the SHA-256 over classes and files, name and content, of these parts (none named: of all)."""
        total = hashlib.sha256()
        for part in sorted(parts or self.parts):
            total.update(f"{' '.join(self.parts[part])}\n".encode())
            for path in self.files(part):
                with path.open("rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
                total.update(f"{part}/{path.name} {found}\n".encode())
        return total.hexdigest()

    def describe(self) -> dict[str, str]:
        """Return what a result's provenance says of it."""
        return {
            "pipeline": self.pipeline, "model": self.name, "revision": self.revision, "scheduler": self.scheduler,
        }  # fmt: skip


def _converted(pipeline: str, model: str) -> str:
    """Return how weights are got that can be read."""
    return (
        f"pickled weights can run any code and are not read: where you trust them, diffusers.{pipeline}.from_pretrained("
        f"{model!r}).save_pretrained(FOLDER) makes a folder that can be named in model"
    )


def _vocabulary(place: Path) -> list[Path]:
    """Return the files of a tokenizer; of one without a vocabulary the library makes one of three words, and says nothing."""
    whole, words = place / "tokenizer.json", [place / "vocab.json", place / "merges.txt"]
    found = {path for end in ("json", "txt", "model") for path in place.glob(f"*.{end}")}
    if whole in found or any(path.suffix == ".model" for path in found):
        return sorted(found)
    return sorted(found | set(words if words[0] in found or words[1] in found else [whole]))


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
        if isinstance(content, dict):
            return content
        reason = f"holds no settings but a {type(content).__name__}"
    except (OSError, ValueError) as error:
        reason = f"is not whole ({error.strerror if isinstance(error, OSError) else error})"
    raise WmddError(f"{path} {reason}; get it again")


def check(settings: "GeneratorSettings", resolution: int) -> None:
    """Refuse what can be known to be wrong before anything runs; nothing is downloaded or loaded.

    Raises:
        WmddError: as of `find` and `autoencoder`, for a folder that is there.
    """
    if Path(settings.model).expanduser().exists() or not HUB_ID.fullmatch(settings.model):
        _side(find(settings), settings, resolution)


def find(settings: "GeneratorSettings") -> Model:
    """Return the pipeline that `settings.model` names: a folder, or an id on the hub, from where it is fetched once.

    Raises:
        WmddError: there is none, it can't be had, is of a class that is not supported, or lacks a part.
    """
    path = Path(settings.model).expanduser()
    if path.is_dir():
        if settings.revision:
            raise WmddError(f"revision is of a hub id, but model: {settings.model} is a folder; leave one of them out")
        return _model(path, path.resolve().name, "")
    if path.exists():
        raise WmddError(
            f"model: {settings.model} is a file, not a folder with a pipeline's parts; make one of it by the from_single_file "
            "and save_pretrained of diffusers"
        )
    if not HUB_ID.fullmatch(settings.model):
        raise WmddError(f"model: there is no folder {settings.model} (paths are from {Path.cwd()}); {BY_HAND}")
    return _from_hub(settings.model, settings.revision)


def _model(folder: Path, name: str, revision: str) -> Model:
    """Read what a folder has, and check that it is whole."""
    model = _listed(folder, name, revision)
    for part in model.parts:
        model.files(part)
    taken, given = (
        model.config(model.family.parts[1]).get("in_channels", 4),
        model.config("vae").get("latent_channels", 4),
    )
    if model.parts["vae"][1] != "AutoencoderKL" or taken != given or model.family.channels not in (0, given):
        raise WmddError(
            f"{name} is no plain {model.pipeline}: its {model.family.parts[1]} takes {taken} channels, its vae is an "
            f"{model.parts['vae'][1]} of {given}; take a pipeline whose latents are those of its AutoencoderKL"
        )
    return model


def _listed(folder: Path, name: str, revision: str) -> Model:
    """Read the list of parts; what is in them is not looked at."""
    if not (folder / INDEX).is_file():
        raise WmddError(f"{name} lacks {INDEX}, so {folder} is not a folder of a pipeline; {BY_HAND}")
    index = _json(folder / INDEX)
    pipeline = index.get("_class_name")
    if not isinstance(pipeline, str) or pipeline not in FAMILIES:
        raise WmddError(f"{name} is a {pipeline}; of the pipelines of diffusers, supported are {', '.join(FAMILIES)}")
    parts = {part: pair for part, pair in index.items() if isinstance(pair, list) and len(pair) == 2}
    used = {part: (*pair,) for part, pair in parts.items() if pair[0] and part not in LEFT_OUT}
    lacking = [part for part in FAMILIES[pipeline].parts if part not in used]
    if lacking:
        raise WmddError(f"{name} lacks {lacking[0]}: it is not in {folder / INDEX}; take a whole {pipeline}")
    unused = tuple(part for part in parts if part not in used)
    checked = bool(parts.get("safety_checker", [None])[0])
    return Model(folder, name, revision, pipeline, used, unused, checked)


def _from_hub(model: str, revision: str) -> Model:
    """Return the pipeline of a hub id: weights as safetensors, no code. What was fetched before is taken without a question."""
    library = _diffusers()
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    chosen = revision or None
    cached = try_to_load_from_cache(model, INDEX, revision=chosen)
    if isinstance(cached, str):
        with suppress(WmddError):  # not all of it was fetched
            return _model(Path(cached).parent, model, Path(cached).parent.name)
    _say(f"fetching {model} from the Hugging Face hub")
    try:
        first = Path(hf_hub_download(model, INDEX, revision=chosen)).parent
        pipeline = _listed(first, model, first.name).pipeline  # before gigabytes
        options = {"revision": first.name, "use_safetensors": True, "safety_checker": None}
        folder = Path(library.DiffusionPipeline.download(model, **options))
    except WmddError:
        raise
    except Exception as error:  # of whichever library asks the network
        if "safetensors" in str(error):
            raise WmddError(f"{model} has no .safetensors on the hub; {_converted(pipeline, model)}") from None
        raise WmddError(
            f"cannot get {model} from the Hugging Face hub ({_line(error)}), and there is no folder of that name; {BY_HAND}"
        ) from None
    return _model(folder, model, folder.name)


def _diffusers() -> Any:
    """Return the library, which takes seconds, without its bars, its warnings and its telemetry."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import diffusers
    import huggingface_hub
    import transformers

    for library in (diffusers, transformers, huggingface_hub):
        library.utils.logging.set_verbosity_error()
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    huggingface_hub.utils.disable_progress_bars()
    return diffusers


@contextmanager
def _loading(model: Model) -> Iterator[Any]:
    """Yield the library; what it says while it loads a model is one line, or nothing."""
    library = _diffusers()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield library
    except Exception as error:  # of any of its parts
        raise WmddError(
            f"cannot load {model.name} ({_line(error)}); get {model.folder} again, or see whether diffusers "
            f"{library.__version__} is too old for it"
        ) from None


def _side(model: Model, settings: "GeneratorSettings", resolution: int) -> int:
    """Return the side of the images that a pipeline gets.

    Raises:
        WmddError: its autoencoder, or what divides latents into patches, can't divide it.
    """
    size = settings.size or resolution
    step = _factor(model) * int(model.config(model.family.parts[1]).get("patch_size") or 1)
    if size % step:
        near = max(step, step * round(size / step))
        raise WmddError(f"{model.name}: images of {size} px can't be divided by its {step}; set generator.size: {near}")
    return size


def _factor(model: Model) -> int:
    """Return the side of an image over that of its latent."""
    return int(2 ** (len(model.config("vae").get("block_out_channels", [0])) - 1))


@dataclass(frozen=True)
class Autoencoder:
    """A pipeline's autoencoder alone: a latent is decoded as it is.

    Attributes:
        model: the pipeline.
        network: its vae, on the device.
        size: side of the images that it takes.
        resolution: side of those that come and go; bicubic with antialiasing between the two.
        engine: where and how precisely it runs; its parameters are of the engine's type, too.
    """

    model: Model
    network: Any
    size: int
    resolution: int
    engine: Engine

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
    """A pipeline: a latent is moved through its diffusion, and then decoded.

    Attributes:
        autoencoder: of the pipeline.
        pipeline: the whole of it, on the device.
        conditions: one for each class of the data: prompts, or classes of DiT.
        settings: of the decoding.
    """

    autoencoder: Autoencoder
    pipeline: Any
    conditions: list[Any]
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
            found = self._guided(scheduler.scale_model_input(z, time), time, classes)
            z = scheduler.step(found, time, z, **keyed).prev_sample
        return z

    def _guided(self, z: Tensor, time: Tensor, classes: Tensor) -> Tensor:
        """Return what the transformer says of z [B, c, h, w]: e_0 + g (e_y - e_0), with e_0 of no class."""
        guidance, none = self.settings.guidance, torch.full_like(classes, self.none)
        if guidance in (0, 1):
            return self._predicted(z, time, classes if guidance else none)
        under, without = self._predicted(torch.cat([z, z]), time, torch.cat([classes, none])).chunk(2)
        return without + guidance * (under - without)

    @property
    def none(self) -> int:
        """The index that stands for no class: 1000 of ImageNet's."""
        return int(self.pipeline.transformer.config.num_embeds_ada_norm)

    def _predicted(self, z: Tensor, time: Tensor, classes: Tensor) -> Tensor:
        network = self.pipeline.transformer
        moments: Tensor = network(
            z.to(self.autoencoder.engine.dtype), timestep=time.expand(len(z)), class_labels=classes
        ).sample
        return moments[:, : z.shape[1]].float()


def steps_done(how: "DecodeSettings") -> int:
    """Return how many of all steps are done: ceil(strength steps), one at least unless the strength is 0."""
    return math.ceil(how.strength * how.steps - 1e-9)


def autoencoder(settings: "GeneratorSettings", resolution: int, engine: Engine) -> Autoencoder:
    """Load a pipeline's autoencoder and nothing else of it.

    Args:
        settings: of the generator.
        resolution: side in pixels of the images that come and go.
        engine: where and how precisely it runs.

    Raises:
        WmddError: as of `find`; it can't be loaded, or can't divide the images.
    """
    return _autoencoder(find(settings), settings, resolution, engine)


def _autoencoder(model: Model, settings: "GeneratorSettings", resolution: int, engine: Engine) -> Autoencoder:
    size, trained = _side(model, settings, resolution), model.config(model.family.parts[1]).get("sample_size")
    if isinstance(trained, int) and size != trained * _factor(model):
        _say(f"{model.name} is given images of {size} px; it was made for {trained * _factor(model)} (generator.size)")
    with _loading(model) as library:
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
    """Load a pipeline, to decode latents; with strength 0 its autoencoder alone.

    Args:
        settings: of the generator.
        resolution: side in pixels of the images that come and go.
        engine: where and how precisely it runs.
        classes: folder names of the data, in the order of their labels.
        names: readable names of the classes.
        how: settings of the decoding.

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
    with _loading(model) as library:
        kind = getattr(library, model.family.loads)
        known = inspect.signature(kind.__init__).parameters
        given: dict[str, Any] = {name: value for name, value in OFF.items() if name in known}
        given |= {part: None for part in model.unused if part in known} | {"vae": network}
        replaced = model.parts["scheduler"][1] != model.scheduler
        given |= {"scheduler": None} if replaced else {}
        pipeline = kind.from_pretrained(model.folder, dtype=engine.dtype, use_safetensors=True, **given)
        if replaced:
            _say(f"{model.parts['scheduler'][1]} draws for all images of a batch at once; DDIM stands in for it")
            pipeline.scheduler = library.DDIMScheduler.from_pretrained(
                model.folder, subfolder="scheduler", clip_sample=False
            )
        pipeline.set_progress_bar_config(disable=True)
    if model.checked:
        _say("safety checker off: it would blank images")
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            engine.place(part.eval())
    return pipeline


def prompts(how: "DecodeSettings", names: list[str]) -> list[str]:
    """Return the prompt of each class, `how.prompt` with its name for {name}.

    Raises:
        WmddError: another placeholder, a brace alone, or a guidance that text pipelines don't have.
    """
    if 0 < how.guidance < 1:
        raise WmddError(
            f"guidance: {how.guidance:g} is not known to text pipelines; set it to 0, to 1, or to more than 1"
        )
    try:
        parsed = [parts for parts in string.Formatter().parse(how.prompt) if parts[1] is not None]
        others = [field for _, field, form, conversion in parsed if field != "name" or form or conversion]
        if not others:
            return [how.prompt.format(name=name) for name in names]
        said = f"{{{others[0]}}} is not known" if others[0] != "name" else "{name} alone is known"
    except ValueError as error:
        said = str(error)
    raise WmddError(
        f"prompt: {how.prompt!r} is no template ({said}); write {{name}} for the class's name, {{{{ for a brace"
    )


def class_indices(model: Model, classes: list[str]) -> list[int]:
    """Return DiT's index of each class of the data: by WordNet ids of ImageNet's 1,000, else in order if there are as many.

    Raises:
        WmddError: neither is possible.
    """
    count = int(model.config("transformer").get("num_embeds_ada_norm") or NULL)
    found = imagenet_classes.indices(classes) if count == NULL else None
    if found is not None:
        return found
    if count == len(classes):
        return list(range(count))
    raise WmddError(
        f"{model.name} is of {count} classes but the data have {len(classes)}; only of ImageNet's 1,000 are some taken, by "
        "class folders that are their WordNet ids: use a pipeline with prompts, or a DiT of these classes"
    )


def _say(line: str) -> None:
    print(f"generator: {line}", file=sys.stderr, flush=True)


def _line(error: Exception) -> str:
    """Return the first sentence of what went wrong."""
    return " ".join(str(error).split()).split(". ")[0][:200] or type(error).__name__
