"""Settings of the engine: where and how precisely networks are computed."""

from typing import Literal

from pydantic import Field

from wmdd.settings.base import Settings

Mode = Literal["auto", "plain", "eager", "compile"]


class EngineSettings(Settings):
    """Where and how precisely to compute; shared by all stages that run a network."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: the GPU where there is one")
    precision: Literal["auto", "fp32", "tf32", "bf16"] = Field(
        "auto",
        description="forward and backward passes; auto: bf16 where the hardware has it. Master copies are fp32. "
        "tf32: on GPUs, products of float32 with 10 bits",
    )
    mode: Mode = Field(
        "auto",
        description="plain: the reference, float32 and step by step; eager: fast; compile: and compiled by torch; "
        "auto: compiled where that is repaid",
    )
    images_at_once: int = Field(
        0, ge=0, description="of a pass whose result does not depend on it; 0: as many as caches or memory hold"
    )
