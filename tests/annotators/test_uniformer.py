"""The segmentation network: published keys, verified outputs, and its shortcuts against the plain way."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from annotators.nets.uniformer import (
    Attention,
    ConvBlock,
    UniFormerConfig,
    UperNet,
    build,
    convolve_resized,
    without_use,
)
from core.errors import CheckpointMismatch
from core.models.winograd import WinogradConv2d
from tests.deterministic_weights import fill_tensors

TESTS = Path(__file__).parents[1]
NARROW = UniFormerConfig(dims=(8, 8, 16, 16), depths=(1, 1, 1, 1), head_dim=8, width=16)


def filled(net: UperNet, salt: str) -> UperNet:
    fill_tensors(net.state_dict().items(), salt, lambda key: 1.0)
    return net.eval().requires_grad_(False)


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def waves() -> Tensor:
    """Return (1, 3, 96, 136), sines of a growing frequency on cosines."""
    y, x = torch.meshgrid(torch.arange(96.0), torch.arange(136.0), indexing="ij")
    return torch.stack([torch.sin(y * x / (40 + 9 * c)) + torch.cos(x / (3 + c)) for c in range(3)])[None]


def test_keys_and_shapes_are_the_published_ones_without_the_auxiliary_head() -> None:
    with torch.device("meta"):
        net = UperNet()
    published = json.loads((TESTS / "manifests" / "uniformer.json").read_text())
    used = {key: shape for key, shape in published.items() if not without_use(key)}
    assert {key: list(value.shape) for key, value in net.state_dict().items()} == used
    assert {key.partition(".")[0] for key in set(published) - set(used)} == {"auxiliary_head"}


def test_the_logits_are_the_verified_ones_also_when_made_quick() -> None:
    expected = load_file(TESTS / "golden" / "segmentation" / "logits.safetensors")["rule.logits"]
    net = filled(UperNet(), "public")
    logits = net(waves())
    assert logits.shape == (1, 150, 24, 34)
    assert (logits.flatten()[::37] - expected).abs().max() < 1e-5
    net.decode_head.quicken()
    assert isinstance(net.decode_head.fpn_convs[0].conv, WinogradConv2d)
    assert (net(waves()).flatten()[::37] - expected).abs().max() < 2e-5


@pytest.mark.parametrize("size", [(32, 32), (33, 70), (64, 47)])
def test_a_network_made_quick_computes_the_same(size: tuple[int, int]) -> None:
    net = filled(UperNet(NARROW), "narrow")
    x = noise(2, 3, *size)
    slow = net(x)
    net.decode_head.quicken()
    assert slow.shape == (2, 150, size[0] // 4, size[1] // 4) and slow.std() > 0.1
    torch.testing.assert_close(net(x), slow, rtol=0, atol=1e-5)


def test_loading_makes_it_quick() -> None:
    net = build({"config": NARROW.to_json()})
    net.load_state_dict(UperNet(NARROW).state_dict())
    assert net.decode_head.fpn_bottleneck.own is not None


def test_training_reaches_every_weight() -> None:
    net = UperNet(NARROW)
    net(noise(2, 3, 64, 64)).square().mean().backward()
    assert [name for name, value in net.named_parameters() if value.grad is None] == []


@pytest.mark.parametrize(
    ("small", "large"), [((4, 5), (8, 10)), ((1, 1), (7, 3)), ((5, 8), (18, 33)), ((6, 6), (6, 6))]
)
def test_convolving_before_resizing_is_convolving_the_resized(
    small: tuple[int, int], large: tuple[int, int]
) -> None:
    x, kernel = noise(2, 3, *small).double(), noise(4, 3, 3, 3).double()
    resized = F.interpolate(x, large, mode="bilinear", align_corners=False)
    torch.testing.assert_close(convolve_resized(x, kernel, large), F.conv2d(resized, kernel, padding=1))


def test_attention_is_a_softmax_over_all_pixels_for_each_head() -> None:
    layer, x = Attention(16, 8), noise(2, 5, 16)
    queries, keys, values = layer.qkv(x).chunk(3, dim=-1)
    heads = []
    for head in (slice(0, 8), slice(8, 16)):
        scores = queries[..., head] @ keys[..., head].transpose(1, 2) / math.sqrt(8)
        heads.append(scores.softmax(-1) @ values[..., head])
    torch.testing.assert_close(layer(x), layer.proj(torch.cat(heads, -1)))


def test_a_block_of_convolutions_sees_three_pixels_around() -> None:
    block = ConvBlock(4).eval()
    x = noise(1, 4, 21, 21)
    other = x.clone()
    other[..., 10, 10] += 1
    rows, columns = (block(x) != block(other)).any(1)[0].nonzero().T
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (7, 13, 7, 13)


def test_metadata_gives_the_sizes() -> None:
    assert build({"config": NARROW.to_json()}).config == NARROW
    with torch.device("meta"):
        assert build({"other": "x"}).config == UniFormerConfig()


@pytest.mark.parametrize(
    "config",
    [
        "no json",
        "[]",
        "null",
        '{"wide": 3}',
        '{"dims": 5}',
        '{"dims": [64, 128, 320]}',
        '{"dims": [64, 128, 320, "512"]}',
        '{"dims": [64, 128, 320, 500]}',
        '{"depths": [1, 1, 1, 65]}',
        '{"depths": [1, 1, 1, true]}',
        '{"head_dim": 0}',
        '{"width": 1e9}',
    ],
)
def test_a_wrong_config_is_refused(config: str) -> None:
    with pytest.raises(CheckpointMismatch, match="get the file anew"):
        UniFormerConfig.from_metadata({"config": config})
