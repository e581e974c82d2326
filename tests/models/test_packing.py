"""Packed weights are the same weights, and compute the same but for the order of sums."""

from __future__ import annotations

import copy
import time
import weakref

import pytest
import torch
from torch import nn

from core.models import packing
from core.models.blocks import GatedLinear
from core.models.controlnet import ControlNet
from core.models.packed import Packed
from core.models.packing import PackedGates, can_pack, pack_weights
from core.models.unet import UNet
from tests.golden_networks import SMALL21_UNET, SMALL_CONTROL, SMALL_UNET, load_golden, materialise

needs_packing = pytest.mark.skipif(not can_pack(), reason="this processor has no bfloat16 products")


def bfloat16_pair() -> tuple[UNet, ControlNet]:
    unet = materialise(UNet(SMALL_UNET), "model.diffusion_model.", "public-small")
    control = materialise(ControlNet(SMALL_UNET, SMALL_CONTROL), "control_model.", "public-small")
    return unet.bfloat16(), control.bfloat16()


@torch.inference_mode()
def eps(unet: UNet, control: ControlNet) -> torch.Tensor:
    dtype = next(unet.parameters()).dtype
    rounded = {k: v.bfloat16() for k, v in load_golden("small").items() if k in {"x", "context", "hint"}}
    golden = {k: v.to(dtype) for k, v in rounded.items()}
    x = golden["x"].contiguous(memory_format=torch.channels_last)
    t = torch.tensor([3, 777])
    residuals = control(x, t, golden["context"], control.embed_hint(golden["hint"]))
    return unet(x, t, golden["context"], residuals)


@needs_packing
def test_packing_costs_no_accuracy() -> None:
    unet, control = bfloat16_pair()
    exact = eps(copy.deepcopy(unet).float(), copy.deepcopy(control).float()).double()
    plain = eps(unet, control).double()
    pack_weights(unet)
    pack_weights(control)
    packed = eps(unet, control).double()
    assert (packed - exact).norm() <= 1.1 * (plain - exact).norm()
    assert (plain - exact).norm() < 0.02 * exact.norm()  # bfloat16's own error


@needs_packing
@pytest.mark.parametrize("side", [4, 64])
def test_a_packed_layer_computes_the_layer_channels_last(side: int) -> None:
    torch.manual_seed(0)
    for conv in (nn.Conv2d(64, 96, 1), nn.Conv2d(64, 128, 3, padding=1), nn.Conv2d(64, 128, 3, 2, 1)):
        layer = conv.bfloat16().to(memory_format=torch.channels_last)
        x = torch.randn(2, 64, side, side).bfloat16().contiguous(memory_format=torch.channels_last)
        network = nn.Sequential(layer)
        with torch.inference_mode():
            wanted = layer.float()(x.float())
            layer.bfloat16()
            pack_weights(network)
            made = network(x)
        assert isinstance(network[0], Packed)
        assert made.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(made.float(), wanted, rtol=2**-7, atol=2**-7)


@needs_packing
@torch.inference_mode()
@pytest.mark.parametrize("bias", [True, False])
def test_packed_gates_are_nearer_to_exact_than_plain_ones(bias: bool) -> None:
    torch.manual_seed(0)
    plain = GatedLinear(64, 256, bias=bias).bfloat16()
    x = torch.randn(2, 5, 64).bfloat16()
    exact = copy.deepcopy(plain).float().gated(x.float())
    network = nn.Sequential(copy.deepcopy(plain))
    pack_weights(network)
    gates = network[0]
    assert isinstance(gates, PackedGates)
    assert torch.equal(gates.plain(), plain.weight)
    torch.testing.assert_close(gates(x), plain(x), rtol=2**-7, atol=2**-7)
    made, wanted = gates.gated(x), plain.gated(x)
    assert made.shape == wanted.shape == (2, 5, 128)
    assert (made.float() - exact).norm() < 0.9 * (wanted.float() - exact).norm()


@needs_packing
def test_everything_large_is_packed() -> None:
    unet, _ = bfloat16_pair()
    pack_weights(unet)
    assert not any(isinstance(m, nn.Conv2d | nn.Linear) for m in unet.modules())
    assert all(p.ndim == 1 for p in unet.parameters())


@needs_packing
def test_the_state_dict_of_a_packed_network_holds_the_plain_weights() -> None:
    _, control = bfloat16_pair()
    plain = copy.deepcopy(control.state_dict())
    pack_weights(control)
    packed = control.state_dict()
    assert packed.keys() == plain.keys()
    assert all(torch.equal(packed[key], plain[key]) for key in plain)


def test_a_float32_network_is_left_as_it_is() -> None:
    unet = UNet(SMALL21_UNET)
    pack_weights(unet)
    assert not any(isinstance(m, Packed) for m in unet.modules())


@needs_packing
def test_plain_weights_are_given_back_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [nn.Linear(8, 8, dtype=torch.bfloat16) for _ in range(4)]
    plain = [weakref.ref(layer.weight) for layer in layers]
    network = nn.Sequential(*(nn.Sequential(layer) for layer in layers))
    del layers
    alive: list[int] = []

    class Counted(packing.PackedLinear):
        def __init__(self, linear: nn.Linear) -> None:
            alive.append(sum(weight() is not None for weight in plain))
            super().__init__(linear)

    monkeypatch.setattr(packing, "PackedLinear", Counted)
    pack_weights(network)
    assert alive == [4, 3, 2, 1]


@needs_packing
@torch.inference_mode()
@pytest.mark.parametrize("channels", [96, 128, 192])
@pytest.mark.parametrize("side", [8, 16, 32])
def test_no_packed_convolution_takes_several_times_a_plain_ones_time(channels: int, side: int) -> None:
    plain = nn.Conv2d(channels, channels, 3, padding=1).bfloat16().to(memory_format=torch.channels_last)
    network = nn.Sequential(copy.deepcopy(plain))
    pack_weights(network)
    x = torch.randn(2, channels, side, side).bfloat16().contiguous(memory_format=torch.channels_last)

    def least(layer: nn.Module) -> float:
        times = []
        for _ in range(6):
            began = time.thread_time()
            layer(x)
            times.append(time.thread_time() - began)
        return min(times)

    assert least(network) < 4 * least(plain) + 1e-4  # it was 13 times for 192 channels
