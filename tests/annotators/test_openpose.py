"""OpenPose's networks, against the published files' names and shapes and against their layers one by one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from annotators.nets.openpose import (
    BodyNet,
    HandNet,
    OpenPoseConfig,
    build_body,
    build_hand,
    published_key,
)
from core.errors import CheckpointMismatch
from tests.deterministic_weights import fill_tensors

MANIFESTS = Path(__file__).parents[1] / "manifests"
NARROW = OpenPoseConfig(front=(4, 5, 6, 7), features=8, first=9, refine=10, stages=3)


def published_state(net: nn.Module) -> dict[str, Tensor]:
    return {published_key(key): value for key, value in net.state_dict().items()}


@pytest.mark.parametrize(("name", "build"), [("body", build_body), ("hand", build_hand)])
def test_keys_and_shapes_are_the_published_ones(name: str, build: Callable[..., nn.Module]) -> None:
    with torch.device("meta"):
        net = build({})
    published = json.loads((MANIFESTS / f"openpose_{name}.json").read_text())
    assert {key: list(value.shape) for key, value in published_state(net).items()} == published


def convolve(w: dict[str, Tensor], x: Tensor, name: str, relu: bool = True) -> Tensor:
    weight = w[f"{name}.weight"]
    x = F.conv2d(x, weight, w[f"{name}.bias"], padding=weight.shape[-1] // 2)
    return x.relu() if relu else x


def front(w: dict[str, Tensor], x: Tensor, fourth: list[str]) -> Tensor:
    for block, count in ((1, 2), (2, 2), (3, 4)):
        for i in range(1, count + 1):
            x = convolve(w, x, f"conv{block}_{i}")
        x = F.max_pool2d(x, 2)
    for name in fourth:
        x = convolve(w, x, name)
    return x


def stage(w: dict[str, Tensor], x: Tensor, names: list[str], relu: bool = False) -> Tensor:
    for name in names[:-1]:
        x = convolve(w, x, name)
    return convolve(w, x, names[-1], relu)


def test_the_body_network_is_its_layers_with_a_relu_on_the_last_heat_maps() -> None:
    net = BodyNet(NARROW).eval()
    w = published_state(net)
    fill_tensors(w.items(), "body", lambda key: 1.3)
    x = torch.randn(2, 3, 24, 40, generator=torch.Generator().manual_seed(0))
    features = front(w, x, ["conv4_1", "conv4_2", "conv4_3_CPM", "conv4_4_CPM"])
    made = [stage(w, features, [f"conv5_{i}_CPM_L{branch}" for i in range(1, 6)]) for branch in (1, 2)]
    for number in (2, 3):
        seen = torch.cat([*made, features], 1)
        made = [
            stage(w, seen, [f"Mconv{i}_stage{number}_L{b}" for i in range(1, 8)], (number, b) == (3, 2))
            for b in (1, 2)
        ]
    with torch.no_grad():
        pafs, heat = net(x)
    assert pafs.shape == (2, 38, 3, 5) and heat.shape == (2, 19, 3, 5)
    torch.testing.assert_close(pafs, made[0])
    torch.testing.assert_close(heat, made[1])
    assert heat.min() == 0 < heat.max() and pafs.min() < 0


def test_the_hand_network_is_its_layers() -> None:
    net = HandNet(NARROW).eval()
    w = published_state(net)
    fill_tensors(w.items(), "hand", lambda key: 1.3)
    x = torch.randn(1, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    fourth = [*(f"conv4_{i}" for i in range(1, 5)), "conv5_1", "conv5_2", "conv5_3_CPM"]
    features = front(w, x, fourth)
    heat = stage(w, features, ["conv6_1_CPM", "conv6_2_CPM"])
    for number in (2, 3):
        heat = stage(w, torch.cat([heat, features], 1), [f"Mconv{i}_stage{number}" for i in range(1, 8)])
    with torch.no_grad():
        made = net(x)
    assert made.shape == (1, 22, 2, 3)
    torch.testing.assert_close(made, heat)
    assert made.min() < 0


@pytest.mark.parametrize("build", [build_body, build_hand])
def test_metadata_gives_the_widths(build: Callable[..., BodyNet | HandNet]) -> None:
    assert build({"config": NARROW.to_json()}).config == NARROW
    with torch.device("meta"):
        assert build({"other": "x"}).config == OpenPoseConfig()


@pytest.mark.parametrize(
    "config",
    [
        "no json",
        "[]",
        "null",
        '{"wide": 3}',
        '{"front": 5}',
        '{"front": [1, 2, 3]}',
        '{"front": [1, 2, 3, "4"]}',
        '{"features": 0}',
        '{"refine": 1e9}',
        '{"first": 100000}',
        '{"stages": 17}',
        '{"stages": true}',
    ],
)
def test_a_wrong_config_is_refused(config: str) -> None:
    with pytest.raises(CheckpointMismatch, match="get the file anew"):
        OpenPoseConfig.from_metadata({"config": config})
