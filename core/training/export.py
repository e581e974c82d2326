"""Write trained networks as float16 safetensors: published prefixes, the config in the metadata."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor

from core.config import ModelConfig
from core.models.text_encoder import TextEncoder
from core.models.unet import UNet
from core.models.vae import AutoencoderKL
from core.models.variants import AnyControlNet
from core.weights.formats import OVER


def _half(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        prefix + key: (t.half() if t.is_floating_point() else t).detach().contiguous()
        for key, t in tensors.items()
    }


def _save(tensors: dict[str, Tensor], path: Path, config: ModelConfig, over: Path | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    metadata = {"format": "controlnet-suite", "config": OmegaConf.to_yaml(config)}
    if over is not None:
        metadata[OVER] = over.name
    save_file(tensors, partial, metadata=metadata)
    os.replace(partial, path)


def export_base(config: ModelConfig, unet: UNet, vae: AutoencoderKL, text: TextEncoder, path: Path) -> None:
    """Write one base file: UNet, autoencoder and text encoder."""
    tensors = _half(unet.state_dict(), "model.diffusion_model.")
    tensors |= _half(vae.state_dict(), "first_stage_model.")
    tensors |= _half(text.state_dict(), "cond_stage_model.model.")
    _save(tensors, path, config)


def export_control(
    config: ModelConfig, net: AnyControlNet, path: Path, over: Path | None = None
) -> None:
    """Write one control-only file, without prefix.

    With ``over`` it holds only what differs from that file, which has to lie beside it.
    """
    tensors = _half(net.state_dict(), "")
    if over is not None:
        below = load_file(over)
        tensors = {key: value for key, value in tensors.items() if not torch.equal(value, below[key])}
    _save(tensors, path, config, over)


def load_average(module: torch.nn.Module, checkpoint: Path, prefix: str = "") -> None:
    """Load the moving average of a training run's checkpoint into ``module``, without the keys' ``prefix``.

    Raises:
        FileNotFoundError: with what to run first.
    """
    if not checkpoint.exists():
        raise FileNotFoundError(f"{checkpoint} is not there. Train that network first.")
    average = torch.load(checkpoint, map_location="cpu", weights_only=True)["ema"]
    module.load_state_dict({key.removeprefix(prefix): value for key, value in average.items()})
