from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import annotators
from annotators import mlsd
from annotators.nets.mlsd import MLSD, build, find_lines
from annotators.networks import NETWORKS, NetworkCache
from core.images import resize_image, to_rgb
from tests.annotators.edge_maps import ROOT, checkered, loaded, published_state, read, stored


def apart(found: NDArray[np.float32], expected: NDArray[np.float32]) -> list[int]:
    """Return the lines of either that have no equal in the other, to a tenth of a pixel, in any order."""
    gap = np.abs(found[:, None] - expected[None]).max(axis=2)
    return [*np.flatnonzero(gap.min(axis=1) > 0.1), *np.flatnonzero(gap.min(axis=0) > 0.1)]


def test_the_keys_are_those_of_the_published_file() -> None:
    published = json.loads((ROOT / "tests" / "manifests" / "mlsd.json").read_text())
    assert {key: list(value.shape) for key, value in MLSD().state_dict().items()} == published


def test_the_maps_are_the_verified_ones() -> None:
    planes = torch.ones(1, 4, 64, 96)
    planes[0, :3] = torch.tensor(checkered()).permute(2, 0, 1)
    found = loaded("mlsd", build)(planes / 127.5 - 1)
    assert found.shape == (1, 9, 32, 48)
    assert np.abs(found[0, :5, ::2, ::2].numpy() - stored("networks.npz")["mlsd"]).max() < 2e-4


@pytest.mark.parametrize("case", ["few", "many"])
def test_lines_are_read_off_and_drawn_as_in_the_original(case: str) -> None:
    maps = torch.from_numpy(stored("lines.npz")[f"{case}.tpMap"][0])
    found = find_lines(maps, 0.1, 0.1).numpy()
    expected = stored("lines.npz")[f"{case}.lines"]
    assert len(found) == len(expected) and not apart(found, expected)
    assert np.array_equal(mlsd.draw(found, (256, 320)), read(f"synth_mlsd.mlsd.{case}.png"))
    strict = mlsd.draw(find_lines(maps, 0.5, 20.0).numpy(), (256, 320))
    assert np.array_equal(strict, read(f"synth_mlsd.mlsd_t.{case}.png"))


def test_no_line_found_is_an_empty_map() -> None:
    found = find_lines(torch.from_numpy(stored("lines.npz")["none.tpMap"][0]), 0.1, 0.1)
    assert found.shape == (0, 4) and mlsd.draw(found.numpy(), (256, 320)).max() == 0
    made = annotators.load("mlsd")(np.zeros((64, 64, 3), np.uint8), size=(64, 64), value_threshold=2.0)
    assert made.hint.max() == 0 and made.preview.min() == 255


def test_a_trouble_in_the_network_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NETWORKS, "get", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("no memory")))
    with pytest.raises(RuntimeError, match="no memory"):
        mlsd.lines(np.zeros((64, 64, 3), np.uint8), 0.1, 0.1)


@pytest.mark.parametrize("photo", ["photo_camera.jpg", "toy_tent.png"])
def test_bundled_weights_find_the_lines_of_the_full_ones(photo: str) -> None:
    picture = resize_image(to_rgb(ROOT / "test_imgs" / photo), 256)
    expected = stored("photo_lines.npz")[photo.partition(".")[0]]
    found = mlsd.lines(picture, 0.1, 0.1)
    assert len(expected) > 10 and not apart(found, expected)


def test_the_published_file_loads_by_the_same_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTROLNET_CKPTS", str(tmp_path))
    plain = MLSD()
    plain.load_state_dict(published_state("mlsd", plain))
    torch.save(plain.state_dict(), tmp_path / "mlsd_large_512_fp32.pth")
    networks = NetworkCache()
    networks.configure(device="cpu", dtype="float32")
    x = torch.rand(1, 4, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        expected = plain.eval()(x)
        found = networks.get("mlsd", build)(x)
    assert (found - expected).abs().max() < 2e-4  # the normalisations are folded into the convolutions
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in networks.get("mlsd", build).modules())


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (17, 15), (64, 64), (75, 33)])
def test_lines_are_found_in_any_size(size: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    found = mlsd.lines(picture, 0.01, 0.01)
    assert found.ndim == 2 and found.shape[1] == 4
    assert mlsd.draw(found, size).shape == size


def test_lines_of_odd_sizes_are_in_the_pictures_own_pixels() -> None:
    picture = np.full((100, 150, 3), 255, np.uint8)
    picture[:, 75:] = 0
    upright = [line for line in mlsd.lines(picture, 0.1, 20.0) if abs(line[0] - line[2]) < 3]
    assert any(abs(line[0] - 75) < 3 and abs(line[1] - line[3]) > 60 for line in upright)


def test_the_preview_is_thicker_and_dark_on_light() -> None:
    hint = np.zeros((64, 64, 3), np.uint8)
    hint[10, 20] = 255
    preview = annotators.load("mlsd").preview(hint)
    dark = np.zeros((64, 64), np.bool_)
    dark[9:12, 19:22] = True
    assert np.array_equal(preview[:, :, 0] == 0, dark) and set(np.unique(preview)) == {0, 255}
