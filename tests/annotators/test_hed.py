from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

import annotators
from annotators import fake_scribble, hed
from annotators.nets.hed import HED, build
from annotators.networks import NETWORKS, NetworkCache
from core.errors import CheckpointMismatch
from core.images import resize_image, to_rgb
from core.models.winograd import WinogradConv2d
from tests.annotators.edge_maps import ROOT, checkered, loaded, published_state, read, stored


def test_the_keys_are_those_of_the_published_file() -> None:
    published = json.loads((ROOT / "tests" / "manifests" / "hed.json").read_text())
    assert {key: list(value.shape) for key, value in HED().state_dict().items()} == published


def test_the_side_outputs_are_the_verified_ones() -> None:
    planes = torch.tensor(checkered()).permute(2, 0, 1)[None].float()
    sides = loaded("hed", build)(planes)
    for number, (side, step) in enumerate(zip(sides, (8, 4, 1, 1, 1), strict=True), 1):
        found = side[0, 0, ::step, ::step].numpy()
        expected = stored("networks.npz")[f"hed{number}"]
        assert found.shape == expected.shape and np.abs(found - expected).max() < 2e-4


def test_only_wide_convolutions_in_float32_are_replaced() -> None:
    kinds = [type(conv).__name__ for conv in loaded("hed", build).get_submodule("block4.convs").children()]
    assert kinds == ["WinogradConv2d"] * 3
    net = HED().bfloat16()
    net.load_state_dict(published_state("hed", net))
    assert not any(isinstance(module, WinogradConv2d) for module in net.modules())


@pytest.mark.parametrize("photo", ["photo_cat", "photo_astronaut"])
def test_bundled_half_precision_weights_give_the_map_of_the_full_ones(photo: str) -> None:
    picture = resize_image(to_rgb(ROOT / "test_imgs" / f"{photo}.jpg"), 256)
    difference = np.abs(hed.soft_edges(picture).astype(int) - read(f"hed.{photo}.png"))
    assert difference.max() <= 2 and (difference > 1).mean() < 0.001 and (difference > 0).mean() < 0.03


def test_the_published_file_loads_by_the_same_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTROLNET_CKPTS", str(tmp_path))
    torch.save(published_state("hed", HED()), tmp_path / "ControlNetHED.pth")
    networks = NetworkCache()
    networks.configure(device="cpu", dtype="float32")
    ours = networks.get("hed", build)(torch.full((1, 3, 16, 16), 90.0))
    theirs = loaded("hed", build)(torch.full((1, 3, 16, 16), 90.0))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    torch.save({"block1.convs.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "ControlNetHED.pth")
    networks.clear()
    with pytest.raises(CheckpointMismatch, match="block1.convs.0.bias"):
        networks.get("hed", build)


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (17, 15), (64, 64), (75, 33)])
def test_soft_edges_take_any_size(size: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    edges = hed.soft_edges(picture)
    assert edges.shape == size and edges.dtype == np.uint8


def test_the_map_is_the_sigmoid_of_the_mean_logit(monkeypatch: pytest.MonkeyPatch) -> None:
    class Constant(nn.Module):
        norm = torch.zeros(1)

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            return [torch.full((1, 1, 64 >> i, 64 >> i), float(i)) for i in range(5)]  # mean 2

    monkeypatch.setattr(NETWORKS, "get", lambda *_, **__: Constant())
    edges = hed.soft_edges(np.zeros((64, 64, 3), np.uint8))
    assert (edges == int(255 / (1 + np.exp(-2.0)))).all()


@pytest.mark.parametrize(("number", "threshold", "sigma"), [(0, 127, 3.0), (1, 40, 1.0)])
@pytest.mark.parametrize("channels", ["", "3"])
def test_edges_are_thinned_as_in_the_original(
    number: int, threshold: float, sigma: float, channels: str
) -> None:
    found = fake_scribble.thin(read(f"nms.{number}.in{channels}.png"), threshold, sigma)
    assert np.array_equal(found, read(f"nms.{number}.out{channels}.png"))


def test_strokes_are_the_blurred_crests_above_4() -> None:
    crests = read("nms.0.out.png")
    made = annotators.load("fake_scribble").refine(np.repeat(read("nms.0.in.png")[:, :, None], 3, axis=2))
    assert np.array_equal(made[:, :, 1], np.where(cv2.GaussianBlur(crests, (0, 0), 3.0) > 4, 255, 0))
    assert made.any() and (made[:, :, :1] == made).all()


def test_a_fake_scribble_refines_heds_own_hint_and_computes_it_only_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []
    computed = hed.soft_edges

    def counted(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        calls.append(1)
        return computed(image)

    monkeypatch.setattr(hed, "soft_edges", counted)
    annotators.load.cache_clear()
    picture = checkered()
    edges = annotators.load("hed")(picture, size=(128, 192), resolution=128)
    detector = annotators.load("fake_scribble")
    made = detector(picture, size=(128, 192), resolution=128)
    assert np.array_equal(made.hint, detector.refine(edges.hint)) and len(calls) == 1
    assert np.array_equal(made.preview, 255 - made.hint) and np.array_equal(edges.preview, edges.hint)
    annotators.load.cache_clear()
