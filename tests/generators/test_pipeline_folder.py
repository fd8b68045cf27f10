"""The folder of a pipeline: what it is, what it lacks, and what in it is never loaded."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.generators.conftest import SIDE, refused, settings
from wmdd.generators.pipeline_folder import INDEX, check, model_in

WEIGHTS = "diffusion_pytorch_model.safetensors"


def said_of(folder, side: int = SIDE, **changes) -> str:
    """The one line that a check of a folder gives."""
    return refused(check, settings(folder, **changes), side)


def test_importing_it_takes_no_library_along():
    code = "import sys, wmdd.generators.pipeline_folder as _; assert not {'torch', 'diffusers'} & {*sys.modules}\n"
    code += "import wmdd.generators.pipelines; assert not {'diffusers', 'transformers', 'timm'} & {*sys.modules}"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_it_is_says_nothing_of_where_it_is(copied):
    expected = {"pipeline": "StableDiffusionPipeline", "model": "my-sd", "revision": "", "scheduler": "DDIMScheduler"}
    assert model_in(settings(copied())).describe() == expected
    sde = copied(index={"scheduler": ["diffusers", "DPMSolverSDEScheduler"]})
    assert model_in(settings(sde)).describe() == expected


def test_the_digest_is_of_all_that_is_loaded(copied, tmp_path):
    folder = copied()

    def digests():
        model = model_in(settings(folder))
        return model.digest(), model.digest("vae")

    whole, vae = digests()
    assert whole != vae
    (folder / "unet/diffusion_pytorch_model.fp16.safetensors").write_bytes(b"not loaded")
    (folder / "README.md").write_text("nor this")
    assert digests() == (whole, vae)
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert model_in(settings(tmp_path / "elsewhere")).digest() == whole
    seen = {whole}
    for file in (f"unet/{WEIGHTS}", "text_encoder/model.safetensors", "tokenizer/tokenizer.json"):
        content = bytearray((folder / file).read_bytes())
        content[-3] ^= 1  # a single bit of a single weight
        (folder / file).write_bytes(content)
        assert digests()[1] == vae
        seen.add(digests()[0])
    copied(vae={"scaling_factor": 1.0})
    assert digests()[1] != vae
    seen.add(digests()[0])
    copied(index={"scheduler": ["diffusers", "PNDMScheduler"]})  # its settings are those of any other
    assert len(seen | {digests()[0]}) == 6


# Refused


@pytest.mark.parametrize("model", ["./nowhere", "~/nowhere", "nowhere", "a/b/c"])
def test_a_folder_that_is_not_there(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = f"model: there is no folder {model} (paths are from {tmp_path}); put model_index.json and"
    assert said_of(model).startswith(expected)


def test_what_is_no_folder_of_a_pipeline(made, tmp_path):
    assert said_of(tmp_path).startswith(f"{tmp_path.name} lacks model_index.json")
    (tmp_path / INDEX).write_text('{"_class_name": ')
    assert "model_index.json is not whole (" in said_of(tmp_path)
    (tmp_path / INDEX).write_text("[]")
    assert "holds no settings but a list" in said_of(tmp_path)
    assert "is a file, not a folder with a pipeline's parts" in said_of(tmp_path / INDEX)
    assert said_of(made("sd"), revision="main").startswith("revision is of a hub id, but model: ")


@pytest.mark.parametrize(
    ("kind", "lost", "named"),
    [
        ("sd", "unet", f"unet/ with config.json, {WEIGHTS}"),
        ("sd", "text_encoder/model.safetensors", "text_encoder/model.safetensors"),
        ("sd", "tokenizer", "tokenizer/ with tokenizer.json"),
        ("sd", "scheduler", "scheduler/ with scheduler_config.json"),
        ("sd", "tokenizer/tokenizer.json", "tokenizer/tokenizer.json"),
        ("sd", "unet/config.json", "unet/config.json"),
        ("xl", "text_encoder_2", "text_encoder_2/ with config.json, model.safetensors"),
        ("dit3", f"transformer/{WEIGHTS}", f"transformer/{WEIGHTS}"),
    ],
)
def test_a_part_that_is_lacking_is_named(copied, kind, lost, named):
    folder = copied(kind)
    (shutil.rmtree if (folder / lost).is_dir() else Path.unlink)(folder / lost)
    assert said_of(folder) == f"my-{kind} lacks {named}; get it from where the rest of {folder} is from"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"index": {"unet": None}}, "my-sd lacks unet: it is not in "),
        ({"index": {"unet": [None, None]}}, "my-sd lacks unet: it is not in "),
        ({"unet": {"in_channels": 9}}, "my-sd is no plain StableDiffusionPipeline: its unet takes 9 channels, its vae is an "),
        (  # six channels are pictures to the library
            {"unet": {"in_channels": 6}, "vae": {"latent_channels": 6}},
            "my-sd is no plain StableDiffusionPipeline: its unet takes 6 channels, its vae is an AutoencoderKL of 6",
        ),
        (
            {"index": {"vae": ["diffusers", "AutoencoderTiny"]}},
            "my-sd is no plain StableDiffusionPipeline: its unet takes 4 channels, its vae is an AutoencoderTiny of 4",
        ),
        *(
            ({"index": {"_class_name": kind}}, f"my-sd is a {kind}; of the pipelines of diffusers, supported are Stable")
            for kind in ("FluxPipeline", "Nothing", ["my_pipeline", "Mine"])
        ),
    ],
)  # fmt: skip
def test_another_kind_of_pipeline(copied, changes, said):
    assert said_of(copied(**changes)).startswith(said)


def test_weights_outside_of_their_folder_are_not_read(copied):
    folder = copied()
    (folder / "unet" / WEIGHTS).rename(folder / "other.safetensors")
    shards = folder / "unet" / f"{WEIGHTS}.index.json"
    shards.write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))
    expected = f"{shards} names a file that is not in its folder (../other.safetensors); get it again"
    assert said_of(folder) == expected


def test_pickled_weights_are_not_read(copied):
    folder = copied()
    (folder / "unet" / WEIGHTS).rename(folder / "unet/diffusion_pytorch_model.bin")
    assert said_of(folder) == (
        "my-sd has unet/diffusion_pytorch_model.bin but no diffusion_pytorch_model.safetensors; pickled weights can run any "
        "code and are not read: where you trust them, diffusers.StableDiffusionPipeline.from_pretrained("
        f"'{folder}').save_pretrained(FOLDER) makes a folder that can be named in model"
    )


@pytest.mark.parametrize(("library", "file"), [("mine", "mine.py"), ("os", "README.md"), ("diffusers", "diffusers.py")])
def test_code_from_outside_is_not_run(copied, library, file):
    folder = copied(index={"unet": [library, "Network"]})
    (folder / "unet" / file).write_text("raise SystemExit('was run')")
    assert said_of(folder).startswith(f"my-sd: unet is a Network of {library}, code from outside that is not run")


@pytest.mark.parametrize(
    ("kind", "size", "step", "near"), [("sd", 17, 2, 16), ("sd", 1, 2, 2), ("dit3", 18, 4, 16), ("sd3", 30, 4, 32)]
)
def test_a_size_that_cannot_be_divided(made, kind, size, step, near):
    expected = f"{kind}: images of {size} px can't be divided by its {step}; set generator.size: {near}"
    assert said_of(made(kind), size=size) == said_of(made(kind), size) == expected
    check(settings(made(kind), size=near), size)
