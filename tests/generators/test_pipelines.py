"""Pipelines of the diffusers library, tiny and with random weights, encode and decode here as they do by themselves."""

import json
import math
import os
from dataclasses import replace
from types import SimpleNamespace

import diffusers
import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, UNet2DConditionModel

from tests.generators.conftest import BETAS, FACTOR, NAMES, SIDE, how, refused, settings
from wmdd.base.errors import WmddError
from wmdd.base.rng import generator
from wmdd.datasets import imagenet_classes
from wmdd.generators import pipelines as ldm
from wmdd.generators.conditions import prompts
from wmdd.generators.vae import scaled, to_pixels
from wmdd.networks.engine import Engine, plain

SCHEDULERS = {
    "PNDMScheduler": {"skip_prk_steps": True},
    "EulerAncestralDiscreteScheduler": {},
    "DPMSolverMultistepScheduler": {"algorithm_type": "sde-dpmsolver++"},
    "HeunDiscreteScheduler": {},
    "DPMSolverSDEScheduler": {"clip_sample": None},  # it does not know of it, and DDIM's default would clip
    "DDIMScheduler": {},
}


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


@torch.no_grad()
def moved(found, start: torch.Tensor, labels=(0, 1, 2), keys=(0, 1, 2)) -> torch.Tensor:
    return found.moved(start, [found.conditions[label] for label in labels], draws(*keys))


def close(a: torch.Tensor, b: torch.Tensor, atol: float = 1e-4) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=atol)


