"""MiDaS's network: the published names and shapes, its layers one by one, and stored outputs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file
from torch import Tensor

from annotators.nets.midas import MidasConfig, MidasNet, build, unused
from annotators.networks import NetworkCache
from core.errors import CheckpointMismatch
from tests.deterministic_weights import fill_tensors

TESTS = Path(__file__).parents[1]
PUBLISHED = json.loads((TESTS / "manifests" / "midas.json").read_text())
FILE = "dpt_hybrid-midas-501f0c75.pt"
SMALL = MidasConfig(
    width=48,
    depth=5,
    heads=3,
    grid=4,
    tap=2,
    layers=(2, 1, 3),
    stem=32,
    channels=(128, 128, 256),
    features=16,
)


def small_net() -> MidasNet:
    net = build({"config": SMALL.to_json()}).eval().requires_grad_(False)
    fill_tensors(net.state_dict().items(), "small")
    return net


def waves(height: int, width: int) -> Tensor:
    """Three crossing waves, one a channel: (1, 3, h, w) in [-1, 1]."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    planes = [np.sin(x / (5 + 9 * i) + i) * np.cos(y / (13 - 4 * i)) for i in range(3)]
    return torch.from_numpy(np.stack(planes)[None].astype(np.float32))


def test_keys_and_shapes_are_the_published_ones_but_for_those_without_use() -> None:
    with torch.device("meta"):
        net = build({})
    made = {key: list(value.shape) for key, value in net.state_dict().items()}
    assert made == {key: shape for key, shape in PUBLISHED.items() if not unused(key)}
    assert sum(map(unused, PUBLISHED)) == 8


def test_nothing_but_weights_has_to_be_made_so_that_it_can_be_built_on_the_meta_device() -> None:
    with torch.device("meta"):
        net = build({})
    assert not list(net.buffers())


