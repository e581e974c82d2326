"""Read the stored outputs of the original networks (tests/golden/networks) and compare with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from core.config import ControlNetConfig, UNetConfig, VAEConfig
from tests.deterministic_weights import fill_tensors

FOLDER = Path(__file__).parent / "golden" / "networks"
MANIFESTS = Path(__file__).parent / "manifests"

# The original against itself, on two thread settings, differs by up to this; ours may by five times as much.
NOISE = {"control": 6e-6, "eps": 2e-6, "vae": 7e-6, "clip": 3e-6}
MARGIN = 5

# The oracle's scales in guess mode: residual i of any model, however many it has.
GUESS_SCALES = [0.825 ** (12 - i) for i in range(13)]

SMALL_UNET = UNetConfig(
    model_channels=32,
    num_res_blocks=2,
    channel_mult=[1, 2, 4, 4],
    attention_resolutions=[4, 2, 1],
    num_heads=4,
    context_dim=64,
)
SMALL21_UNET = UNetConfig(
    model_channels=32,
    num_res_blocks=1,
    channel_mult=[1, 2, 4, 4],
    attention_resolutions=[4, 2, 1],
    num_head_channels=8,
    context_dim=64,
    use_linear_in_transformer=True,
)
SMALL_CONTROL = ControlNetConfig()
SMALL_VAE = VAEConfig(ch=32)

Module = TypeVar("Module", bound=nn.Module)


def load_golden(name: str) -> dict[str, Tensor]:
    """Return the tensors of golden/networks/NAME.safetensors."""
    return load_file(FOLDER / f"{name}.safetensors")


def load_prompts(name: str) -> list[str]:
    """Return the prompts that the text encoder outputs in NAME belong to."""
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as f:
        return json.loads(f.metadata()["prompts"])


def load_manifest(name: str, prefix: str = "") -> dict[str, tuple[int, ...]]:
    """Return key, less ``prefix``, and shape of what starts with ``prefix`` in manifests/NAME.json."""
    keys = json.loads((MANIFESTS / f"{name}.json").read_text())
    return {k.removeprefix(prefix): tuple(shape) for k, shape in keys.items() if k.startswith(prefix)}


def materialise(module: Module, prefix: str, salt: str) -> Module:
    """Give ``module``, built on the meta device or not, the weights that follow from its published keys."""
    module = module.to_empty(device="cpu")
    fill_tensors(((prefix + name, tensor) for name, tensor in module.state_dict().items()), salt)
    return module.eval().requires_grad_(False)


def sampled(output: Tensor) -> Tensor:
    """Return what a golden file stores of ``output``: all up to about 4096 values, else every n-th, n odd."""
    flat = output.flatten()
    return flat[:: max(1, flat.numel() // 4096) | 1]


def assert_same(output: Tensor, golden: Tensor, kind: str) -> None:
    """Check ``output`` against what a golden file stores of it, by the largest absolute difference."""
    stored = output if output.shape == golden.shape else sampled(output)
    assert stored.shape == golden.shape
    assert torch.isfinite(stored).all()
    difference = (stored.double() - golden.double()).abs().max().item()
    allowed = MARGIN * NOISE[kind]
    assert difference <= allowed, f"differs by {difference:.1e}, allowed {allowed:.1e}"