def differ(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether each image differs from the other by more than rounding."""
    return bool(((a.float() - b.float()).flatten(1).abs().amax(1) > 1e-3).all())


@torch.no_grad()
@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, lambda z: 0.18215 * z),
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
    got = found.encode(images())
    assert (got.shape, got.dtype) == ((3, 4, SIDE // FACTOR, SIDE // FACTOR), torch.float32)
    close(got, expected(raw))
    assert torch.equal(found.encode(images()), got)
    decoded = found.decode(expected(raw), torch.arange(3), draws(0, 1, 2)).int()
    assert (decoded - to_pixels(theirs.decode(raw).sample).int()).abs().max() <= 1


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


@pytest.mark.parametrize(("kind", "negative"), [("sd", "cat"), ("xl", ""), ("sd3", "")])
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


def test_the_number_of_steps_is_rounded_up_and_with_none_the_autoencoder_is_all_there_is(made):
    cases = {(0, 9): 0, (1e-4, 9): 1, (0.3, 9): 3, (0.29, 100): 29, (0.07, 100): 7, (0.58, 50): 29, (1 / 49, 49): 1}
    assert {(share, n): ldm.steps_done(how(strength=share, steps=n)) for share, n in cases} == cases
    assert isinstance(loaded(made("dit3"), strength=0), ldm.Autoencoder)


@pytest.mark.parametrize("kind", ["sd", "xl", "sd3", "dit3"])
def test_so_many_steps_are_done(made, kind):
    done, found = [], loaded(made(kind))
    start = latents(1, found.autoencoder.network.config.latent_channels)
    network = found.pipeline.unet if kind in ("sd", "xl") else found.pipeline.transformer
    network.register_forward_hook(lambda *_: done.append(1))
    for steps, count in (1, 1), (3, 1), (3, 2), (7, 6), (7, 7):
        done.clear()
        moved(replace(found, settings=how(strength=count / steps, steps=steps, guidance=1.0)), start, (0,), (0,))
        assert len(done) == count + (kind == "xl" and steps > 1)  # PNDM's one more


@pytest.mark.parametrize("kind", ["sd", "dit3"])
def test_a_pipeline_heeds_its_settings(made, kind):
    found = loaded(made(kind))

    def result(labels=(0, 1, 2), keys=(0, 1, 2), **changes):
        chosen = how(**changes)
        conditions = prompts(chosen, NAMES) if kind == "sd" else found.conditions
        return moved(replace(found, settings=chosen, conditions=conditions), latents(), labels, keys)

    usual, turned, without, under = result(), (1, 2, 0), result(guidance=0.0), result(guidance=1.0)
    close(result(), usual)
    differences = [
        {"labels": turned}, {"keys": turned}, {"strength": 0.5}, {"steps": 5}, {"guidance": 0.0}, {"guidance": 1.0},
    ]  # fmt: skip
    of_text = [{"prompt": "no {name}"}, {"negative_prompt": "cat"}, {"guidance": 8.0}]
    for changes in differences + (of_text if kind == "sd" else []):
        assert differ(result(**changes), usual), changes
    close(without, result(turned, guidance=0.0))  # the class is left out
    if kind == "sd":
        close(under, result(guidance=1.0, negative_prompt="cat"))
        close(result(guidance=0.0, negative_prompt="cat"), result(guidance=1.0, prompt="cat"))
    else:
        close(under, result(guidance=1.0 + 1e-7))
        close(without, result(guidance=1e-7))


@torch.no_grad()
def test_dit_from_pure_noise_is_the_librarys_own_call(copied):
    """Where all of the latent is drowned in noise, at strength 1 and a signal-to-noise ratio of 0, the two are the same."""
    folder = copied("dit", scheduler={
        "rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction",
    })  # fmt: skip
    classes = [imagenet_classes.wnids()[index] for index in (7, 3, 999)]
    found = loaded(folder, classes, strength=1.0, guidance=4.0)
    assert found.conditions == [7, 3, 999]
    pipe = DiTPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe([7, 999], 4.0, draws(0, 1), num_inference_steps=4, output_type="pt").images
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
    without, under = (
        found.pipeline.transformer(z, timestep=torch.ones(2), class_labels=torch.tensor(classes)).sample[:, :4]
        for classes in ([3, 3], [2, 0])
    )
    e = without + 4 * (under - without)
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


def test_a_dit_under_the_hubs_older_names_is_the_same(copied, made):
    folder = copied("dit3", index={"transformer": ["diffusers", "Transformer2DModel"]})
    copied("dit3", transformer={"_class_name": "Transformer2DModel"})
    close(moved(loaded(folder), latents()), moved(loaded(made("dit3")), latents()))


@pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")
@pytest.mark.parametrize(("kind", "scheduler"), [*(("dit3", s) for s in SCHEDULERS), ("sd", "PNDMScheduler")])
def test_an_image_depends_on_its_latent_its_class_and_its_draws_alone(copied, kind, scheduler, capsys):
    folder = copied(kind, index={"scheduler": ["diffusers", scheduler]})
    copied(kind, scheduler={"_class_name": scheduler} | SCHEDULERS[scheduler])
    found = loaded(folder)
    stands_in = "DPMSolverSDEScheduler draws for all images of a batch at once; DDIM stands in for it"
    assert (stands_in in capsys.readouterr().err) == (scheduler == "DPMSolverSDEScheduler")
    assert type(found.pipeline.scheduler).__name__ == found.autoencoder.model.scheduler
    assert not found.pipeline.scheduler.config.get("clip_sample")
    together = moved(found, latents())
    assert torch.isfinite(together).all()
    close(moved(found, latents()[2:], (2,), (2,)), together[2:], atol=1e-3)
    turned = moved(found, latents().flip(0), (2, 1, 0), (2, 1, 0))
    close(turned.flip(0), together, atol=1e-3)
    assert differ(moved(found, latents(), keys=(3, 4, 5)), together)


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
    assert closed == []
    assert capfd.readouterr() == ("", "generator: safety checker off: it would blank images\n")
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"


def test_only_a_size_that_it_was_not_made_for_is_mentioned(made, capfd):
    loaded(made("sd"))
    loaded(made("dit3"))
    assert capfd.readouterr() == ("", "")
    encoder(made("sd"), size=32)
    assert capfd.readouterr().err == "generator: sd is given images of 32 px; it was made for 16 (generator.size)\n"


def test_a_tokenizer_by_its_older_files(copied, made):
    folder = copied()
    content = json.loads((folder / "tokenizer/tokenizer.json").read_text())["model"]
    (folder / "tokenizer/tokenizer.json").unlink()
    (folder / "tokenizer/vocab.json").write_text(json.dumps(content["vocab"]))
    assert refused(encoder, folder).startswith("my-sd lacks tokenizer/merges.txt; ")
    (folder / "tokenizer/merges.txt").write_text("#version: 0.2\na n\nan t</w>\n")
    close(moved(loaded(folder), latents()), moved(loaded(made("sd")), latents()))


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


@pytest.mark.parametrize("part", ["vae", "unet"])
def test_weights_that_are_damaged(copied, part):
    folder = copied()
    path = folder / part / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    assert refused(loaded, folder).startswith("cannot load my-sd (")