class Reference:
    """The network written out with plain functions, in the original's order."""

    def __init__(self, weights: Mapping[str, Tensor], config: MidasConfig) -> None:
        self.w, self.config = weights, config

    def conv(self, x: Tensor, name: str, padding: int = 0, stride: int = 1) -> Tensor:
        bias = self.w.get(f"{name}.bias")
        return F.conv2d(x, self.w[f"{name}.weight"], bias, padding=padding, stride=stride)

    def standardised(self, x: Tensor, name: str, stride: int = 1) -> Tensor:
        """A convolution whose every filter has mean 0 and variance 1; odd padding goes right and below."""
        weight = self.w[f"{name}.conv.weight" if f"{name}.conv.weight" in self.w else f"{name}.weight"]
        variance, mean = torch.var_mean(weight, dim=(1, 2, 3), correction=0, keepdim=True)
        kernel = weight.shape[-1]
        pads = []
        for side in (x.shape[3], x.shape[2]):
            missing = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
            pads += [missing // 2, missing - missing // 2]
        return F.conv2d(F.pad(x, pads), (weight - mean) / (variance + 1e-8).sqrt(), stride=stride)

    def group(self, x: Tensor, name: str) -> Tensor:
        return F.group_norm(x, 32, self.w[f"{name}.weight"], self.w[f"{name}.bias"], 1e-5)

    def bottleneck(self, x: Tensor, name: str, stride: int) -> Tensor:
        beside = x
        if f"{name}.downsample.conv.weight" in self.w:
            down = self.standardised(x, f"{name}.downsample", stride)
            beside = self.group(down, f"{name}.downsample.norm")
        for i in (1, 2, 3):
            x = self.group(
                self.standardised(x, f"{name}.conv{i}", stride if i == 2 else 1), f"{name}.norm{i}"
            )
            x = x.relu() if i < 3 else x
        return (x + beside).relu()

    def layer_norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.w[f"{name}.weight"], self.w[f"{name}.bias"], 1e-6)

    def linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def block(self, x: Tensor, name: str) -> Tensor:
        seen = self.linear(self.layer_norm(x, f"{name}.norm1"), f"{name}.attn.qkv")
        q, k, v = seen.unflatten(2, (3, self.config.heads, -1)).permute(2, 0, 3, 1, 4)
        looks = (q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])).softmax(-1)
        x = x + self.linear((looks @ v).transpose(1, 2).flatten(2), f"{name}.attn.proj")
        hidden = F.gelu(self.linear(self.layer_norm(x, f"{name}.norm2"), f"{name}.mlp.fc1"))
        return x + self.linear(hidden, f"{name}.mlp.fc2")

    def encoded(self, x: Tensor) -> list[Tensor]:
        """The decoder's four inputs."""
        root, grid = "pretrained.model", self.config.grid
        resnet = f"{root}.patch_embed.backbone"
        x = self.group(self.standardised(x, f"{resnet}.stem.conv", 2), f"{resnet}.stem.norm").relu()
        x = F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-math.inf), 3, 2)
        seen = []
        for stage, count in enumerate(self.config.layers):
            for i in range(count):
                x = self.bottleneck(x, f"{resnet}.stages.{stage}.blocks.{i}", 2 if stage and not i else 1)
            seen.append(x)
        size = seen.pop().shape[2:]
        tokens = self.conv(x, f"{root}.patch_embed.proj").flatten(2).transpose(1, 2)
        where = self.w[f"{root}.pos_embed"]
        square = where[:, 1:].reshape(1, grid, grid, -1).permute(0, 3, 1, 2)
        square = F.interpolate(square, size, mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)
        start = self.w[f"{root}.cls_token"].expand(len(x), -1, -1)
        tokens = torch.cat([start, tokens], 1) + torch.cat([where[:, :1], square], 1)
        for i in range(self.config.depth):
            tokens = self.block(tokens, f"{root}.blocks.{i}")
            if i in (self.config.tap, self.config.depth - 1):
                post = f"pretrained.act_postprocess{len(seen) + 1}"
                pairs = torch.cat([tokens[:, 1:], tokens[:, :1].expand(-1, tokens.shape[1] - 1, -1)], 2)
                told = F.gelu(self.linear(pairs, f"{post}.0.project.0"))
                seen.append(self.conv(told.transpose(1, 2).unflatten(2, size), f"{post}.3"))
        seen[3] = self.conv(seen[3], "pretrained.act_postprocess4.4", padding=1, stride=2)
        return seen

    def residual(self, x: Tensor, name: str) -> Tensor:
        return x + self.conv(self.conv(x.relu(), f"{name}.conv1", 1).relu(), f"{name}.conv2", 1)

    def __call__(self, x: Tensor) -> Tensor:
        joined: Tensor | None = None
        for number, seen in reversed(list(enumerate(self.encoded(x), 1))):
            name = f"scratch.refinenet{number}"
            features = self.conv(seen, f"scratch.layer{number}_rn", 1)
            if joined is not None:
                features = joined + self.residual(features, f"{name}.resConfUnit1")
            doubled = F.interpolate(
                self.residual(features, f"{name}.resConfUnit2"),
                scale_factor=2,
                mode="bilinear",
                align_corners=True,
            )
            joined = self.conv(doubled, f"{name}.out_conv")
        assert joined is not None
        x = self.conv(joined, "scratch.output_conv.0", 1)
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        x = self.conv(x, "scratch.output_conv.2", 1).relu()
        return self.conv(x, "scratch.output_conv.4").relu().squeeze(1)


@pytest.mark.parametrize("size", [(64, 64), (32, 32), (96, 160), (160, 32)])
def test_the_network_is_its_layers(size: tuple[int, int]) -> None:
    net = small_net()
    x = torch.cat([waves(*size), waves(*size).flip(3)])
    with torch.inference_mode():
        made, expected = net(x), Reference(net.state_dict(), SMALL)(x)
    assert made.shape == (2, *size) and made.std() > 0.01
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=2e-5)


def test_the_readout_tells_every_token_of_the_class_token() -> None:
    net = small_net()
    x = waves(64, 64)
    with torch.inference_mode():
        before = net(x)
        net.pretrained.model.cls_token.add_(1.0)
        assert ((net(x) - before).abs() > 1e-3).float().mean() > 0.5


