"""Pipelines from the hub: what was fetched before is taken, the rest is safe or refused in a line."""

import json
import shutil
from pathlib import Path

import diffusers
import pytest

from tests.generators.conftest import SIDE, refused, settings
from wmdd.generators.pipeline_folder import FAMILIES, INDEX, check, model_in
from wmdd.generators.pipeline_hub import find

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """A cache of the hub, and no way to it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for place in ("huggingface_hub.constants.HF_HUB_CACHE", "diffusers.utils.constants.HF_HUB_CACHE"):
        monkeypatch.setattr(place, str(tmp_path / "cache"), raising=False)
    return tmp_path / "cache"


def test_without_a_network_it_is_said_what_to_put_where(hub):
    said = refused(find, settings("someone/something"))
    assert said.startswith("cannot get someone/something from the Hugging Face hub (")
    assert said.endswith(
        "), and there is no folder of that name; put model_index.json and the folders that it names (vae, unet or transformer, "
        "scheduler, text_encoder, tokenizer, ...; weights as .safetensors) into one folder and name that in model"
    )
    check(settings("someone/something"), SIDE)  # asks nobody


@pytest.mark.parametrize("revision", ["", "main", COMMIT])
def test_what_was_fetched_before_is_taken_without_asking(hub, made, revision, capfd, monkeypatch, closed):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    place = hub / "models--someone--something"
    shutil.copytree(made("sd"), place / "snapshots" / COMMIT)
    (place / "refs").mkdir()
    (place / "refs/main").write_text(COMMIT)
    model = find(settings("someone/something", revision=revision))
    assert model.describe() | {"model": "someone/something", "revision": COMMIT} == model.describe()
    assert model.digest() == model_in(settings(made("sd"))).digest()
    assert capfd.readouterr() == ("", "")
    (place / "snapshots" / COMMIT / "unet/config.json").unlink()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert refused(find, settings("someone/something")).startswith("someone/something lacks unet/config.json; ")
    assert capfd.readouterr().err == "generator: fetching someone/something from the Hugging Face hub\n"


@pytest.fixture
def listed(hub, tmp_path, monkeypatch):
    """A hub that has a list of parts, of a class of pipelines; what is downloaded is up to the test."""

    def serve(pipeline: str, download) -> None:
        index = tmp_path / "snapshots" / COMMIT / INDEX
        index.parent.mkdir(parents=True)
        parts = {part: ["diffusers", part] for part in FAMILIES["DiTPipeline"].parts}
        index.write_text(json.dumps(parts | {"_class_name": pipeline}))
        monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: str(index))
        monkeypatch.setattr(diffusers.DiffusionPipeline, "download", download)

    return serve


def test_of_a_hub_id_a_pipeline_that_is_not_supported_is_not_downloaded(listed):
    listed("FluxPipeline", lambda *_, **__: pytest.fail("was downloaded"))
    assert refused(find, settings("someone/something")).startswith("someone/something is a FluxPipeline; ")


def test_of_a_hub_id_no_pickled_weights_are_downloaded(listed, capfd):
    def download(_, revision, use_safetensors, **__):
        assert (revision, use_safetensors) == (COMMIT, True)
        raise OSError(
            "Could not find the necessary `safetensors` weights in {'transformer/diffusion_pytorch_model.bin'}"
        )

    listed("DiTPipeline", download)
    assert refused(find, settings("someone/something")) == (
        "someone/something has no .safetensors on the hub; pickled weights can run any code and are not read: where you trust "
        "them, diffusers.DiTPipeline.from_pretrained('someone/something').save_pretrained(FOLDER) makes a folder that can be "
        "named in model"
    )
    assert capfd.readouterr().err == "generator: fetching someone/something from the Hugging Face hub\n"
