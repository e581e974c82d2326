"""The networks of SD 1.5 and SD 2.1, at their full size, compute what the original's do."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from core.config import load_config
from core.models.controlnet import ControlNet
from core.models.packing import pack_weights
from core.models.text_encoder import TextEncoder
from core.models.unet import UNet
from core.models.vae import AutoencoderKL
from core.models.winograd import WinogradConv2d, memory_for_winograd
from core.weights.convert import text_sources
from tests.deterministic_weights import weight_values
from tests.golden_networks import (
    GUESS_SCALES,
    assert_same,
    load_golden,
    load_manifest,
    load_prompts,
    materialise,
)

pytestmark = pytest.mark.full_size

SALT = "public-sd15"


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_golden("full_sd15")


@pytest.fixture(scope="module")
def residuals(golden: dict[str, Tensor]) -> list[Tensor]:
    """Return what the ControlNet gives; its 1.4 GB are free again before the UNet is built."""
    config = load_config("sd15")
    with torch.device("meta"):
        control = ControlNet(config.unet, config.control)
    materialise(control, "control_model.", SALT)
    hint = control.embed_hint(golden["hint_u8"].float() / 255)
    return control(golden["x"], golden["t"], golden["context"], hint)


@pytest.fixture(scope="module")
def unet(residuals: list[Tensor]) -> Iterator[UNet]:
    with torch.device("meta"):
        unet = UNet(load_config("sd15").unet)
    yield materialise(unet, "model.diffusion_model.", SALT)
    del unet
    gc.collect()


def test_residuals_are_the_originals(golden: dict[str, Tensor], residuals: list[Tensor]) -> None:
    assert len(residuals) == 13
    for i, residual in enumerate(residuals):
        first = golden.get(f"control.{i}.first")
        if first is None:
            assert_same(residual, golden[f"control.{i}"], "control")
        else:
            assert_same(residual.flatten()[: len(first)], first, "control")


@pytest.mark.parametrize("case", ["eps", "eps_nocontrol", "eps_only_mid", "eps_guess"])
def test_eps_is_the_originals(
    case: str, golden: dict[str, Tensor], residuals: list[Tensor], unet: UNet
) -> None:
    given: dict[str, list[Tensor] | list[Tensor | None] | None] = {
        "eps": residuals,
        "eps_nocontrol": None,
        "eps_only_mid": [*([None] * 12), residuals[12]],
        "eps_guess": [r * s for r, s in zip(residuals, GUESS_SCALES, strict=True)],
    }
    assert_same(unet(golden["x"], golden["t"], golden["context"], given[case]), golden[case], "eps")


@pytest.mark.skipif(not memory_for_winograd(), reason="the transformed weights need a larger computer")
def test_eps_with_fewer_products_is_the_originals(
    golden: dict[str, Tensor], residuals: list[Tensor], unet: UNet
) -> None:
    """Changes ``unet``: the last of its tests."""
    with torch.inference_mode():
        pack_weights(unet)
        assert sum(isinstance(module, WinogradConv2d) for module in unet.modules()) > 40
        eps = unet(golden["x"], golden["t"], golden["context"], residuals)
    assert_same(eps, golden["eps"], "eps")


def test_the_vae_encodes_and_decodes_as_the_originals() -> None:
    with torch.device("meta"):
        vae = AutoencoderKL(load_config("sd15").vae)
    materialise(vae, "first_stage_model.", SALT)
    golden = load_golden("full_vae")
    mean, logvar = vae.moments(golden["image"])
    assert_same(torch.cat([mean, logvar], dim=1), golden["moments"], "vae")
    assert_same((0.5 * logvar).exp(), golden["std"], "vae")
    assert_same(vae.encode(golden["image"]), golden["mode_scaled"], "vae")
    assert_same(vae.decode(golden["z"]), golden["decoded"], "vae")


def test_the_sd15_text_encoder_gives_the_last_hidden_state() -> None:
    config = load_config("sd15").text
    with torch.device("meta"):
        text = TextEncoder(config)
    published = load_manifest("cldm_v15")
    state = {
        ours: torch.from_numpy(np.concatenate([weight_values(key, published[key], SALT) for key in theirs]))
        for ours, theirs in text_sources(config, text.state_dict(), published).items()
    }
    text.load_state_dict(state, assign=True)
    check_text(text.eval(), load_golden("clip_vit_l14"), load_prompts("clip_vit_l14"), "last_hidden")


def test_the_sd21_text_encoder_gives_the_penultimate_layer() -> None:
    with torch.device("meta"):
        text = TextEncoder(load_config("sd21").text)
    materialise(text, "cond_stage_model.model.", "public-sd21")
    check_text(text, load_golden("clip_vit_h14"), load_prompts("clip_vit_h14"), "penultimate")


@torch.inference_mode()
def check_text(text: TextEncoder, golden: dict[str, Tensor], prompts: list[str], name: str) -> None:
    context = text.encode(prompts)
    for i, row in enumerate(context):
        first = golden[f"{name}.{i}.first"]
        assert_same(row.flatten()[: len(first)], first, "clip")
        if f"{name}.{i}" in golden:
            assert_same(row, golden[f"{name}.{i}"], "clip")
