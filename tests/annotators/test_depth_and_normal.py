"""Depth and normals: the original's maps from the same network output, and pictures of every kind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from safetensors.torch import save_file

import annotators
from annotators import depth as module
from annotators.depth import Depth, scaled
from annotators.maps import DEPTH, NORMALS
from annotators.nets.midas import MidasConfig, MidasNet
from annotators.networks import NetworkCache
from annotators.normal import Normal, normals_from_depth
from core.errors import WeightsMissing
from core.weights.registry import Registry

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "midas" / "synthetic.safetensors")
SMALL = MidasConfig(
    width=64,
    depth=4,
    heads=2,
    grid=6,
    tap=2,
    layers=(1, 1, 1),
    stem=32,
    channels=(128, 128, 128),
    features=32,
)


def rows(found: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return found[1::8]


@pytest.fixture
def networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NetworkCache]:
    """A small network in the published file's place."""
    torch.manual_seed(0)
    net = MidasNet(SMALL)
    save_file(net.state_dict(), tmp_path / "dpt_hybrid-midas-501f0c75.pt", {"config": SMALL.to_json()})
    monkeypatch.setenv("CONTROLNET_CKPTS", str(tmp_path))
    cache = NetworkCache()
    cache.configure(device="cpu", dtype="float32")
    monkeypatch.setattr(module, "NETWORKS", cache)
    annotators.load("depth")._raw.clear()  # type: ignore[attr-defined]
    yield cache
    annotators.load("depth")._raw.clear()  # type: ignore[attr-defined]


def test_depth_is_scaled_as_the_original_does() -> None:
    found = (scaled(GOLDEN["depth_raw"]) * np.float32(255)).clip(0, 255).astype(np.uint8)
    assert np.array_equal(rows(found), GOLDEN["depth"])


@pytest.mark.parametrize(
    ("name", "threshold", "alpha"),
    [("bg04", 0.4, 2 * np.pi), ("default", 0.1, 2 * np.pi), ("a62_bg02", 0.2, 6.2), ("a1_bg0", 0.0, 1.0)],
)
def test_normals_are_the_originals(name: str, threshold: float, alpha: float) -> None:
    found = rows(normals_from_depth(GOLDEN["depth_raw"], threshold, alpha)).astype(int)
    off = np.abs(found - GOLDEN[f"normal.{name}"])
    assert off.max() <= 1 and (off > 0).mean() < 0.0004  # two compilers of OpenCV may round apart


def test_flat_depth_is_flat_and_faces_the_viewer() -> None:
    flat = np.full((8, 9), 3.5, np.float32)
    assert not scaled(flat).any()
    assert (normals_from_depth(flat, 0.4) == (127, 127, 255)).all()


def test_what_is_far_faces_the_viewer() -> None:
    ramp = np.linspace(0, 50, 64, dtype=np.float32)[None].repeat(16, 0)
    found = normals_from_depth(ramp, 0.5)
    assert (found[:, :31] == (127, 127, 255)).all() and (found[:, 33:63, 0] > 127).all()


def test_the_original_never_shows_alpha_but_the_call_takes_it() -> None:
    assert [p.name for p in Normal.params] == ["background_threshold"]
    assert [p.default for p in Normal.more_params] == [2 * np.pi]


def test_both_know_their_kind_and_resolution() -> None:
    for detector, kind, label in ((Depth, DEPTH, "Depth"), (Normal, NORMALS, "Normal")):
        resolution = detector.resolution
        assert resolution is not None and detector.kind is kind
        limits = (resolution.label, resolution.minimum, resolution.maximum, resolution.default)
        assert limits == (f"{label} Resolution", 128, 1024, 384)


PICTURES = {
    "grey": np.random.default_rng(0).integers(0, 256, (50, 70), dtype=np.uint8),
    "rgba": np.random.default_rng(1).integers(0, 256, (50, 70, 4), dtype=np.uint8),
    "16 bit": np.random.default_rng(2).integers(0, 65536, (50, 70), dtype=np.uint16),
    "one pixel": np.full((1, 1, 3), 90, np.uint8),
    "wide": np.random.default_rng(3).integers(0, 256, (20, 3000, 3), dtype=np.uint8),
    "tall": np.random.default_rng(4).integers(0, 256, (3000, 20, 3), dtype=np.uint8),
    "black": np.zeros((64, 64, 3), np.uint8),
    "white": np.full((64, 64, 3), 255, np.uint8),
}


@pytest.mark.parametrize("name", PICTURES)
def test_any_picture_gets_maps(networks: NetworkCache, name: str) -> None:
    for detector in ("depth", "normal"):
        made = annotators.load(detector)(PICTURES[name], size=(64, 128), resolution=128)
        assert made.hint.shape == made.preview.shape == (64, 128, 3) and made.hint.dtype == np.uint8


def test_normals_are_handed_over_swapped_and_shown_unswapped(networks: NetworkCache) -> None:
    made = annotators.load("normal")(PICTURES["rgba"], size=(128, 192), resolution=128)
    assert np.array_equal(made.hint[:, :, ::-1], made.preview)
    assert made.preview[:, :, 2].mean() > made.preview[:, :, 0].mean()  # blue faces the viewer


def test_depth_and_normals_share_one_run_of_the_network(
    networks: NetworkCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []
    infer = module._infer

    def counted(image: NDArray[np.uint8], weights: str) -> NDArray[np.float32]:
        runs.append(weights)
        return infer(image, weights)

    monkeypatch.setattr(module, "_infer", counted)
    picture = PICTURES["wide"]
    annotators.load("depth")(picture, size=(64, 192), resolution=128)
    annotators.load("normal")(picture, size=(64, 192), resolution=128, background_threshold=0.3)
    assert len(runs) == 1


def test_missing_weights_are_told_with_their_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Registry, "find", lambda self, name: None)
    for detector in (Depth(), Normal()):
        with pytest.raises(WeightsMissing, match="python -m core.weights get midas"):
            detector(np.random.default_rng(9).integers(0, 256, (99, 99, 3), dtype=np.uint8), size=(64, 64))
