"""Pipelines from the Hugging Face hub, and the diffusers library that fetches and loads them."""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wmdd.base.errors import WmddError, first_sentence
from wmdd.generators.pipeline_folder import (
    BY_HAND,
    INDEX,
    Model,
    how_to_convert,
    is_on_hub,
    listed_model,
    model_in,
    whole_model,
)

if TYPE_CHECKING:
    from wmdd.settings.latent import GeneratorSettings


def find(settings: "GeneratorSettings") -> Model:
    """Return the pipeline that `settings.model` names: a folder, or an id on the hub, from where it is fetched once.

    Raises:
        WmddError: there is none, it can't be had, is of a class that is not supported, or lacks a part.
    """
    return _on_hub(settings.model, settings.revision) if is_on_hub(settings) else model_in(settings)


def _on_hub(model: str, revision: str) -> Model:
    """Return the pipeline of a hub id: weights as safetensors, no code. The hub is not asked for what was fetched before."""
    library = _diffusers()
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    chosen = revision or None
    cached = try_to_load_from_cache(model, INDEX, revision=chosen)
    if isinstance(cached, str):
        with suppress(WmddError):  # not all of it was fetched
            return whole_model(Path(cached).parent, model, Path(cached).parent.name)
    say(f"fetching {model} from the Hugging Face hub")
    try:
        first = Path(hf_hub_download(model, INDEX, revision=chosen)).parent
        pipeline = listed_model(first, model, first.name).pipeline  # before gigabytes
        options = {"revision": first.name, "use_safetensors": True, "safety_checker": None}
        folder = Path(library.DiffusionPipeline.download(model, **options))
    except WmddError:
        raise
    except Exception as error:  # of whichever library asks the network
        if "safetensors" in str(error):
            raise WmddError(f"{model} has no .safetensors on the hub; {how_to_convert(pipeline, model)}") from None
        raise WmddError(
            f"cannot get {model} from the Hugging Face hub ({first_sentence(error)}), and there is no folder of that name; "
            f"{BY_HAND}"
        ) from None
    return whole_model(folder, model, folder.name)


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
def loading(model: Model) -> Iterator[Any]:
    """Yield the diffusers library to load parts of a model with; its warnings are dropped.

    Raises:
        WmddError: a part can't be loaded.
    """
    library = _diffusers()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield library
    except Exception as error:  # of any of its parts
        raise WmddError(
            f"cannot load {model.name} ({first_sentence(error)}); get {model.folder} again, or see whether diffusers "
            f"{library.__version__} is too old for it"
        ) from None


def say(line: str) -> None:
    """Print a line on a generator to the log."""
    print(f"generator: {line}", file=sys.stderr, flush=True)
