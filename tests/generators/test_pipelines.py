"""Pipelines of the diffusers library, tiny and with random weights, encode and decode here as they do by themselves."""

import json
import math
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import diffusers
import pytest
import torch
import torch.nn.functional as F
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
from wmdd.base.rng import generator
from wmdd.datasets import imagenet_classes
from wmdd.generators import conditions as conditions_of
from wmdd.generators import pipeline_folder, pipeline_hub
from wmdd.generators import pipelines as ldm
from wmdd.generators.vae import scaled, to_pixels
from wmdd.networks.engine import Engine, plain
from wmdd.settings.latent import DecodeSettings, GeneratorSettings

NAMES = ["ant", "bee", "great white shark"]
SIDE, FACTOR = 16, 2  # of the images, and over that of the latents
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


SCHEDULERS = {
    "PNDMScheduler": {"skip_prk_steps": True},
    "EulerDiscreteScheduler": {},
    "EulerAncestralDiscreteScheduler": {},
    "DPMSolverMultistepScheduler": {"algorithm_type": "sde-dpmsolver++"},
    "HeunDiscreteScheduler": {},
    "DPMSolverSDEScheduler": {"clip_sample": None},  # it does not know of it, and DDIM's default would clip
    "DDIMScheduler": {},
}


# Tiny pipelines


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
    added = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 6 * 4 + 16,
    }
    return StableDiffusionXLPipeline(
        vae=vae(), unet=unet(32, **added), text_encoder=text(), tokenizer=tokenizer(), tokenizer_2=tokenizer(),
        text_encoder_2=text(CLIPTextModelWithProjection),
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


KINDS = {
    "sd": stable_diffusion,
    "xl": stable_diffusion_xl,
    "sd3": stable_diffusion_3,
    "dit": dit,
    "dit3": lambda: dit(3),
}
TEXT = ["sd", "xl", "sd3"]


@pytest.fixture(scope="module")
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
            path = place / {"index": pipeline_folder.INDEX, "scheduler": "scheduler/scheduler_config.json"}.get(
                file, f"{file}/config.json"
            )
            content = json.loads(path.read_text()) | entries
            path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
        return place

    return folder


@pytest.fixture
def closed(monkeypatch):
    """No connection at all."""

    def connect(*_):
        raise AssertionError("asked the network")

    monkeypatch.setattr(socket.socket, "connect", connect)


def settings(folder, **changes) -> GeneratorSettings:
    return GeneratorSettings(kind="ldm", model=str(folder), **changes)


def how(**changes) -> DecodeSettings:
    return DecodeSettings(**{"steps": 4, "guidance": 4.0, "prompt": "a {name}"} | changes)


def loaded(folder, classes=tuple(NAMES), resolution: int = SIDE, engine=None, size: int = 0, **changes):
    chosen = settings(folder, size=size)
    return ldm.load(chosen, resolution, engine or plain(), list(classes), list(classes), how(**changes))


def encoder(folder, resolution: int = SIDE, engine=None, **changes):
    return ldm.autoencoder(settings(folder, **changes), resolution, engine or plain())


def images(count: int = 3, side: int = SIDE) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, side, side), generator=generator("images"), dtype=torch.uint8)


def latents(count: int = 3, channels: int = 4, side: int = SIDE) -> torch.Tensor:
    return torch.randn(count, channels, side // FACTOR, side // FACTOR, generator=generator("latents"))


def draws(*keys: int) -> list[torch.Generator]:
    return [generator("draw", key) for key in keys]


def conditions(found, *labels: int) -> list:
    return [found.conditions[label] for label in labels]


@torch.no_grad()
def moved(found, start: torch.Tensor, labels=(0, 1, 2), keys=(0, 1, 2)) -> torch.Tensor:
    return found.moved(start, conditions(found, *labels), draws(*keys))


def close(a: torch.Tensor, b: torch.Tensor, atol: float = 1e-4) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=atol)


