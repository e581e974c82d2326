"""A network that grows computes what it did before, bit for bit, and everything new can learn."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from core.config import ConfigError, ModelConfig, load_config
from core.models.controlnet import ControlNet
from core.models.text_encoder import TextEncoder
from core.models.unet import UNet
from core.models.vae import AutoencoderKL
from core.training.export import export_base, export_control
from core.training.grow import grown
from core.training.streaming import load_grown
from tests.deterministic_weights import fill_module


def _filled(net: nn.Module, seed: str) -> nn.Module:
    return fill_module(net, "", seed).requires_grad_(False)


def _inputs(config: ModelConfig) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(3)
    x = torch.randn(2, config.unet.in_channels, 8, 8)
    context = torch.randn(2, 7, config.unet.context_dim)
    return x, torch.tensor([5, 900]), context, torch.rand(2, 3, 64, 64)


def _predicted(unet: nn.Module, net: nn.Module, config: ModelConfig) -> tuple[Tensor, Tensor]:
    x, t, context, hint = _inputs(config)
    assert isinstance(net, ControlNet)
    return unet(x, t, context), unet(x, t, context, net(x, t, context, net.embed_hint(hint)))


@pytest.mark.parametrize("blocks", [[2, 1], [1, 3], [3, 2]])
def test_what_has_grown_predicts_the_same_with_and_without_control(
    config: ModelConfig, blocks: list[int]
) -> None:
    large = replace(config, unet=replace(config.unet, level_res_blocks=blocks))
    old = _filled(UNet(config.unet), "unet"), _filled(ControlNet(config.unet, config.control), "net")
    new = UNet(large.unet), ControlNet(large.unet, large.control)
    for small, net in zip(old, new, strict=True):
        grown(net, config.unet, large.unet, small.state_dict())
    before, after = _predicted(*old, config), _predicted(*new, config)
    assert not torch.equal(*before)  # the control does something
    for was, now in zip(before, after, strict=True):
        assert torch.equal(was, now)


def test_the_last_layers_of_all_new_blocks_get_a_gradient(config: ModelConfig) -> None:
    large = replace(config.unet, level_res_blocks=[2, 2])
    unet = UNet(large)
    grown(unet, config.unet, large, _filled(UNet(config.unet), "unet").state_dict())
    x, t, context, _ = _inputs(config)
    unet(x, t, context).square().mean().backward()
    ends = [
        (k, p) for k, p in unet.named_parameters() if k.endswith(("out_layers.3.weight", "proj_out.weight"))
    ]
    new = [(key, p) for key, p in ends if not p.any()]
    assert len(new) == 6  # a block of each level in both halves; the coarser has transformers
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for _, p in new)


def test_other_differences_and_smaller_networks_are_refused(config: ModelConfig) -> None:
    trained = UNet(config.unet).state_dict()
    two = replace(config.unet, level_res_blocks=[2, 2])
    with pytest.raises(ValueError, match="not more than"):
        grown(UNet(config.unet), two, config.unet, UNet(two).state_dict())
    wide = replace(config.unet, model_channels=64)
    with pytest.raises(ValueError, match="model_channels differs"):
        grown(UNet(wide), config.unet, wide, trained)


def test_exported_files_are_loaded_as_large_as_the_config_asks_for(
    tmp_path: Path, config: ModelConfig
) -> None:
    unet = _filled(UNet(config.unet), "unet")
    assert isinstance(unet, UNet)
    export_base(
        config, unet, AutoencoderKL(config.vae), TextEncoder(config.text), tmp_path / "base.safetensors"
    )
    nets = {name: _filled(ControlNet(config.unet, config.control), name) for name in ("canny", "seg")}
    for name, net in nets.items():
        assert isinstance(net, ControlNet)
        export_control(config, net, tmp_path / f"{name}.safetensors")
    base, loaded = load_grown(config, tmp_path, ["canny", "seg"])
    large = replace(config, unet=replace(config.unet, level_res_blocks=[1, 2]))
    more, larger = load_grown(large, tmp_path, ["canny", "seg"])
    for name in nets:
        before = _predicted(base.unet, loaded[name], config)
        after = _predicted(more.unet, larger[name], config)
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    fresh = "input_blocks.4.0.in_layers.2.weight"  # of a trunk that they will share
    assert torch.equal(larger["canny"].get_parameter(fresh), larger["seg"].get_parameter(fresh))


@pytest.mark.parametrize("blocks", ["[2, 1]", "[2, 0, 1]"])
def test_a_config_that_has_no_number_for_each_level_is_refused(tmp_path: Path, blocks: str) -> None:
    text = (Path("core/configs/demo.yaml")).read_text()
    path = tmp_path / "wrong.yaml"
    path.write_text(re.sub(r"level_res_blocks: \[.*\]", f"level_res_blocks: {blocks}", text))
    with pytest.raises(ConfigError, match="give 3 numbers above 0"):
        load_config(path)
