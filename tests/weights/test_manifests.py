"""The full published key sets, without their weights: names and shapes alone are planned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from core.config import load_config
from core.models.controlnet import ControlNet
from core.models.text_encoder import TextEncoder
from core.models.unet import UNet
from core.models.vae import AutoencoderKL
from core.weights.checkpoint import BaseNetworks, Plan, plan_base, plan_control
from core.weights.convert import diffusers_key
from core.weights.formats import TensorInfo

MANIFESTS = Path(__file__).parents[1] / "manifests"
CASES = [("sd15", "cldm_v15"), ("sd21", "cldm_v21")]


def published(manifest: str) -> dict[str, TensorInfo]:
    keys = json.loads((MANIFESTS / f"{manifest}.json").read_text())
    whole = ("position_ids",)
    return {
        key: TensorInfo(tuple(shape), torch.int64 if key.endswith(whole) else torch.float32)
        for key, shape in keys.items()
    }


def used(plans: list[Plan]) -> list[str]:
    return [key for plan in plans for keys in plan.sources.values() for key in keys]


@pytest.mark.parametrize(("name", "manifest"), CASES)
def test_every_published_base_tensor_finds_its_place(name: str, manifest: str) -> None:
    config, tensors = load_config(name), published(manifest)
    with torch.device("meta"):
        networks = BaseNetworks(UNet(config.unet), AutoencoderKL(config.vae), TextEncoder(config.text))
    plans = list(plan_base(config, networks, tensors).values())
    total = Plan.joined(plans)
    assert (total.missing, total.unexpected, total.misfits) == ([], [], [])
    sections = ("model.", "first_stage_model.", "cond_stage_model.")
    unused = {key for key in tensors if key.startswith(sections)} - set(used(plans))
    assert all(key.endswith(("position_ids", "text_projection", "logit_scale")) for key in unused)
    assert len(used(plans)) == len(set(used(plans)))


@pytest.mark.parametrize(("name", "manifest"), CASES)
@pytest.mark.parametrize("alone", [False, True])
def test_every_published_control_tensor_finds_its_place(name: str, manifest: str, alone: bool) -> None:
    config, tensors = load_config(name), published(manifest)
    if alone:
        prefix = "control_model."
        tensors = {key.removeprefix(prefix): info for key, info in tensors.items() if key.startswith(prefix)}
    with torch.device("meta"):
        net = ControlNet(config.unet, config.control)
    plan = plan_control(config, net, tensors)
    assert plan.fits
    assert len(set(used([plan]))) == 340  # as many as a published ControlNet has


# A few keys of lllyasviel/sd-controlnet-canny and what they are in control_sd15_canny.pth.
PUBLISHED_PAIRS = {
    "time_embed.2.bias": "time_embedding.linear_2.bias",
    "input_blocks.0.0.weight": "conv_in.weight",
    "input_blocks.1.0.in_layers.0.weight": "down_blocks.0.resnets.0.norm1.weight",
    "input_blocks.2.1.proj_in.weight": "down_blocks.0.attentions.1.proj_in.weight",
    "input_blocks.3.0.op.weight": "down_blocks.0.downsamplers.0.conv.weight",
    "input_blocks.4.0.skip_connection.weight": "down_blocks.1.resnets.0.conv_shortcut.weight",
    "input_blocks.8.1.transformer_blocks.0.attn2.to_k.weight": (
        "down_blocks.2.attentions.1.transformer_blocks.0.attn2.to_k.weight"
    ),
    "input_blocks.9.0.op.bias": "down_blocks.2.downsamplers.0.conv.bias",
    "input_blocks.11.0.emb_layers.1.weight": "down_blocks.3.resnets.1.time_emb_proj.weight",
    "middle_block.1.transformer_blocks.0.ff.net.0.proj.weight": (
        "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj.weight"
    ),
    "middle_block.2.out_layers.3.weight": "mid_block.resnets.1.conv2.weight",
    "input_hint_block.0.weight": "controlnet_cond_embedding.conv_in.weight",
    "input_hint_block.2.weight": "controlnet_cond_embedding.blocks.0.weight",
    "input_hint_block.12.weight": "controlnet_cond_embedding.blocks.5.weight",
    "input_hint_block.14.bias": "controlnet_cond_embedding.conv_out.bias",
    "zero_convs.11.0.weight": "controlnet_down_blocks.11.weight",
    "middle_block_out.0.bias": "controlnet_mid_block.bias",
}


@pytest.mark.parametrize(("ours", "theirs"), PUBLISHED_PAIRS.items())
def test_full_size_diffusers_names_are_the_published_ones(ours: str, theirs: str) -> None:
    config = load_config("sd15")
    assert diffusers_key(ours, config.unet, config.control) == theirs


@pytest.mark.parametrize("name", ["sd15", "sd21", "demo"])
def test_no_two_tensors_share_a_diffusers_name(name: str) -> None:
    config = load_config(name)
    with torch.device("meta"):
        keys = list(ControlNet(config.unet, config.control).state_dict())
    assert len({diffusers_key(key, config.unet, config.control) for key in keys}) == len(keys)
