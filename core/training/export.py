"""Write trained networks as float16 safetensors: published prefixes, the config in the metadata."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import Tensor

from core.config import ModelConfig, with_variant
from core.loading import Source
from core.models.text_encoder import TextEncoder
from core.models.unet import UNet
from core.models.vae import AutoencoderKL
from core.models.variants import AnyControlNet
from core.training.control import trained_over
from core.training.controlled import ControlledUNet
from core.weights import convert
from core.weights.formats import OVER, open_tensors
from core.weights.writing import write_state

MODEL = "model.yaml"


def _half(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        prefix + key: (t.half() if t.is_floating_point() else t).detach().cpu().contiguous()
        for key, t in tensors.items()
    }


def _save(tensors: dict[str, Tensor], path: Path, config: ModelConfig, over: Path | None = None) -> None:
    metadata = {"format": "controlnet-suite", "config": OmegaConf.to_yaml(config)}
    if over is not None:
        metadata[OVER] = over.name
    write_state(path, tensors, metadata)


def export_base(config: ModelConfig, unet: UNet, vae: AutoencoderKL, text: TextEncoder, path: Path) -> None:
    """Write one base file: UNet, autoencoder and text encoder."""
    tensors = _half(unet.state_dict(), "model.diffusion_model.")
    tensors |= _half(vae.state_dict(), "first_stage_model.")
    tensors |= _half(text.state_dict(), "cond_stage_model.model.")
    _save(tensors, path, config)


def export_control(config: ModelConfig, net: AnyControlNet, path: Path, over: Path | None = None) -> None:
    """Write one control-only file, without prefix.

    With ``over`` it holds what is its own, see ``trained_over``, and what else differs from that file, which
    has to lie beside it. So it stays what it is when that file's own parts learn more.
    """
    tensors = _half(net.state_dict(), "")
    if over is not None:
        below = load_file(over)
        tensors = {
            key: value
            for key, value in tensors.items()
            if trained_over(net, key) or not torch.equal(value, below[key])
        }
    _save(tensors, path, config, over)


def export_trained(source: Source, model: ControlledUNet, name: str, folder: Path, variant: str) -> Path:
    """Write a trained control, and a model.yaml with which the page and ``load_pipeline`` find it.

    NAME.safetensors holds the control alone; where the base's decoder was trained too, it holds that base and
    the control. Return the path of the YAML file.
    """
    path = folder / f"{name}.safetensors"
    config = copy.deepcopy(source.config)
    unlocked = any(p.requires_grad for p in model.unet.parameters())
    config.weights = path.name if unlocked else str(source.base.resolve())
    config.controls = {**({} if unlocked else config.controls), name: path.name}
    if unlocked:
        _save(_with_base(source.base, model), path, with_variant(config, variant))
    else:
        export_control(with_variant(source.config, variant), model.net, path)
    partial = folder / "model.partial"
    OmegaConf.save(OmegaConf.structured(config), partial)
    os.replace(partial, folder / MODEL)
    return folder / MODEL


def _with_base(base: Path, model: ControlledUNet) -> dict[str, Tensor]:
    """Return the base's tensors under their published names, with the trained decoder, and the control."""
    file = open_tensors(base)
    tensors = _half(
        {key: file.read(key).clone() for key in file.tensors if not key.startswith(convert.CONTROL)}, ""
    )
    own = {convert.UNET + key: value for key, value in model.unet.state_dict().items()}
    trained = {convert.UNET + name for name, p in model.unet.named_parameters() if p.requires_grad}
    tensors |= _half({key: own[key] for key in trained}, "")
    return tensors | _half(model.net.state_dict(), convert.CONTROL)


def load_average(module: torch.nn.Module, checkpoint: Path, prefix: str = "") -> None:
    """Load the moving average of a training run's checkpoint into ``module``, without the keys' ``prefix``.

    Raises:
        FileNotFoundError: with what to run first.
    """
    if not checkpoint.exists():
        raise FileNotFoundError(f"{checkpoint} is not there. Train that network first.")
    average = torch.load(checkpoint, map_location="cpu", weights_only=True)["ema"]
    module.load_state_dict({key.removeprefix(prefix): value for key, value in average.items()})
