"""Tiny pipelines of the diffusers library with random weights, and no network."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from transformers.utils import logging

from wmdd.base.errors import WmddError
from wmdd.generators.pipeline_folder import INDEX
from wmdd.settings.latent import DecodeSettings, GeneratorSettings

NAMES = ["ant", "bee", "great white shark"]
SIDE, FACTOR = 16, 2  # of the images, and over that of the latents
PLACES = {"index": INDEX, "scheduler": "scheduler/scheduler_config.json"}
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def vae(channels: int = 4, **options) -> AutoencoderKL:
    network = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=channels,
        block_out_channels=(8, 8), norm_num_groups=4, sample_size=SIDE, **options,
    )  # fmt: skip
    with torch.no_grad():
        network.decoder.conv_out.weight.mul_(2)  # so that images are not all grey
        network.encoder.conv_out.weight.mul_(5)
    return network


def unet(text: int, **options) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=SIDE // FACTOR, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4, cross_attention_dim=text, **options,
    )  # fmt: skip


def text(kind: type = CLIPTextModel, width: int = 16) -> CLIPTextModel:
    return kind(
        CLIPTextConfig(
            vocab_size=len(vocabulary()), hidden_size=width, intermediate_size=width, num_hidden_layers=2, projection_dim=16,
            num_attention_heads=2, max_position_embeddings=12, bos_token_id=0, eos_token_id=1, pad_token_id=1,
        )
    )  # fmt: skip


def vocabulary() -> dict[str, int]:
    letters = [f"{letter}{end}" for letter in "abcdefghijklmnopqrstuvwxyz" for end in ("", "</w>")]
    return {token: index for index, token in enumerate(["<|startoftext|>", "<|endoftext|>", *letters, "an", "ant</w>"])}


def tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer(vocab=vocabulary(), merges=[("a", "n"), ("an", "t</w>")], model_max_length=12)


def stable_diffusion() -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        vae=vae(), unet=unet(16), text_encoder=text(), tokenizer=tokenizer(), safety_checker=None, feature_extractor=None,
        scheduler=DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        requires_safety_checker=False,
    )  # fmt: skip


def stable_diffusion_xl() -> StableDiffusionXLPipeline:
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4}
    return StableDiffusionXLPipeline(
        vae=vae(), unet=unet(32, **added, projection_class_embeddings_input_dim=6 * 4 + 16), text_encoder=text(),
        tokenizer=tokenizer(), text_encoder_2=text(CLIPTextModelWithProjection), tokenizer_2=tokenizer(),
        scheduler=PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1),
    )  # fmt: skip


def stable_diffusion_3() -> StableDiffusion3Pipeline:
    transformer = SD3Transformer2DModel(
        sample_size=SIDE // FACTOR, patch_size=2, in_channels=6, out_channels=6, num_layers=1, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=32, caption_projection_dim=16, pooled_projection_dim=32,
        pos_embed_max_size=8,
    )  # fmt: skip
    return StableDiffusion3Pipeline(
        transformer=transformer, vae=vae(6, shift_factor=0.1),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        text_encoder=text(CLIPTextModelWithProjection), tokenizer=tokenizer(), text_encoder_3=None, tokenizer_3=None,
        text_encoder_2=text(CLIPTextModelWithProjection), tokenizer_2=tokenizer(),
    )  # fmt: skip


def dit(classes: int = 1000) -> DiTPipeline:
    transformer = DiTTransformer2DModel(
        sample_size=SIDE // FACTOR, patch_size=2, in_channels=4, out_channels=8, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, num_embeds_ada_norm=classes, attention_bias=True,
    )  # fmt: skip
    return DiTPipeline(
        transformer=transformer, vae=vae(), scheduler=DDIMScheduler(**BETAS, clip_sample=False, steps_offset=1)
    )


TEXT = {"sd": stable_diffusion, "xl": stable_diffusion_xl, "sd3": stable_diffusion_3}
KINDS = TEXT | {"dit": dit, "dit3": lambda: dit(3)}


@pytest.fixture(scope="package")
def made(tmp_path_factory):
    """The folder of each kind of pipeline, which nobody may change."""
    root = tmp_path_factory.mktemp("pipelines")

    def folder(kind: str) -> Path:
        if not (root / kind).exists():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                logging.disable_progress_bar()  # of saving, in whichever test comes first
                KINDS[kind]().save_pretrained(root / kind)
                logging.enable_progress_bar()
        return root / kind

    return folder


@pytest.fixture
def copied(made, tmp_path):
    """A folder that may be changed: of settings files some entries are set, and None takes them out."""

    def folder(kind: str = "sd", **changes: dict) -> Path:
        place = tmp_path / f"my-{kind}"
        if not place.exists():
            shutil.copytree(made(kind), place)
        for file, entries in changes.items():
            path = place / PLACES.get(file, f"{file}/config.json")
            content = json.loads(path.read_text()) | entries
            path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
        return place

    return folder


def settings(folder, **changes) -> GeneratorSettings:
    return GeneratorSettings(kind="ldm", model=str(folder), **changes)


def how(**changes) -> DecodeSettings:
    return DecodeSettings(**{"steps": 4, "guidance": 4.0, "prompt": "a {name}"} | changes)


def refused(act, *arguments, **options) -> str:
    """The one line that a mistake gives."""
    with pytest.raises(WmddError) as error:
        act(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)
