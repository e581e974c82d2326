"""A model small enough for any test: all classes are the real ones, every weight follows from its name.

The zero convolutions get values too: as they are initialised, a ControlNet would change nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from core.config import (
    ControlNetConfig,
    ModelConfig,
    ScheduleConfig,
    TextConfig,
    UNetConfig,
    VAEConfig,
)
from core.models.controlnet import ControlNet
from core.models.text_encoder import TextEncoder
from core.models.unet import UNet
from core.models.vae import AutoencoderKL
from core.pipeline import ControlNetPipeline
from core.request import ControlUnit, Request, Result
from core.weights.checkpoint import BaseNetworks
from tests.deterministic_weights import fill_module


def tiny_config(parameterization: str = "eps") -> ModelConfig:
    return ModelConfig(
        name="tiny",
        title="Tiny test model",
        resolution=64,
        weights="tiny",
        controls={"canny": "tiny_canny", "depth": "tiny_depth", "seg": "tiny_seg"},
        unet=UNetConfig(
            model_channels=32,
            num_res_blocks=1,
            channel_mult=[1, 2],
            attention_resolutions=[2],
            num_heads=2,
            context_dim=32,
        ),
        control=ControlNetConfig(hint_widths=[4, 4, 8, 8]),
        vae=VAEConfig(ch=4, ch_mult=[1, 1, 1, 2], num_res_blocks=1, norm_groups=4),
        text=TextConfig(width=32, heads=2, layers=1),
        schedule=ScheduleConfig(parameterization=parameterization),
    )


def tiny_networks(config: ModelConfig) -> BaseNetworks:
    unet = UNet(config.unet).eval().requires_grad_(False)
    vae = AutoencoderKL(config.vae).eval().requires_grad_(False)
    text = TextEncoder(config.text).eval().requires_grad_(False)
    fill_module(unet, "model.diffusion_model.", "tiny")
    fill_module(vae, "first_stage_model.", "tiny")
    fill_module(text, "cond_stage_model.model.", "tiny")
    return BaseNetworks(unet, vae, text)


def tiny_control(config: ModelConfig, name: str) -> ControlNet:
    net = ControlNet(config.unet, config.control).eval().requires_grad_(False)
    fill_module(net, "control_model.", name)
    return net


def tiny_pipeline(
    parameterization: str = "eps", *, low_vram: bool = False, max_controls: int = 2
) -> ControlNetPipeline:
    config = tiny_config(parameterization)
    return ControlNetPipeline(
        config,
        tiny_networks(config),
        lambda name: tiny_control(config, name),
        low_vram=low_vram,
        max_controls=max_controls,
    )


def hint(seed: int = 0, height: int = 64, width: int = 64) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def latents(batch: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def tiny_request(seed: int = 0, **changes: Any) -> Request:
    base = Request(
        "a red car", (ControlUnit("canny", hint(seed)),), "blurry", steps=3, cfg_scale=3.0, seed=seed
    )
    return replace(base, **changes)


def same_pictures(a: Result, b: Result) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a.images, b.images, strict=True))
