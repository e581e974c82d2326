"""An autoencoder (VAE) in a file of its own, or in whatever file holds one."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from core.config import ModelConfig
from core.models.vae import AutoencoderKL
from core.weights.checkpoint import check_plan, plan_sources
from core.weights.convert import CONTROL, TEXT, UNET, VAE, Sources, is_harmless, prefixed
from core.weights.diffusers_names import found_vae_key
from core.weights.filling import fill
from core.weights.formats import TensorFile, open_tensors
from core.weights.parts import Part

DIFFUSERS_FILE = "diffusion_pytorch_model.safetensors"
# What training leaves beside an autoencoder: its discriminator, and averaged copies.
BALLAST = re.compile(r"loss\..*|model_ema\..*")


def load_vae(config: ModelConfig, path: Path, *, device: torch.device, dtype: torch.dtype) -> AutoencoderKL:
    """Load an autoencoder; see ``open_vae`` for what the file may be, and for the errors."""
    with torch.device("meta"):
        vae = AutoencoderKL(config.vae)
    fill(vae, open_vae(config, path), device, dtype)
    return vae


def open_vae(config: ModelConfig, path: Path) -> Part:
    """Find an autoencoder in a file.

    It may lie there alone, with or without the prefix of full checkpoints, in the diffusers layout (a file or
    its folder), or in a full checkpoint.

    Raises:
        CheckpointMismatch: there is none of this model's shape; names the file, what it seems to be and keys.
    """
    file = open_tensors(path / DIFFUSERS_FILE if path.is_dir() else path)
    with torch.device("meta"):
        wanted = AutoencoderKL(config.vae).state_dict()
    plan = plan_sources(wanted, _sources(config, wanted, file), file.tensors)
    used = {key for keys in plan.sources.values() for key in keys}
    others = (UNET, TEXT, CONTROL) if any(key.startswith(VAE) for key in used) else ()
    plan.unexpected = [
        key
        for key in file.tensors
        if not (key in used or is_harmless(key) or BALLAST.fullmatch(key) or key.startswith(others))
    ]
    check_plan(file, config, "an autoencoder (VAE)", [], plan)
    return Part(file, plan.sources, wanted)


def _sources(config: ModelConfig, wanted: dict[str, torch.Tensor], file: TensorFile) -> Sources:
    if any(key.startswith("encoder.down_blocks.") for key in file.tensors):
        return {key: (found_vae_key(key, config.vae, file.tensors),) for key in wanted}
    return prefixed(wanted, VAE if any(key.startswith(VAE) for key in file.tensors) else "")
