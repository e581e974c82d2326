"""Every tensor of the published checkpoints has its place in a network, under its name and with its shape."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from core.config import ModelConfig, load_config
from core.models.controlnet import ControlNet
from core.models.text_encoder import TextEncoder
from core.models.unet import UNet
from core.models.vae import AutoencoderKL
from tests.golden_networks import load_manifest

MANIFESTS = {"sd15": "cldm_v15", "sd21": "cldm_v21"}
PARTS: dict[str, Callable[[ModelConfig], nn.Module]] = {
    "model.diffusion_model.": lambda c: UNet(c.unet),
    "control_model.": lambda c: ControlNet(c.unet, c.control),
    "first_stage_model.": lambda c: AutoencoderKL(c.vae),
}
# In the published file, but not part of what turns prompts into context.
UNUSED_TEXT = {"logit_scale", "text_projection"}


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}


@pytest.mark.parametrize("model", MANIFESTS)
@pytest.mark.parametrize("prefix", PARTS)
def test_keys_and_shapes_are_the_published_ones(model: str, prefix: str) -> None:
    with torch.device("meta"):
        module = PARTS[prefix](load_config(model))
    assert shapes(module) == load_manifest(MANIFESTS[model], prefix)


def test_the_sd21_text_encoder_has_the_published_keys_and_shapes() -> None:
    with torch.device("meta"):
        text = TextEncoder(load_config("sd21").text)
    published = load_manifest("cldm_v21", "cond_stage_model.model.")
    assert published.keys() >= UNUSED_TEXT
    assert shapes(text) == {k: s for k, s in published.items() if k not in UNUSED_TEXT}


@pytest.mark.parametrize("model", MANIFESTS)
def test_the_rest_of_the_checkpoint_is_the_schedule(model: str) -> None:
    known = (*PARTS, "cond_stage_model.")
    rest = {k: s for k, s in load_manifest(MANIFESTS[model]).items() if not k.startswith(known)}
    assert len(rest) == 13
    assert set(rest.values()) <= {(1000,)}
