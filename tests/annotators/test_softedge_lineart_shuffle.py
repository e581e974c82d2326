"""The detectors of ControlNet 1.1: against their formulas, and the drawer against its layers written out."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

import annotators
from annotators.lineart import draw_lines
from annotators.nets.lineart import LineartGenerator
from annotators.networks import NETWORKS
from annotators.softedge import coarsen
from core.errors import WeightsMissing
from tests.deterministic_weights import fill_module

SIZE = (128, 192)


def photo() -> NDArray[np.uint8]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (16, 24, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)


def test_safe_edges_are_the_formulas() -> None:
    edges = np.arange(256, dtype=np.uint8)
    x = edges / 255
    wanted = np.floor(x * 3 + 1e-9) / 2 * 255
    assert np.array_equal(coarsen(edges), wanted.clip(0, 255).astype(np.uint8))
    assert set(coarsen(edges)) == {0, 127, 255}


def test_soft_edges_are_hed_and_safe_ones_have_three_greys() -> None:
    detector = annotators.load("softedge")
    plain = detector(photo(), size=SIZE, resolution=128).hint
    assert np.array_equal(plain, annotators.load("hed")(photo(), size=SIZE, resolution=128).hint)
    safe = detector(photo(), size=SIZE, resolution=128, safe=True).hint
    assert set(np.unique(safe)) <= {0, 127, 255}


def test_shuffled_colours_are_those_of_the_picture_at_other_places() -> None:
    detector = annotators.load("shuffle")
    picture = np.zeros((*SIZE, 3), np.uint8)
    picture[..., 0] = np.arange(SIZE[1])
    picture[..., 1] = np.arange(SIZE[0])[:, None]
    stirred = detector(picture, size=SIZE).hint
    assert not np.array_equal(stirred, picture)
    # Red and green tell where a pixel came from: from everywhere, and neighbours from near each other.
    assert (stirred[..., 0].min(), stirred[..., 0].max()) == (0, SIZE[1] - 1)
    assert (stirred[..., 1].min(), stirred[..., 1].max()) == (0, SIZE[0] - 1)
    assert np.abs(np.diff(stirred[..., 0].astype(int), axis=1)).max() < 16
    assert not np.array_equal(detector(picture, size=SIZE, shuffle_seed=1).hint, stirred)


def test_the_picture_itself_is_given_as_it_is() -> None:
    assert np.array_equal(annotators.load("picture")(photo(), size=SIZE).hint, photo())


# Line art


@pytest.fixture(scope="module")
def net() -> LineartGenerator:
    made = LineartGenerator().eval().requires_grad_(False)
    fill_module(made, "", "lineart")
    return made


def normed(x: Tensor) -> Tensor:
    mean = x.mean((2, 3), keepdim=True)
    return (x - mean) / (((x - mean) ** 2).mean((2, 3), keepdim=True) + 1e-5).sqrt()


def written_out(x: Tensor, w: dict[str, Tensor]) -> Tensor:
    """Compute the drawer step by step from the file's own names."""

    def conv(x: Tensor, key: str, border: int = 0, **more: int) -> Tensor:
        x = F.pad(x, (border,) * 4, mode="reflect") if border else x
        return F.conv2d(x, w[f"{key}.weight"], w[f"{key}.bias"], **more)

    x = normed(conv(x, "model0.1", 3)).relu()
    for key in ("model1.0", "model1.3"):
        x = normed(conv(x, key, stride=2, padding=1)).relu()
    for block in range(3):
        inner = normed(conv(x, f"model2.{block}.conv_block.1", 1)).relu()
        x = x + normed(conv(inner, f"model2.{block}.conv_block.5", 1))
    for key in ("model3.0", "model3.3"):
        weight, bias = w[f"{key}.weight"], w[f"{key}.bias"]
        x = normed(F.conv_transpose2d(x, weight, bias, stride=2, padding=1, output_padding=1)).relu()
    return conv(x, "model4.1", 3).sigmoid()


def test_the_drawer_computes_what_its_layers_written_out_compute(net: LineartGenerator) -> None:
    x = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    found, wanted = net(x), written_out(x, dict(net.state_dict()))
    assert found.shape == (1, 1, 32, 48)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_the_drawer_has_the_size_of_the_published_file(net: LineartGenerator) -> None:
    size_bytes = sum(p.nbytes for p in net.parameters())
    assert math.isclose(size_bytes, 17.2e6, rel_tol=0.01)


def test_lines_are_drawn_light_on_dark_by_the_weights_of_the_published_name(
    net: LineartGenerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONTROLNET_CKPTS", str(tmp_path))
    monkeypatch.setattr(NETWORKS, "device", "cpu")
    torch.save(net.state_dict(), tmp_path / "sk_model.pth")
    NETWORKS.clear()
    image = photo()[:101, :131]
    try:
        lines = draw_lines(image, "lineart")
        assert lines.shape == (101, 131)
        made = annotators.load("lineart")(photo(), size=SIZE, resolution=128)
        whole = net(torch.tensor(photo()).permute(2, 0, 1)[None] / 255.0)[0, 0].numpy()
        assert np.abs(255 - made.hint[..., 0].astype(int) - np.floor(whole * 255)).max() <= 1
        assert np.array_equal(made.preview, 255 - made.hint)
        with pytest.raises(WeightsMissing, match=r"sk_model2\.pth(.|\n)*get lineart_coarse"):
            draw_lines(image, "lineart_coarse")
    finally:
        NETWORKS.clear()


def test_missing_weights_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTROLNET_CKPTS", str(tmp_path))
    NETWORKS.clear()
    with pytest.raises(WeightsMissing, match=r"sk_model\.pth, about 17\.2 MB, from lllyasviel/Annotators"):
        annotators.load("lineart")(photo(), size=SIZE)
