"""A model of any config with random weights, in files that load_pipeline reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import nn

from core.config import load_config
from core.models.controlnet import ControlNet
from core.models.text_encoder import TextEncoder
from core.models.unet import UNet
from core.models.vae import AutoencoderKL
from tests.deterministic_weights import fill_module
from tests.weights.files import Networks, base_state

CONTROL = "canny"


def materialise(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Give a module on the meta device random weights in main memory, ready for inference."""
    module = fill_module(module.to(dtype).to_empty(device="cpu"), "", "bench")
    return module.eval().requires_grad_(False)


def write_random_model(name: str, folder: Path) -> Path:
    """Write the base model and one ControlNet of config ``name``, float16, and return their YAML file."""
    config = load_config(name)
    with torch.device("meta"):
        unet, vae, text = UNet(config.unet), AutoencoderKL(config.vae), TextEncoder(config.text)
        control = ControlNet(config.unet, config.control)
    for net in (unet, vae, text, control):
        materialise(net, torch.float16)
    state = base_state(Networks(config, unet, vae, text, control))
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "base.safetensors")
    save_file(control.state_dict(), folder / f"{CONTROL}.safetensors")
    files = replace(
        config,
        weights="base.safetensors",
        controls={CONTROL: f"{CONTROL}.safetensors"},
        pooled_controls=[],
        masked_controls=[],
    )
    path = folder / f"{name}.yaml"
    OmegaConf.save(OmegaConf.structured(files), path)
    return path
