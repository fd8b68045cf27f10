"""What a pipeline is told of each class of the data: a prompt, or DiT's index of the class."""

import string
from typing import TYPE_CHECKING

from wmdd.base.errors import WmddError
from wmdd.datasets import imagenet_classes
from wmdd.generators.pipeline_folder import Model

if TYPE_CHECKING:
    from wmdd.settings.latent import DecodeSettings


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
        reason = f"{{{others[0]}}} is not known" if others[0] != "name" else "{name} alone is known"
    except ValueError as error:
        reason = str(error)
    raise WmddError(
        f"prompt: {how.prompt!r} is no template ({reason}); write {{name}} for the class's name, {{{{ for a brace"
    )


def class_indices(model: Model, classes: list[str]) -> list[int]:
    """Return DiT's index of each class of the data: by WordNet ids of ImageNet's 1,000, else in order if there are as many.

    Raises:
        WmddError: neither is possible.
    """
    count = int(model.config("transformer").get("num_embeds_ada_norm") or 1000)
    indices = imagenet_classes.indices(classes) if count == 1000 else None
    if indices is not None:
        return indices
    if count == len(classes):
        return list(range(count))
    raise WmddError(
        f"{model.name} is of {count} classes but the data have {len(classes)}; only of ImageNet's 1,000 are some taken, by "
        "class folders that are their WordNet ids: use a pipeline with prompts, or a DiT of these classes"
    )
