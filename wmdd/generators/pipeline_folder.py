"""The folder of a latent diffusion pipeline of the diffusers library: which parts it has, and whether they are whole.

Only files are looked at. No library is imported, nothing is loaded or downloaded, so the workflow can check a folder first.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wmdd.artifacts.atomic_files import sha256_of
from wmdd.base.errors import WmddError

if TYPE_CHECKING:
    from wmdd.settings.latent import GeneratorSettings

INDEX = "model_index.json"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
BY_HAND = (
    f"put {INDEX} and the folders that it names (vae, unet or transformer, scheduler, text_encoder, tokenizer, ...; weights as "
    ".safetensors) into one folder and name that in model"
)
LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder")  # parts that are never loaded
UNKEYED = ("DPMSolverSDEScheduler",)  # schedulers that draw for a whole batch from one stream


@dataclass(frozen=True)
class Family:
    """What pipelines of one class have in common."""

    loads: str  # the class that is loaded in its place
    parts: tuple[str, ...]  # that it needs; the second is the denoising network
    channels: int = 0  # of the inputs that it takes for latents; 0: any number
    rounding: float = 0.5  # added to the steps before they are passed on as a share; pipelines round down, or (-1/2) up


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
    """A pipeline on disk, of which nothing is loaded."""

    folder: Path
    name: str  # the folder's, or the hub id
    revision: str  # commit of a hub id
    pipeline: str  # its class
    parts: dict[str, tuple[str, str]]  # library and class of each part that is used
    unused: tuple[str, ...] = ()  # names of the parts that are not
    has_checker: bool = False  # whether it comes with a safety checker

    @property
    def family(self) -> Family:
        """What its class has in common with others."""
        return FAMILIES[self.pipeline]

    @property
    def scheduler(self) -> str:
        """The class of the scheduler that is used."""
        own = self.parts["scheduler"][1]
        return "DDIMScheduler" if own in UNKEYED else own

    @property
    def factor(self) -> int:
        """The side of an image over that of its latent."""
        return int(2 ** (len(self.config("vae").get("block_out_channels", [0])) - 1))

    def config(self, part: str) -> dict[str, Any]:
        """Return the settings of a network among the parts."""
        return _settings_file(self.folder / part / "config.json")

    def denoiser_config(self) -> dict[str, Any]:
        """Return the settings of the denoising network."""
        return self.config(self.family.parts[1])

    def image_side(self, settings: "GeneratorSettings", resolution: int) -> int:
        """Return the side in pixels of the images that the pipeline gets, for data of a resolution.

        Raises:
            WmddError: its autoencoder, or what divides latents into patches, can't divide it.
        """
        size = settings.size or resolution
        step = self.factor * int(self.denoiser_config().get("patch_size") or 1)
        if size % step:
            near = max(step, step * round(size / step))
            raise WmddError(
                f"{self.name}: images of {size} px can't be divided by its {step}; set generator.size: {near}"
            )
        return size

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
            files = [place / "scheduler_config.json"]
        elif part.startswith("tokenizer"):
            files = _vocabulary(place)
        else:
            stem = "diffusion_pytorch_model" if library == "diffusers" else "model"
            files = [place / "config.json", *self._weights(place, stem)]
        missing = [path.name for path in files if not path.is_file()]
        if missing:
            where = f"{part}/{missing[0]}" if place.is_dir() else f"{part}/ with {', '.join(missing)}"
            raise WmddError(f"{self.name} lacks {where}; get it from where the rest of {self.folder} is from")
        return files

    def _weights(self, place: Path, stem: str) -> list[Path]:
        whole, shard_list = place / f"{stem}.safetensors", place / f"{stem}.safetensors.index.json"
        if whole.is_file() or not place.is_dir():
            return [whole]
        if shard_list.is_file():
            names = set(_settings_file(shard_list).get("weight_map", {}).values())
            if outside := [name for name in names if Path(str(name)).name != name]:
                raise WmddError(f"{shard_list} names a file that is not in its folder ({outside[0]}); get it again")
            return [shard_list, *sorted(place / name for name in names)]
        pickled = sorted(path.name for end in ("bin", "pt", "pth", "ckpt") for path in place.glob(f"*.{end}"))
        if not pickled:
            return [whole]
        remedy = how_to_convert(self.pipeline, str(self.folder))
        raise WmddError(f"{self.name} has {place.name}/{pickled[0]} but no {whole.name}; {remedy}")

    def digest(self, *parts: str) -> str:
        """Return the SHA-256 over classes and files, name and content, of these parts (none named: of all)."""
        total = hashlib.sha256()
        for part in sorted(parts or self.parts):
            total.update(f"{' '.join(self.parts[part])}\n".encode())
            for path in self.files(part):
                total.update(f"{part}/{path.name} {sha256_of(path)}\n".encode())
        return total.hexdigest()

    def describe(self) -> dict[str, str]:
        """Return what a result's provenance says of it."""
        return {
            "pipeline": self.pipeline, "model": self.name, "revision": self.revision, "scheduler": self.scheduler,
        }  # fmt: skip


