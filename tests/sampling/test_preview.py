"""Previews show the colours of the picture to come, and take a small share of the time."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from core.models.vae import AutoencoderKL
from core.sampling.preview import LatentPreview, Throttle
from tests.tiny_model import latents, tiny_config, tiny_networks


class LinearVAE(AutoencoderKL):
    """Its latents are a known mix of the colours, so that the preview must give exactly these back."""

    def encode(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        pooled = F.avg_pool2d(image, 8)
        mix = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, -1.0], [3.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
        return torch.einsum("bchw,kc->bkhw", pooled, mix) + 0.3


def test_the_preview_of_a_linear_autoencoder_is_exact() -> None:
    vae = LinearVAE(tiny_config().vae)
    colour = torch.tensor([0.5, -0.25, 0.75])
    image = colour[None, :, None, None].expand(1, 3, 64, 64)
    preview = LatentPreview(vae)(vae.encode(image))
    assert preview.shape == (32, 32, 3)
    wanted = (colour * 127.5 + 127.5).numpy()
    assert np.abs(preview.astype(float) - wanted).max() <= 1


def test_the_preview_keeps_places_and_shows_the_first_picture() -> None:
    vae = LinearVAE(tiny_config().vae)
    image = torch.full((2, 3, 64, 64), -1.0)
    image[0, :, :32, 32:] = 1.0  # white in the upper right
    preview = LatentPreview(vae)(vae.encode(image)).mean(axis=2)
    assert preview[:12, 20:].min() > 250
    assert preview[20:].max() < 5 and preview[:, :12].max() < 5


def test_any_autoencoder_gives_a_picture_in_range() -> None:
    with torch.inference_mode():
        preview = LatentPreview(tiny_networks(tiny_config()).vae)(latents(1) * 50)
    assert preview.shape == (32, 32, 3) and preview.dtype == np.uint8


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_previews_take_at_most_about_their_share_of_the_time() -> None:
    clock = Clock()
    drawn: list[float] = []

    def draw(x_0: Tensor) -> NDArray[np.uint8]:
        drawn.append(clock.now)
        clock.now += 1.0  # a slow preview: a second each
        return np.zeros((1, 1, 3), np.uint8)

    throttle = Throttle(draw, share=0.05, clock=clock)
    shown = []
    for _ in range(1000):
        clock.now += 0.1  # a step
        shown.append(throttle(latents()) is not None)
    assert shown[0]
    assert sum(shown) == len(drawn)
    assert len(drawn) * 1.0 <= 0.05 * clock.now + 1.0
    assert len(drawn) >= 0.04 * clock.now


def test_a_cheap_preview_is_shown_at_every_step() -> None:
    clock = Clock()

    def draw(x_0: Tensor) -> NDArray[np.uint8]:
        clock.now += 0.001
        return np.zeros((1, 1, 3), np.uint8)

    throttle = Throttle(draw, clock=clock)
    for _ in range(100):
        clock.now += 0.1
        assert throttle(latents()) is not None
