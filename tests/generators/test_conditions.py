"""Prompts from templates, and DiT's indices of classes."""

import pytest

from tests.generators.conftest import NAMES, how, refused, settings
from wmdd.datasets import imagenet_classes
from wmdd.generators.conditions import class_indices, prompts
from wmdd.generators.pipeline_folder import model_in


@pytest.mark.parametrize("prompt", ["a picture", "{name}, {name}", "{{}} {name}"])
def test_templates(prompt):
    assert prompts(how(prompt=prompt), ["ant"]) == [prompt.replace("{name}", "ant").replace("{{}}", "{}")]


@pytest.mark.parametrize(
    ("prompt", "why"),
    [
        ("{label}", "{label} is not known"),
        ("{name.upper}", "{name.upper} is not known"),
        ("a {}", "{} is not known"),
        ("{name:>{width}}", "{name} alone is known"),
        ("{name!r}", "{name} alone is known"),
        ("a {name", "expected '}' before end of string"),
        ("a }", "Single '}' encountered in format string"),
    ],
)
def test_a_prompt_that_is_no_template(prompt, why):
    said = refused(prompts, how(prompt=prompt), NAMES)
    assert said == f"prompt: {prompt!r} is no template ({why}); write {{name}} for the class's name, {{{{ for a brace"


def test_a_guidance_that_text_pipelines_do_not_have():
    assert refused(prompts, how(guidance=0.5), NAMES).startswith("guidance: 0.5 is not known to text pipelines")


def test_classes_of_dit(made):
    of_1000, of_3 = (model_in(settings(made(kind))) for kind in ("dit", "dit3"))
    some = imagenet_classes.wnids()[500:503]
    assert class_indices(of_3, NAMES) == class_indices(of_3, some) == [0, 1, 2]
    assert class_indices(of_1000, some) == [500, 501, 502]
    said = refused(class_indices, of_1000, NAMES)
    assert said.startswith("dit is of 1000 classes but the data have 3; only of ImageNet's 1,000 are some taken")
    assert refused(class_indices, of_3, ["ant"]).startswith("dit3 is of 3 classes but the data have 1; ")
