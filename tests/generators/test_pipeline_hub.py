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


@pytest.mark.parametrize("revision", ["", COMMIT])
def test_what_was_fetched_before_is_taken_without_asking(hub, made, revision, capfd, monkeypatch, closed):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    place = hub / "models--someone--something"
    shutil.copytree(made("sd"), place / "snapshots" / COMMIT)
    (place / "refs").mkdir()
    (place / "refs/main").write_text(COMMIT)
    model = find(settings("someone/something", revision=revision))
    assert closed == []
    assert model.describe() | {"model": "someone/something", "revision": COMMIT} == model.describe()
    assert model.digest() == model_in(settings(made("sd"))).digest()
    assert capfd.readouterr() == ("", "")
    (place / "snapshots" / COMMIT / "unet/config.json").unlink()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert refused(find, settings("someone/something")).startswith("someone/something lacks unet/config.json; ")
    assert capfd.readouterr().err == "generator: fetching someone/something from the Hugging Face hub\n"


@pytest.mark.parametrize("pipeline", ["FluxPipeline", "DiTPipeline"])
def test_of_a_hub_id_neither_other_pipelines_nor_pickled_weights_are_downloaded(hub, monkeypatch, capfd, pipeline):
    index, offers = hub / COMMIT / INDEX, []
    index.parent.mkdir(parents=True)
    parts = {part: ["diffusers", part] for part in FAMILIES["DiTPipeline"].parts}
    index.write_text(json.dumps(parts | {"_class_name": pipeline}))

    def download(_, revision, use_safetensors, **__):
        offers.append((revision, use_safetensors))
        raise OSError("Could not find the necessary `safetensors` weights in {'transformer/diffusion.bin'}")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: str(index))
    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", download)
    said = refused(find, settings("someone/something"))
    if pipeline == "FluxPipeline":
        assert said.startswith("someone/something is a FluxPipeline; ")
        assert offers == []
    else:
        assert said == (
            "someone/something has no .safetensors on the hub; pickled weights can run any code and are not read: where you "
            "trust them, diffusers.DiTPipeline.from_pretrained('someone/something').save_pretrained(FOLDER) makes a folder "
            "that can be named in model"
        )
        assert offers == [(COMMIT, True)]
    assert capfd.readouterr().err == "generator: fetching someone/something from the Hugging Face hub\n"