def differ(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether each image differs from the other by more than rounding."""
    return bool(((a.float() - b.float()).flatten(1).abs().amax(1) > 1e-3).all())


# The autoencoder


@torch.no_grad()
def test_latents_are_the_scaled_means_of_the_posterior(made):
    found, theirs = encoder(made("sd")), AutoencoderKL.from_pretrained(made("sd"), subfolder="vae")
    got = found.encode(images())
    assert got.shape == (3, 4, SIDE // FACTOR, SIDE // FACTOR)
    assert got.dtype == torch.float32
    close(got, theirs.encode(scaled(images())).latent_dist.mode() * 0.18215)
    assert got.std() > 0.01
    assert torch.equal(found.encode(images()), got)


@torch.no_grad()
@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"scaling_factor": 2.0}, lambda z: 2 * z),
        ({"scaling_factor": 2.0, "shift_factor": 0.5}, lambda z: 2 * (z - 0.5)),
        (
            {"scaling_factor": 2.0, "latents_mean": [0.1] * 4, "latents_std": [1.0, 2.0, 4.0, 8.0]},
            lambda z: (z - 0.1) * 2 / torch.tensor([1.0, 2.0, 4.0, 8.0])[:, None, None],
        ),
    ],
)
def test_scales_and_shifts_are_the_pipelines_and_undone_in_decoding(copied, config, expected):
    folder = copied(vae=config)
    found, theirs = encoder(folder), AutoencoderKL.from_pretrained(folder, subfolder="vae")
    raw = theirs.encode(scaled(images())).latent_dist.mode()
    close(found.encode(images()), expected(raw))
    decoded = found.decode(expected(raw), torch.arange(3), draws(0, 1, 2)).int()
    assert (decoded - to_pixels(theirs.decode(raw).sample).int()).abs().max() <= 1


@torch.no_grad()
@pytest.mark.parametrize("kind", ["sd", "dit"])
def test_with_strength_0_a_latent_is_decoded_as_it_is(made, kind):
    found = loaded(made(kind), classes=imagenet_classes.wnids()[:3], strength=0)
    assert isinstance(found, ldm.Autoencoder)
    theirs = AutoencoderKL.from_pretrained(made(kind), subfolder="vae")
    got = found.decode(latents(), torch.tensor([0, 1, 2]), draws(0, 1, 2))
    assert got.shape == (3, 3, SIDE, SIDE)
    assert got.dtype == torch.uint8
    assert got.float().std() > 5
    assert torch.equal(got, to_pixels(theirs.decode(latents() / theirs.config.scaling_factor).sample))


@torch.no_grad()
def test_images_are_resized_on_the_way_in_and_out(made):
    found, at_size = encoder(made("sd"), 40, size=SIDE), encoder(made("sd"))
    shrunk = F.interpolate(scaled(images(side=40)), (SIDE, SIDE), mode="bicubic", antialias=True)
    close(found.encode(images(side=40)), at_size.encode(to_pixels(shrunk)), atol=0.02)
    sharp = (images(side=10) > 127).to(torch.uint8) * 255  # bicubic goes beyond white and black
    theirs = AutoencoderKL.from_pretrained(made("sd"), subfolder="vae")
    grown = F.interpolate(scaled(sharp), (SIDE, SIDE), mode="bicubic", antialias=True)
    assert grown.abs().max() > 1.05
    close(found.encode(sharp), theirs.encode(grown.clamp(-1, 1)).latent_dist.mode() * theirs.config.scaling_factor)
    uniform = images(3)[:, :, :1, :1]
    close(found.encode(uniform.expand(3, 3, 40, 40)), at_size.encode(uniform.expand(3, 3, SIDE, SIDE)))
    small = at_size.decode(latents(), torch.arange(3), draws(0, 1, 2))
    large = found.decode(latents(), torch.arange(3), draws(0, 1, 2))
    assert large.shape == (3, 3, 40, 40)
    back = to_pixels(F.interpolate(scaled(small), (40, 40), mode="bicubic", antialias=True))
    assert (large.int() - back.int()).abs().max() <= 2


def test_of_large_images_one_is_encoded_at_a_time(made, monkeypatch):
    alone = encoder(made("sd"), engine=Engine(torch.device("cpu"), torch.float32, "auto"))
    monkeypatch.setattr(ldm, "LARGE", SIDE)
    found = encoder(made("sd"))
    assert (alone.network.use_slicing, found.network.use_slicing) == (False, True)
    close(found.encode(images()), alone.encode(images()))


@pytest.mark.parametrize(
    ("dtype", "remedy"),
    [(torch.bfloat16, "it overflows: set engine.precision: fp32"), (torch.float32, "may be damaged")],
)
def test_latents_and_images_that_are_not_finite_are_refused(made, dtype, remedy):
    found = encoder(made("sd"), engine=plain(dtype))
    for layer, act in (
        (found.network.encoder.conv_out, lambda: found.encode(images())),
        (found.network.decoder.conv_out, lambda: found.decode(latents(), torch.arange(3), draws(0, 1, 2))),
    ):
        act()
        layer.bias.data.fill_(math.inf)
        with pytest.raises(WmddError, match=f"^the (latents|images) of sd's autoencoder are not finite in .*{remedy}"):
            act()


# Under prompts


@torch.no_grad()
def reference(folder, start: torch.Tensor, prompts: list[str], drawn, strength: float, guidance: float, steps: int):
    """Image to image under prompts with DDIM, written out."""
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    under, without = pipe.encode_prompt(prompts, "cpu", 1, True, [""] * len(prompts))
    times = list(range(0, 1000, 1000 // steps))[: round(strength * steps)][::-1]
    alphas = pipe.scheduler.alphas_cumprod
    noise = torch.stack([torch.randn(start.shape[1:], generator=one) for one in drawn])
    z = alphas[times[0] + 1].sqrt() * start + (1 - alphas[times[0] + 1]).sqrt() * noise
    for time in times:
        time = time + 1  # steps_offset
        e_0, e_y = (pipe.unet(z, time, encoder_hidden_states=hidden).sample for hidden in (without, under))
        e = e_0 + guidance * (e_y - e_0)
        x = (z - (1 - alphas[time]).sqrt() * e) / alphas[time].sqrt()
        past = alphas[max(time - 1000 // steps, 0)]
        z = past.sqrt() * x + (1 - past).sqrt() * e
    return z


def test_stable_diffusion_is_image_to_image_from_the_latent(made):
    found = loaded(made("sd"), strength=0.6, steps=5, guidance=3.0)
    assert found.conditions == ["a ant", "a bee", "a great white shark"]
    expected = reference(made("sd"), latents(), found.conditions, draws(0, 1, 2), 0.6, 3.0, 5)
    close(moved(found, latents()), expected)
    decoded = found.decode(latents(), torch.tensor([0, 1, 2]), draws(0, 1, 2))
    assert torch.equal(decoded, found.autoencoder.decode(expected, torch.arange(3), []))


@pytest.mark.parametrize("negative", ["cat", ""])
@pytest.mark.parametrize("kind", TEXT)
def test_images_are_those_of_the_librarys_own_call(made, kind, negative):
    side = 2 * SIDE
    found = loaded(made(kind), resolution=side, strength=0.5, guidance=3.0, negative_prompt=negative)
    kind_of = getattr(diffusers, found.autoencoder.model.family.loads)
    pipe = kind_of.from_pretrained(
        made(kind), **{f"{n}_3": None for n in ("text_encoder", "tokenizer") if kind == "sd3"}
    )
    pipe.set_progress_bar_config(disable=True)
    start = latents(2, found.autoencoder.network.config.latent_channels, side)
    call = {
        "prompt": ["a bee", "a ant"], "negative_prompt": [negative] * 2 if negative else None, "image": start,
        "strength": 0.5, "num_inference_steps": 4, "guidance_scale": 3.0,
    } | ({"height": side, "width": side} if kind == "sd3" else {})  # fmt: skip
    close(moved(found, start, (1, 0), (0, 1)), pipe(**call, generator=draws(0, 1), output_type="latent").images)
    theirs = pipe(**call, generator=draws(0, 1), output_type="pt").images
    got = found.decode(start, torch.tensor([1, 0]), draws(0, 1))
    assert got.shape == (2, 3, side, side)
    assert (got.int() - to_pixels(2 * theirs - 1).int()).abs().max() <= 1
    assert differ(got, found.autoencoder.decode(start, torch.arange(2), []))


@pytest.mark.parametrize(
    ("strength", "steps", "count"),
    [
        (0, 9, 0),
        (1e-4, 9, 1),
        (0.3, 9, 3),
        (0.29, 100, 29),
        (0.07, 100, 7),
        (0.58, 50, 29),
        (0.7, 50, 35),
        (1 / 49, 49, 1),
        (1.0, 9, 9),
    ],
)
def test_the_number_of_steps_is_rounded_up(strength, steps, count):
    assert ldm.steps_done(how(strength=strength, steps=steps)) == count


@pytest.mark.parametrize("kind", [*TEXT, "dit3"])
def test_so_many_steps_are_done(made, kind):
    done, found = [], loaded(made(kind))
    start = latents(1, found.autoencoder.network.config.latent_channels)
    network = found.pipeline.unet if kind in ("sd", "xl") else found.pipeline.transformer
    network.register_forward_hook(lambda *_: done.append(1))
    for steps in (1, 3, 7):
        for count in range(1, steps + 1):
            done.clear()
            moved(replace(found, settings=how(strength=count / steps, steps=steps, guidance=1.0)), start, (0,), (0,))
            assert len(done) == count + (kind == "xl" and steps > 1)  # PNDM's one more


def test_a_text_pipeline_heeds_its_settings(made):
    found = loaded(made("sd"))

    def result(labels=(0, 1, 2), keys=(0, 1, 2), **changes):
        chosen = how(**changes)
        asked = replace(found, settings=chosen, conditions=conditions_of.prompts(chosen, NAMES))
        return moved(asked, latents(), labels, keys)

    usual, followed = result(), result(guidance=1.0)
    close(result(), usual)
    for changes in (
        {"prompt": "no {name}"}, {"negative_prompt": "cat"}, {"guidance": 8.0}, {"strength": 0.5}, {"steps": 5},
        {"labels": (1, 2, 0)}, {"keys": (1, 2, 0)}, {"guidance": 1.0},
    ):  # fmt: skip
        assert differ(result(**changes), usual), changes
    close(result(guidance=1.0, negative_prompt="cat"), followed)


def test_guidance_0_leaves_the_class_out(made):
    found = loaded(made("sd"), guidance=0.0, negative_prompt="cat")
    close(moved(found, latents()), moved(found, latents(), labels=(1, 2, 0)))
    close(moved(found, latents()), moved(loaded(made("sd"), guidance=1.0, prompt="cat"), latents()))


@pytest.mark.parametrize("prompt", ["a picture", "{name}, {name}", "{{}} {name}"])
def test_templates(made, prompt):
    assert conditions_of.prompts(how(prompt=prompt), ["ant"]) == [prompt.replace("{name}", "ant").replace("{{}}", "{}")]


# Under classes


@torch.no_grad()
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_dit_from_pure_noise_is_the_librarys_own_call(copied, guidance):
    """Where all of the latent is drowned in noise, at strength 1 and a signal-to-noise ratio of 0, the two are the same."""
    folder = copied("dit", scheduler={
        "rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction",
    })  # fmt: skip
    classes = [imagenet_classes.wnids()[index] for index in (7, 3, 999)]
    found = loaded(folder, classes, strength=1.0, guidance=guidance)
    assert found.conditions == [7, 3, 999]
    pipe = DiTPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe([7, 999], guidance, draws(0, 1), num_inference_steps=4, output_type="pt").images
    got = found.decode(torch.zeros(2, 4, 8, 8), torch.tensor([0, 2]), draws(0, 1))
    assert (got.int() - to_pixels(2 * theirs - 1).int()).abs().max() <= 1
    assert differ(got, found.decode(torch.zeros(2, 4, 8, 8), torch.tensor([1, 0]), draws(0, 1)))


@torch.no_grad()
def test_dit_begins_at_the_noised_latent(made):
    found = loaded(made("dit3"), strength=0.25, guidance=4.0)  # one step
    scheduler, z = found.pipeline.scheduler, latents(2)
    noised = torch.stack([torch.randn(4, 8, 8, generator=one) for one in draws(5, 6)])
    a = scheduler.alphas_cumprod[1]
    z = a.sqrt() * z + (1 - a).sqrt() * noised
    both = [
        found.pipeline.transformer(z, timestep=torch.ones(2), class_labels=torch.tensor(c)).sample[:, :4]
        for c in ([3, 3], [2, 0])
    ]
    e = both[0] + 4 * (both[1] - both[0])
    close(moved(found, latents(2), (2, 0), (5, 6)), (z - (1 - a).sqrt() * e) / a.sqrt())


class Gaussian(torch.nn.Module):
    """What DiT would say of latents whose numbers are normal, of mean y / 2 and variance 0.09 in class y; and of classes, 3."""

    config = SimpleNamespace(num_embeds_ada_norm=3)
    calls = 0

    def forward(self, z, timestep, class_labels):
        self.calls += 1
        alphas = DDIMScheduler(**BETAS).alphas_cumprod
        low = timestep.long()
        a = torch.lerp(alphas[low], alphas[(low + 1).clamp(max=999)], timestep - low.float())[:, None, None, None]
        mean = class_labels[:, None, None, None] / 2
        noise = (1 - a).sqrt() * (z - a.sqrt() * mean) / (0.09 * a + 1 - a)
        return SimpleNamespace(sample=torch.cat([noise, torch.full_like(z, math.nan)], 1))


@pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")
@pytest.mark.parametrize(
    ("scheduler", "calls", "begin"),
    [
        ("DDIMScheduler", 35, None),
        ("PNDMScheduler", 36, None),
        ("EulerDiscreteScheduler", 35, 15),
        ("EulerAncestralDiscreteScheduler", 35, 15),
        ("HeunDiscreteScheduler", 69, 30),
        ("DPMSolverMultistepScheduler", 35, 15),
    ],
)
def test_a_perfect_dit_leaves_latents_as_they_are_distributed(copied, scheduler, calls, begin):
    folder = copied("dit3", index={"scheduler": ["diffusers", scheduler]})
    copied("dit3", scheduler={"_class_name": scheduler} | SCHEDULERS[scheduler])
    found = loaded(folder, strength=0.7, steps=50, guidance=1.0)
    found.pipeline.transformer = network = Gaussian()
    labels = torch.tensor([0, 1, 2])[:, None, None, None]
    start = labels / 2 + 0.3 * torch.randn(3, 4, 64, 64, generator=generator("latents"))
    got = moved(found, start)
    assert network.calls == calls
    assert getattr(found.pipeline.scheduler, "begin_index", None) == begin
    close(got.mean((1, 2, 3)), torch.tensor([0.0, 0.5, 1.0]), atol=0.02)
    close(got.std((1, 2, 3)), torch.tensor([0.3] * 3), atol=0.05)  # of the steps' size
    assert differ(got, start)


def test_dit_heeds_its_settings(made):
    found = loaded(made("dit3"))

    def result(labels=(0, 1, 2), keys=(0, 1, 2), **changes):
        return moved(replace(found, settings=how(**changes)), latents(), labels, keys)

    usual, without, under = result(), result(guidance=0.0), result(guidance=1.0)
    close(result(), usual)
    for changes in (
        {"labels": (1, 2, 0)}, {"keys": (1, 2, 0)}, {"strength": 0.5}, {"steps": 5}, {"guidance": 0.0}, {"guidance": 1.0},
    ):  # fmt: skip
        assert differ(result(**changes), usual), changes
    close(without, result((1, 2, 0), guidance=0.0))
    close(under, result(guidance=1.0 + 1e-7))
    close(without, result(guidance=1e-7))


def test_a_dit_under_the_hubs_older_names_is_the_same(copied, made):
    folder = copied("dit3", index={"transformer": ["diffusers", "Transformer2DModel"]})
    copied("dit3", transformer={"_class_name": "Transformer2DModel"})
    close(moved(loaded(folder), latents()), moved(loaded(made("dit3")), latents()))


# What both have in common


@pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")
@pytest.mark.parametrize("kind", ["sd", "dit3"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_an_image_depends_on_its_latent_its_class_and_its_draws_alone(copied, kind, scheduler, capsys):
    folder = copied(kind, index={"scheduler": ["diffusers", scheduler]})
    copied(kind, scheduler={"_class_name": scheduler} | SCHEDULERS[scheduler])
    found, labels = loaded(folder), torch.tensor([0, 1, 2])
    stands_in = "DPMSolverSDEScheduler draws for all images of a batch at once; DDIM stands in for it"
    assert (stands_in in capsys.readouterr().err) == (scheduler == "DPMSolverSDEScheduler")
    assert type(found.pipeline.scheduler).__name__ == found.autoencoder.model.scheduler
    assert not found.pipeline.scheduler.config.get("clip_sample")
    together = moved(found, latents())
    assert torch.isfinite(together).all()
    assert torch.equal(moved(found, latents()), together)
    for index in (2, 0):
        alone = moved(found, latents()[index : index + 1], (index,), (index,))
        close(alone, together[index : index + 1], atol=1e-3)
    turned = moved(found, latents().flip(0), (2, 1, 0), (2, 1, 0))
    close(turned.flip(0), together, atol=1e-3)
    assert differ(moved(found, latents(), keys=(3, 4, 5)), together)
    pixels = found.decode(latents(), labels, draws(0, 1, 2))
    assert (pixels[1:2].int() - found.decode(latents()[1:2], labels[1:2], draws(1)).int()).abs().max() <= 1


@pytest.mark.parametrize("kind", ["sd", "dit3"])
def test_the_engine_says_how_precisely(made, kind):
    found = loaded(made(kind), engine=plain(torch.bfloat16))
    networks = [part for part in found.pipeline.components.values() if isinstance(part, torch.nn.Module)]
    assert {p.dtype for network in networks for p in network.parameters()} == {torch.bfloat16}
    assert found.encode(images()).dtype == torch.float32
    exact = loaded(made(kind))
    error = found.encode(images()) - exact.encode(images())
    assert 0 < error.abs().max() < 0.1 * exact.encode(images()).std()
    got, expected = (one.decode(latents(), torch.arange(3), draws(0, 1, 2)).float() for one in (found, exact))
    assert (got - expected).abs().mean() < 0.2 * expected.std()


@pytest.mark.filterwarnings("error")
def test_nothing_is_drawn_on_the_terminal_and_nothing_asked_from_the_net(copied, capfd, closed, monkeypatch):
    monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY", raising=False)
    checker = {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
    found = loaded(copied(index=checker, scheduler={"steps_offset": 0}))  # of which the library warns
    found.decode(latents(), torch.tensor([0, 1, 2]), draws(0, 1, 2))
    assert capfd.readouterr() == ("", "generator: safety checker off: it would blank images\n")
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"


def test_a_pipeline_without_a_safety_checker_says_nothing(made, capfd):
    loaded(made("sd"))
    loaded(made("dit3"))
    assert capfd.readouterr() == ("", "")


def test_a_size_that_it_was_not_made_for_is_mentioned(made, capfd):
    encoder(made("sd"), size=32)
    assert capfd.readouterr().err == "generator: sd is given images of 32 px; it was made for 16 (generator.size)\n"
    pipeline_folder.check(settings(made("sd")), 32)
    encoder(made("sd"))
    assert capfd.readouterr().err == ""


def test_importing_it_takes_no_library_along():
    libraries = ("diffusers", "transformers", "timm")
    code = f"import sys, wmdd.generators.pipelines; sys.exit(any(n in sys.modules for n in {libraries}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# What it is


def test_what_it_is_says_nothing_of_where_it_is(copied):
    model = pipeline_hub.find(settings(copied()))
    assert model.describe() == {
        "pipeline": "StableDiffusionPipeline",
        "model": "my-sd",
        "revision": "",
        "scheduler": "DDIMScheduler",
    }
    sde = pipeline_hub.find(settings(copied(index={"scheduler": ["diffusers", "DPMSolverSDEScheduler"]})))
    assert sde.describe()["scheduler"] == "DDIMScheduler"


def test_the_digest_is_of_all_that_is_loaded(copied, tmp_path):
    folder = copied()

    def digests():
        model = pipeline_hub.find(settings(folder))
        return model.digest(), model.digest("vae")

    first = digests()
    assert first[0] != first[1]
    (folder / "unet/diffusion_pytorch_model.fp16.safetensors").write_bytes(b"not loaded")
    (folder / "README.md").write_text("nor this")
    assert digests() == first
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert pipeline_hub.find(settings(tmp_path / "elsewhere")).digest() == first[0]
    seen = {first[0]}
    for file in (
        "unet/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json",
    ):
        content = bytearray((folder / file).read_bytes())
        content[-3] ^= 1  # a single bit of a single weight
        (folder / file).write_bytes(content)
        assert digests()[1] == first[1]
        seen.add(digests()[0])
    copied(vae={"scaling_factor": 1.0})
    assert digests()[1] != first[1]
    seen.add(digests()[0])
    copied(index={"scheduler": ["diffusers", "PNDMScheduler"]})  # its settings are those of any other
    assert len(seen | {digests()[0]}) == 6


# Mistakes


def refused(act, *arguments, **options) -> str:
    """The one line that a mistake gives."""
    with pytest.raises(WmddError) as error:
        act(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("model", ["./nowhere", "../nowhere", "/nowhere/at/all", "~/nowhere", "nowhere", "a/b/c"])
def test_a_folder_that_is_not_there(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = refused(encoder, model)
    assert said.startswith(f"model: there is no folder {model} (paths are from {tmp_path}); put model_index.json and")
    assert refused(pipeline_folder.check, settings(model), 16) == said


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "sd.safetensors").write_bytes(b"")
    assert "is a file, not a folder with a pipeline's parts" in refused(encoder, tmp_path / "sd.safetensors")


def test_a_folder_without_a_list_of_parts(tmp_path):
    said = refused(encoder, tmp_path)
    assert said.startswith(f"{tmp_path.name} lacks model_index.json")
    (tmp_path / pipeline_folder.INDEX).write_text('{"_class_name": ')
    assert "model_index.json is not whole (" in refused(encoder, tmp_path)
    (tmp_path / pipeline_folder.INDEX).write_text("[]")
    assert "holds no settings but a list" in refused(encoder, tmp_path)


@pytest.mark.parametrize(
    ("kind", "lost", "named"),
    [
        ("sd", "vae", "vae/ with config.json, diffusion_pytorch_model.safetensors"),
        ("sd", "unet", "unet/ with config.json, diffusion_pytorch_model.safetensors"),
        ("sd", "text_encoder/model.safetensors", "text_encoder/model.safetensors"),
        ("sd", "tokenizer", "tokenizer/ with tokenizer.json"),
        ("sd", "scheduler", "scheduler/ with scheduler_config.json"),
        ("sd", "tokenizer/tokenizer.json", "tokenizer/tokenizer.json"),
        ("sd", "unet/config.json", "unet/config.json"),
        ("xl", "text_encoder_2", "text_encoder_2/ with config.json, model.safetensors"),
        ("dit3", "transformer/diffusion_pytorch_model.safetensors", "transformer/diffusion_pytorch_model.safetensors"),
    ],
)
def test_a_part_that_is_lacking_is_named(copied, kind, lost, named):
    folder = copied(kind)
    (shutil.rmtree if (folder / lost).is_dir() else Path.unlink)(folder / lost)
    said = refused(encoder, folder)
    assert said == f"my-{kind} lacks {named}; get it from where the rest of {folder} is from"
    assert refused(pipeline_folder.check, settings(folder), SIDE) == said


def test_weights_outside_of_their_folder_are_not_read(copied):
    folder = copied()
    (folder / "unet/diffusion_pytorch_model.safetensors").rename(folder / "other.safetensors")
    listed = folder / "unet/diffusion_pytorch_model.safetensors.index.json"
    listed.write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))
    assert (
        refused(encoder, folder)
        == f"{listed} names a file that is not in its folder (../other.safetensors); get it again"
    )


def test_a_tokenizer_by_its_older_files(copied, made):
    folder = copied()
    content = json.loads((folder / "tokenizer/tokenizer.json").read_text())["model"]
    (folder / "tokenizer/tokenizer.json").unlink()
    (folder / "tokenizer/vocab.json").write_text(json.dumps(content["vocab"]))
    assert refused(encoder, folder).startswith("my-sd lacks tokenizer/merges.txt; ")
    (folder / "tokenizer/merges.txt").write_text("#version: 0.2\na n\nan t</w>\n")
    close(moved(loaded(folder), latents()), moved(loaded(made("sd")), latents()))


def test_a_part_that_the_list_lacks_is_named(copied):
    assert refused(encoder, copied(index={"unet": None})).startswith("my-sd lacks unet: it is not in ")
    assert refused(encoder, copied(index={"unet": [None, None]})).startswith("my-sd lacks unet: it is not in ")


def test_weights_in_pieces_are_looked_for_one_by_one(copied, made):
    folder = copied()
    network = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    network.save_pretrained(folder / "unet", max_shard_size="20KB")
    pieces = sorted((folder / "unet").glob("*-of-*.safetensors"))
    assert len(pieces) > 1
    close(moved(loaded(folder), latents()), moved(loaded(made("sd")), latents()))
    pieces[1].unlink()
    assert refused(encoder, folder).startswith(f"my-sd lacks unet/{pieces[1].name}; ")


def test_pickled_weights_are_not_read(copied):
    folder = copied()
    (folder / "unet/diffusion_pytorch_model.safetensors").rename(folder / "unet/diffusion_pytorch_model.bin")
    said = refused(encoder, folder)
    assert said == (
        "my-sd has unet/diffusion_pytorch_model.bin but no diffusion_pytorch_model.safetensors; pickled weights can run any "
        "code and are not read: where you trust them, diffusers.StableDiffusionPipeline.from_pretrained("
        f"'{folder}').save_pretrained(FOLDER) makes a folder that can be named in model"
    )


@pytest.mark.parametrize(("library", "file"), [("mine", "mine.py"), ("os", "README.md"), ("diffusers", "diffusers.py")])
def test_code_from_outside_is_not_run(copied, library, file):
    folder = copied(index={"unet": [library, "Network"]})
    (folder / "unet" / file).write_text("raise SystemExit('was run')")
    assert refused(loaded, folder).startswith(
        f"my-sd: unet is a Network of {library}, code from outside that is not run"
    )


@pytest.mark.parametrize("kind", ["FluxPipeline", "DDPMPipeline", "Nothing", ["my_pipeline", "Mine"]])
def test_other_pipelines_are_refused(copied, kind):
    said = refused(encoder, copied(index={"_class_name": kind}))
    assert said.startswith(f"my-sd is a {kind}; of the pipelines of diffusers, supported are StableDiffusionPipeline, ")
    assert said.endswith(", DiTPipeline")


def test_a_unet_for_inpainting_is_refused(copied):
    said = refused(encoder, copied(unet={"in_channels": 9}))
    assert said.startswith("my-sd is no plain StableDiffusionPipeline: its unet takes 9 channels, its vae is an ")
    of_6 = refused(encoder, copied(unet={"in_channels": 6}, vae={"latent_channels": 6}))
    assert "its unet takes 6 channels, its vae is an AutoencoderKL of 6" in of_6  # the library takes such for pictures
    copied(vae={"latent_channels": 4})
    assert "its vae is an AutoencoderTiny of 4" in refused(
        encoder, copied(unet={"in_channels": 4}, index={"vae": ["diffusers", "AutoencoderTiny"]})
    )


@pytest.mark.parametrize("part", ["vae", "unet"])
def test_weights_that_are_damaged_or_of_another_network(copied, part):
    folder = copied()
    path = folder / part / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    assert refused(loaded, folder).startswith("cannot load my-sd (")


@pytest.mark.parametrize(
    ("kind", "size", "step", "near"), [("sd", 17, 2, 16), ("sd", 1, 2, 2), ("dit3", 18, 4, 16), ("sd3", 30, 4, 32)]
)
def test_a_size_that_cannot_be_divided(made, kind, size, step, near):
    expected = f"{kind}: images of {size} px can't be divided by its {step}; set generator.size: {near}"
    assert refused(encoder, made(kind), size=size) == expected
    assert refused(encoder, made(kind), resolution=size) == expected
    assert refused(pipeline_folder.check, settings(made(kind)), size) == expected
    pipeline_folder.check(settings(made(kind), size=near), size)


def test_classes_of_dit(made):
    of_1000, of_3 = (pipeline_hub.find(settings(made(kind))) for kind in ("dit", "dit3"))
    assert conditions_of.class_indices(of_3, NAMES) == [0, 1, 2]
    assert conditions_of.class_indices(of_3, imagenet_classes.wnids()[500:503]) == [0, 1, 2]
    assert conditions_of.class_indices(of_1000, imagenet_classes.wnids()[500:503]) == [500, 501, 502]
    said = refused(loaded, made("dit"), strength=0.5)
    assert said.startswith("dit is of 1000 classes but the data have 3; only of ImageNet's 1,000 are some taken")
    assert refused(loaded, made("dit3"), ["ant"]).startswith("dit3 is of 3 classes but the data have 1; ")


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
def test_a_prompt_that_is_no_template(made, prompt, why):
    said = refused(loaded, made("sd"), prompt=prompt)
    assert said == f"prompt: {prompt!r} is no template ({why}); write {{name}} for the class's name, {{{{ for a brace"


def test_a_guidance_that_text_pipelines_do_not_have(made):
    assert refused(loaded, made("sd"), guidance=0.5).startswith("guidance: 0.5 is not known to text pipelines")


# The hub


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """A cache of the hub, and no way to it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for place in ("huggingface_hub.constants.HF_HUB_CACHE", "diffusers.utils.constants.HF_HUB_CACHE"):
        monkeypatch.setattr(place, str(tmp_path / "cache"), raising=False)
    return tmp_path / "cache"


def test_without_a_network_it_is_said_what_to_put_where(hub):
    said = refused(encoder, "someone/something")
    assert said.startswith("cannot get someone/something from the Hugging Face hub (")
    assert said.endswith(
        "), and there is no folder of that name; put model_index.json and the folders that it names (vae, unet or transformer, "
        "scheduler, text_encoder, tokenizer, ...; weights as .safetensors) into one folder and name that in model"
    )
    pipeline_folder.check(settings("someone/something"), SIDE)  # asks nobody


@pytest.mark.parametrize("revision", ["", "main", COMMIT])
def test_what_was_fetched_before_is_taken_without_asking(hub, made, revision, capfd, monkeypatch, closed):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    place = hub / "models--someone--something"
    shutil.copytree(made("sd"), place / "snapshots" / COMMIT)
    (place / "refs").mkdir()
    (place / "refs/main").write_text(COMMIT)
    found = loaded("someone/something") if not revision else None
    model = pipeline_hub.find(settings("someone/something", revision=revision))
    assert model.describe() | {"model": "someone/something", "revision": COMMIT} == model.describe()
    if found is not None:
        close(moved(found, latents()), moved(loaded(made("sd")), latents()))
    assert capfd.readouterr() == ("", "")
    (place / "snapshots" / COMMIT / "unet/config.json").unlink()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert refused(pipeline_hub.find, settings("someone/something")).startswith(
        "someone/something lacks unet/config.json; "
    )
    assert capfd.readouterr().err == "generator: fetching someone/something from the Hugging Face hub\n"


def test_a_revision_is_of_a_hub_id(made):
    assert refused(encoder, made("sd"), revision="main").startswith("revision is of a hub id, but model: ")


@pytest.fixture
def listed(hub, tmp_path, monkeypatch):
    """A hub that has a list of parts, of a class of pipelines; what is downloaded is up to the test."""

    def serve(pipeline: str, download) -> None:
        index = tmp_path / "snapshots" / COMMIT / pipeline_folder.INDEX
        index.parent.mkdir(parents=True)
        index.write_text(
            json.dumps({part: ["diffusers", part] for part in pipeline_folder.FAMILIES["DiTPipeline"].parts})
        )
        index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": pipeline}))
        monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: str(index))
        monkeypatch.setattr(diffusers.DiffusionPipeline, "download", download)

    return serve


def test_of_a_hub_id_a_pipeline_that_is_not_supported_is_not_downloaded(listed):
    listed("FluxPipeline", lambda *_, **__: pytest.fail("was downloaded"))
    assert refused(encoder, "someone/something").startswith("someone/something is a FluxPipeline; ")


def test_of_a_hub_id_no_pickled_weights_are_downloaded(listed, capfd):
    def download(_, revision, use_safetensors, **__):
        assert (revision, use_safetensors) == (COMMIT, True)
        raise OSError(
            "Could not find the necessary `safetensors` weights in {'transformer/diffusion_pytorch_model.bin'}"
        )

    listed("DiTPipeline", download)
    assert refused(encoder, "someone/something") == (
        "someone/something has no .safetensors on the hub; pickled weights can run any code and are not read: where you trust "
        "them, diffusers.DiTPipeline.from_pretrained('someone/something').save_pretrained(FOLDER) makes a folder that can be "
        "named in model"
    )
    assert capfd.readouterr().err == "generator: fetching someone/something from the Hugging Face hub\n"
