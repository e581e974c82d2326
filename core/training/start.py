"""Go on from trained files instead of from nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from core.config import ModelConfig
from core.training.base import START, TEXT
from core.training.vae import FITTED
from core.weights.checkpoint import load_base


def unpack(config: ModelConfig, path: Path, vae_run: Path, base_run: Path) -> None:
    """Split an exported base file into what the training stages begin with.

    The autoencoder becomes ``vae_run``'s fitted one, text encoder and UNet become ``base_run``'s start.

    Raises:
        CheckpointMismatch: the file holds no such model; names it and the keys.
    """
    networks = load_base(config, path, device=torch.device("cpu"), dtype=torch.float32)
    for module, target in (
        (networks.vae, vae_run / FITTED),
        (networks.text, base_run / TEXT),
        (networks.unet, base_run / START),
    ):
        target.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: value.contiguous() for key, value in module.state_dict().items()}, target)


def carry(
    old: Mapping[str, Tensor], new: Mapping[str, Tensor], control: Mapping[str, Tensor], run: Path
) -> None:
    """Let ``run`` begin with a ``control`` that was trained on the UNet ``old``, moved to the UNet ``new``.

    What the control has a copy of moves as far as the UNet did; the rest stays.
    """
    moved = {
        key: value.float() + (new[key].float() - old[key].float()) if key in old else value.float()
        for key, value in control.items()
    }
    run.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in moved.items()}, run / START)


def load_start(net: nn.Module, run: Path) -> None:
    """Give ``net`` the weights that ``run`` begins with, where there are any."""
    if (run / START).exists():
        net.load_state_dict({key: value.float() for key, value in load_file(run / START).items()})


def begin_with(path: Path, run: Path) -> None:
    """Let ``run`` begin with the weights of an exported ControlNet, unless it has begun."""
    if not (run / START).exists() and not (run / "checkpoint.pt").exists():
        run.mkdir(parents=True, exist_ok=True)
        save_file(load_file(path), run / START)