@pytest.fixture(scope="module")
def full_size() -> MidasNet:
    """The network in its full size, its weights made from their names."""
    with torch.device("meta"):
        net = build({})
    net = net.to_empty(device="cpu").eval().requires_grad_(False)
    fill_tensors(net.state_dict().items(), "public")
    return net


GOLDEN = load_file(TESTS / "golden" / "midas" / "network.safetensors")


def test_the_full_network_computes_what_it_did_when_it_agreed_with_the_original(full_size: MidasNet) -> None:
    firsts: dict[str, Tensor] = {}

    def keep(name: str) -> None:
        def hook(_module: object, _given: object, made: Tensor) -> None:
            firsts[name] = made.flatten()[:8].clone()

        full_size.get_submodule(name).register_forward_hook(hook)

    layers = [name for name in GOLDEN if name != "depth"]
    for name in layers:
        keep(name)
    with torch.inference_mode():
        depth = full_size(waves(96, 160))[0]
    assert set(firsts) == set(layers)
    for name in firsts:  # in the order of the computation: the first that differs is the wrong one
        torch.testing.assert_close(
            firsts[name],
            torch.from_numpy(GOLDEN[name]),
            rtol=1e-4,
            atol=1e-4,
            msg=f"{name} is the first that differs",
        )
    torch.testing.assert_close(depth[::3, ::3], torch.from_numpy(GOLDEN["depth"]), rtol=0, atol=3e-5)


@pytest.fixture
def networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NetworkCache:
    monkeypatch.setenv("CONTROLNET_CKPTS", str(tmp_path))
    cache = NetworkCache()
    cache.configure(device="cpu", dtype="float32")
    return cache


@pytest.fixture
def tiny_is_published(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a pickle, which has no metadata, hold the small network."""
    monkeypatch.setattr(MidasConfig, "from_metadata", classmethod(lambda cls, metadata: SMALL))


def test_a_file_of_the_published_kind_loads_with_its_unused_parts(
    tmp_path: Path, networks: NetworkCache, tiny_is_published: None
) -> None:
    net = small_net()
    extra = {key: torch.zeros(2) for key in PUBLISHED if unused(key)}
    torch.save({**net.state_dict(), **extra}, tmp_path / FILE)
    loaded = networks.get("midas", build, ignored=unused, half=False)
    x = waves(64, 96)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(x), net(x), rtol=0, atol=1e-6)
    weight = loaded.state_dict()["scratch.output_conv.0.weight"]
    assert weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("change", ["lacks", "adds", "bends"])
def test_any_other_file_is_refused_with_its_keys(
    tmp_path: Path, networks: NetworkCache, tiny_is_published: None, change: str
) -> None:
    state, key = small_net().state_dict(), "scratch.refinenet1.out_conv.weight"
    if change == "lacks":
        del state[key]
    elif change == "adds":
        state[key + "2"] = torch.zeros(1)
    else:
        state[key] = torch.zeros(3, 3)
    torch.save(state, tmp_path / FILE)
    told = r"(?s)refinenet1\.out_conv\.weight.*core\.weights get midas"
    with pytest.raises(CheckpointMismatch, match=told):
        networks.get("midas", build, ignored=unused, half=False)


def test_the_published_sizes_are_the_default() -> None:
    assert MidasConfig.from_metadata({}) == MidasConfig.from_metadata({"other": "x"}) == MidasConfig()
    assert MidasConfig.from_metadata({"config": SMALL.to_json()}) == SMALL


@pytest.mark.parametrize(
    "config",
    [
        "no json",
        "[]",
        "null",
        '{"size": 3}',
        '{"layers": 3}',
        '{"layers": [1, 2]}',
        '{"layers": [1, 2, 0]}',
        '{"channels": [128, 128, "128"]}',
        '{"channels": [64, 128, 128]}',
        '{"stem": 48}',
        '{"width": 100000}',
        '{"width": 10, "heads": 3}',
        '{"tap": 12}',
        '{"tap": -1}',
        '{"depth": 1e9}',
        '{"grid": true}',
        '{"features": 31}',
    ],
)
def test_other_metadata_is_refused(config: str) -> None:
    with pytest.raises(CheckpointMismatch, match="get the file anew"):
        build({"config": config})
