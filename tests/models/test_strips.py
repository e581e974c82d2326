"""Decoding in strips gives the picture of the plain decoder, in less memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from core.config import VAEConfig, load_config
from core.images import resize, to_rgb, to_uint8
from core.models.strips import Strips, decode_in_strips
from core.models.vae import AutoencoderKL
from core.weights.checkpoint import load_base
from tests.bench.live import LiveBytes
from tests.deterministic_weights import fill_module

ROOT = Path(__file__).parents[2]
ONE_ROW = 1  # byte: too few for any strip, so that each has one row of latents
LIKE_SD = VAEConfig(ch=32)  # Stable Diffusion's, a quarter as wide
DEMO = load_config("demo").vae


def made(config: VAEConfig) -> AutoencoderKL:
    vae = AutoencoderKL(config).eval().requires_grad_(False)
    fill_module(vae, "first_stage_model.", "strips")
    return vae


def latents(config: VAEConfig, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(height)
    return torch.randn(1, config.embed_dim, height, width, generator=generator) * config.scale_factor


def levels(picture: Tensor) -> np.ndarray:
    return to_uint8(picture)[0].astype(np.int16)


@pytest.mark.parametrize("config", [LIKE_SD, DEMO], ids=["like Stable Diffusion", "like the demo model"])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 16), (16, 5)])
@pytest.mark.parametrize("strip_bytes", [ONE_ROW, 2**17, 2**40])
@torch.inference_mode()
def test_strips_of_any_height_give_the_plain_picture(
    config: VAEConfig, height: int, width: int, strip_bytes: int
) -> None:
    vae, x_0 = made(config), latents(config, height, width)
    plain, strips = vae.decode(x_0), decode_in_strips(vae, x_0, strip_bytes=strip_bytes)
    assert strips.shape == plain.shape
    torch.testing.assert_close(strips, plain, atol=3e-5, rtol=0)
    assert np.abs(levels(strips) - levels(plain)).max() <= 1


@pytest.fixture(scope="module")
def demo() -> AutoencoderKL:
    path = ROOT / "ckpts" / "demo" / "base.safetensors"
    if not path.is_file():
        pytest.skip("The demo model's weights are not here.")
    return load_base(load_config("demo"), path, device=torch.device("cpu"), dtype=torch.float32).vae


@torch.inference_mode()
def test_the_demo_models_pictures_differ_by_no_more_than_rounding(demo: AutoencoderKL) -> None:
    picture = resize(to_rgb(ROOT / "test_imgs" / "toy_fox.png"), (192, 256))
    x_0 = demo.float().encode(torch.from_numpy(picture.copy()).permute(2, 0, 1)[None] / 127.5 - 1.0)
    exact = levels(demo.decode(x_0))
    assert np.abs(levels(decode_in_strips(demo, x_0, strip_bytes=2**18)) - exact).max() <= 1

    # bfloat16 alone moves a picture by more than strips do: they must lie as near to the exact one.
    vae, x_0 = demo.to(torch.bfloat16), x_0.to(torch.bfloat16)
    whole, strips = levels(vae.decode(x_0)), levels(decode_in_strips(vae, x_0, strip_bytes=2**18))
    assert np.abs(strips - exact).mean() <= 1.05 * np.abs(whole - exact).mean()
    assert np.abs(strips - exact).max() <= np.abs(whole - exact).max() + 1
    assert np.abs(strips - whole).mean() < 0.1


@torch.inference_mode()
def test_without_the_neighbours_rows_or_the_whole_maps_moments_seams_would_show() -> None:
    vae, x_0 = made(LIKE_SD), latents(LIKE_SD, 16, 8)
    halves = torch.cat([vae.decode(half) for half in x_0.split(8, dim=2)], dim=2)
    assert np.abs(levels(halves) - levels(vae.decode(x_0))).max() > 20


def test_moments_of_strips_are_those_of_the_whole_map() -> None:
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(1, 12, 11, 7, generator=generator) * 0.01 + 30.0  # the mean far above the deviation
    strips = Strips(groups=3, rest=torch.device("cpu"))
    for strip in whole.split([1, 6, 4], dim=2):
        strips.append(strip)
    mean, variance = strips.moments()
    groups = whole.double().view(3, -1)
    torch.testing.assert_close(mean, groups.mean(dim=1), atol=1e-6, rtol=0)
    torch.testing.assert_close(variance, groups.var(dim=1, correction=0), atol=0, rtol=1e-3)


def test_a_window_holds_the_nearest_row_of_each_neighbour() -> None:
    whole = torch.arange(10.0).view(1, 1, 10, 1)
    strips = Strips(groups=1, rest=torch.device("cpu"))
    for strip in whole.split(4, dim=2):
        strips.append(strip)
    seen = list(strips.windows(torch.device("cpu"), consume=True))
    rows = [(window.flatten().tolist(), above, below) for window, above, below in seen]
    assert rows == [([0, 1, 2, 3, 4], 0, 1), ([3, 4, 5, 6, 7, 8], 1, 1), ([7, 8, 9], 1, 0)]
    assert strips.rows == [None, None, None]


@torch.inference_mode()
def test_strips_take_less_than_two_thirds_of_the_memory() -> None:
    vae, x_0 = made(LIKE_SD), latents(LIKE_SD, 20, 20)
    with LiveBytes() as plain:
        vae.decode(x_0)
    with LiveBytes() as strips:
        decode_in_strips(vae, x_0, strip_bytes=2**19)
    assert strips.peak < plain.peak * 2 / 3


@torch.inference_mode()
def test_no_layer_is_given_more_than_a_strip() -> None:
    vae, x_0 = made(LIKE_SD), latents(LIKE_SD, 32, 8)
    seen: list[int] = []
    for layer in vae.decoder.up.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_pre_hook(lambda m, args: seen.append(args[0].numel()))
    limit = 2**18
    decode_in_strips(vae, x_0, strip_bytes=limit)
    with_neighbours = 1.5  # a row above and below, and twice that after an enlargement
    assert max(seen) * x_0.element_size() <= limit * with_neighbours
