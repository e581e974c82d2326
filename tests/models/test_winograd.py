"""Convolutions with fewer products give what plain ones give, but for rounding."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from core.models import packing, winograd
from core.models.packing import pack_weights
from core.models.unet import UNet
from core.models.winograd import LARGE, SMALL, WinogradConv2d, memory_for_winograd, suits_winograd
from core.weights.mixing import put
from tests.golden_networks import SMALL_UNET

WIDE_UNET = replace(SMALL_UNET, model_channels=288, channel_mult=[1, 2], attention_resolutions=[2])


def off(made: Tensor, exact: Tensor) -> float:
    """Return how far ``made`` is from ``exact``, as a share of its size."""
    return float((made.double() - exact.double()).norm() / exact.double().norm())


@pytest.fixture
def plenty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "memory_for_winograd", lambda: True)


@torch.inference_mode()
@pytest.mark.parametrize("size", [(16, 16), (10, 7), (3, 5), (1, 1), (64, 40)])
@pytest.mark.parametrize(
    ("channels", "tiling", "bound"), [((288, 320), LARGE, 6e-6), ((640, 576), SMALL, 2e-6)]
)
def test_it_computes_the_convolution(
    channels: tuple[int, int], tiling: winograd.Tiling, bound: float, size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(*channels, 3, padding=1)
    x = torch.randn(2, channels[0], *size)
    exact = copy.deepcopy(conv).double()(x.double())
    layer = WinogradConv2d(conv)
    assert layer.tiling is tiling
    for given in (x, x.contiguous(memory_format=torch.channels_last)):
        made = layer(given)
        assert made.shape == exact.shape and made.is_contiguous(memory_format=torch.channels_last)
        assert off(made, exact) < bound
    assert off(conv(x), exact) < bound  # the bound is of the kind that plain ones keep, too


@torch.inference_mode()
@pytest.mark.parametrize("tiling", [SMALL, LARGE])
@pytest.mark.parametrize(("size", "channels"), [((16, 20), (5, 7)), ((7, 1), (3, 4)), ((33, 50), (8, 8))])
def test_any_number_of_channels_can_be_computed(
    tiling: winograd.Tiling, size: tuple[int, int], channels: tuple[int, int]
) -> None:
    conv, x = nn.Conv2d(*channels, 3, padding=1), torch.randn(2, channels[0], *size)
    assert off(WinogradConv2d(conv, tiling)(x), conv(x)) < 6e-6


@torch.inference_mode()
def test_it_needs_no_bias_and_keeps_what_it_was_given() -> None:
    conv = nn.Conv2d(256, 320, 3, padding=1, bias=False)
    x = torch.randn(1, 256, 12, 12)
    before = x.clone()
    assert off(WinogradConv2d(conv)(x), conv(x)) < 6e-6
    assert torch.equal(x, before)


@torch.inference_mode()
def test_many_tiles_go_through_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = WinogradConv2d(nn.Conv2d(256, 320, 3, padding=1)), torch.randn(2, 256, 24, 20)
    whole = layer(x)
    monkeypatch.setattr(winograd, "MOST_TILES", 20)
    assert off(layer(x), whole) < 1e-6


@torch.inference_mode()
def test_a_network_computes_the_same_and_holds_the_same_weights(plenty: None) -> None:
    torch.manual_seed(0)
    unet = UNet(WIDE_UNET)
    for parameter in unet.parameters():  # zero convolutions would hide what goes before them
        parameter.normal_(std=0.03)
    fast = copy.deepcopy(unet)
    assert pack_weights(fast) == {}  # none waits for its weight
    replaced = [m for m in fast.modules() if isinstance(m, WinogradConv2d)]
    assert {m.tiling.made for m in replaced} == {2, 4}

    x, t = torch.randn(2, WIDE_UNET.in_channels, 16, 16), torch.tensor([3, 801])
    context = torch.randn(2, 7, WIDE_UNET.context_dim)
    assert 0 < off(fast(x, t, context), unet(x, t, context)) < 1e-5
    plain, kept = unet.state_dict(), fast.state_dict()
    assert plain.keys() == kept.keys()
    for name, value in plain.items():
        torch.testing.assert_close(kept[name], value, rtol=1e-5, atol=1e-7)


@torch.inference_mode()
def test_another_weight_can_be_put_into_its_place(plenty: None) -> None:
    network, plain = (nn.Sequential(nn.Conv2d(256, 320, 3, padding=1)) for _ in range(2))
    pack_weights(network)
    for name, value in plain.state_dict().items():
        put(network, name, value)
    x = torch.randn(1, 256, 8, 8)
    assert isinstance(network[0], WinogradConv2d) and off(network(x), plain(x)) < 6e-6


@torch.inference_mode()
def test_a_layer_without_its_weight_waits_for_it(plenty: None) -> None:
    conv = nn.Conv2d(256, 320, 3, padding=1)
    with torch.device("meta"):
        network = nn.Sequential(nn.Conv2d(256, 320, 3, padding=1))
    waiting = pack_weights(network)
    assert list(waiting) == ["0.weight"] and waiting["0.weight"].shape == conv.weight.shape
    waiting["0.weight"].pack(conv.weight)
    network.load_state_dict({"0.bias": conv.bias}, assign=True)
    x = torch.randn(1, 256, 8, 8)
    assert torch.equal(network(x), WinogradConv2d(conv)(x))


def test_other_layers_stay_as_they_are(plenty: None) -> None:
    layers = [
        nn.Conv2d(256, 256, 3, padding=1),
        nn.Conv2d(128, 640, 3, padding=1),
        nn.Conv2d(320, 320, 3, stride=2, padding=1),
        nn.Conv2d(320, 320, 1),
        nn.Conv2d(320, 320, 3),
        nn.Conv2d(320, 320, 3, padding=2, dilation=2),
        nn.Conv2d(640, 640, 3, padding=1, groups=2),
        nn.Conv2d(320, 320, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(320, 320, 3, padding=1).half(),
    ]
    assert not any(map(suits_winograd, layers))
    network = nn.Sequential(*layers)
    pack_weights(network)
    assert not any(isinstance(m, WinogradConv2d) for m in network.modules())


def test_where_memory_is_short_all_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "memory_for_winograd", lambda: False)
    network = nn.Sequential(nn.Conv2d(320, 320, 3, padding=1))
    pack_weights(network)
    assert type(network[0]) is nn.Conv2d


@pytest.mark.parametrize(
    ("pages", "limit", "enough"),
    [(4_100_000, "max", True), (4_100_000, "8000000000", False), (1_900_000, "max", False)],
)
def test_memory_is_what_computer_and_container_leave(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pages: int, limit: str, enough: bool
) -> None:
    (tmp_path / "memory.max").write_text(f"{limit}\n", encoding="ascii")
    monkeypatch.setattr(winograd, "LIMIT_FILE", tmp_path / "memory.max")
    monkeypatch.setattr(winograd.os, "sysconf", lambda name: {"SC_PAGE_SIZE": 4096}.get(name, pages))
    assert memory_for_winograd() is enough


def test_memory_that_is_not_known_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(winograd.os, "sysconf")
    assert not memory_for_winograd()