def check(settings: "GeneratorSettings", resolution: int) -> None:
    """Refuse a model for images of a side, in pixels, before anything runs, as far as its folder tells; a hub is not asked.

    Raises:
        WmddError: as of `model_in` and `Model.image_side`.
    """
    if not is_on_hub(settings):
        model_in(settings).image_side(settings, resolution)


def is_on_hub(settings: "GeneratorSettings") -> bool:
    """Return whether `settings.model` is an id on the hub, as no file or folder has this name."""
    return HUB_ID.fullmatch(settings.model) is not None and not Path(settings.model).expanduser().exists()


def model_in(settings: "GeneratorSettings") -> Model:
    """Return the pipeline in the folder `settings.model`.

    Raises:
        WmddError: there is no such folder, or as of `whole_model`.
    """
    path = Path(settings.model).expanduser()
    if path.is_dir():
        if settings.revision:
            raise WmddError(f"revision is of a hub id, but model: {settings.model} is a folder; leave one of them out")
        return whole_model(path, path.resolve().name, "")
    if path.exists():
        raise WmddError(
            f"model: {settings.model} is a file, not a folder with a pipeline's parts; make one of it by the from_single_file "
            "and save_pretrained of diffusers"
        )
    raise WmddError(f"model: there is no folder {settings.model} (paths are from {Path.cwd()}); {BY_HAND}")


def whole_model(folder: Path, name: str, revision: str) -> Model:
    """Return the pipeline in a folder, of which every file that will be loaded is there.

    Raises:
        WmddError: as of `listed_model` and `Model.files`, or its latents are not those of its autoencoder.
    """
    model = listed_model(folder, name, revision)
    for part in model.parts:
        model.files(part)
    taken, given = model.denoiser_config().get("in_channels", 4), model.config("vae").get("latent_channels", 4)
    if model.parts["vae"][1] != "AutoencoderKL" or taken != given or model.family.channels not in (0, given):
        raise WmddError(
            f"{name} is no plain {model.pipeline}: its {model.family.parts[1]} takes {taken} channels, its vae is an "
            f"{model.parts['vae'][1]} of {given}; take a pipeline whose latents are those of its AutoencoderKL"
        )
    return model


def listed_model(folder: Path, name: str, revision: str) -> Model:
    """Return the pipeline in a folder by its list of parts alone.

    Raises:
        WmddError: there is no such list, it lacks a part, or the pipeline is of a class that is not supported.
    """
    if not (folder / INDEX).is_file():
        raise WmddError(f"{name} lacks {INDEX}, so {folder} is not a folder of a pipeline; {BY_HAND}")
    index = _settings_file(folder / INDEX)
    pipeline = index.get("_class_name")
    if not isinstance(pipeline, str) or pipeline not in FAMILIES:
        raise WmddError(f"{name} is a {pipeline}; of the pipelines of diffusers, supported are {', '.join(FAMILIES)}")
    parts = {part: pair for part, pair in index.items() if isinstance(pair, list) and len(pair) == 2}
    used = {part: (*pair,) for part, pair in parts.items() if pair[0] and part not in LEFT_OUT}
    missing = [part for part in FAMILIES[pipeline].parts if part not in used]
    if missing:
        raise WmddError(f"{name} lacks {missing[0]}: it is not in {folder / INDEX}; take a whole {pipeline}")
    unused = tuple(part for part in parts if part not in used)
    has_checker = bool(parts.get("safety_checker", [None])[0])
    return Model(folder, name, revision, pipeline, used, unused, has_checker)


def how_to_convert(pipeline: str, model: str) -> str:
    """Return the remedy for pickled weights."""
    return (
        f"pickled weights can run any code and are not read: where you trust them, diffusers.{pipeline}.from_pretrained("
        f"{model!r}).save_pretrained(FOLDER) makes a folder that can be named in model"
    )


def _vocabulary(place: Path) -> list[Path]:
    """Return the files of a tokenizer; without a vocabulary the library would silently make one of three words."""
    whole, pair = place / "tokenizer.json", {place / "vocab.json", place / "merges.txt"}
    present = {path for end in ("json", "txt", "model") for path in place.glob(f"*.{end}")}
    if whole in present or any(path.suffix == ".model" for path in present):
        return sorted(present)
    return sorted(present | (pair if present & pair else {whole}))


def _settings_file(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return content
        reason = f"holds no settings but a {type(content).__name__}"
    except (OSError, ValueError) as error:
        reason = f"is not whole ({error.strerror if isinstance(error, OSError) else error})"
    raise WmddError(f"{path} {reason}; get it again")
