"""Rough small pictures of unfinished latents, at next to no cost."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from core.images import to_uint8
from core.models.vae import AutoencoderKL

FIT_SIDE = 128  # pixels; 256 latent pixels for about ten unknowns a colour
UPSCALE = 4  # preview pixels for a latent pixel, on each side
MAX_SHARE = 0.05  # of the sampling time


def _patches(side: int) -> Tensor:
    """Return one picture (1, 3, side, side) in [-1, 1]: flat patches above, soft gradients below."""
    generator = torch.Generator().manual_seed(0)
    flat = torch.rand(1, 3, 8, 8, generator=generator)
    soft = torch.rand(1, 3, 6, 6, generator=generator)
    upper = F.interpolate(flat, size=(side, side))[:, :, : side // 2]
    lower = F.interpolate(soft, size=(side, side), mode="bilinear")[:, :, side // 2 :]
    return torch.cat([upper, lower], dim=2) * 2.0 - 1.0


class LatentPreview:
    """A linear map from latents to colours, fitted to the autoencoder itself, so that it suits any model."""

    def __init__(self, vae: AutoencoderKL) -> None:
        """Fit, by least squares, the latents of a made-up picture to its colours, averaged to their size."""
        weight = next(vae.parameters())
        picture = _patches(FIT_SIDE)
        latents = vae.encode(picture.to(weight)).float().cpu()
        colours = F.avg_pool2d(picture, vae.factor)
        known = latents[0].flatten(1).T.double()  # (h w, C)
        known = torch.cat([known, torch.ones(len(known), 1)], dim=1)  # (h w, C + 1): the last is the offset
        wanted = colours[0].flatten(1).T.double()  # (h w, 3)
        solution = torch.linalg.lstsq(known, wanted, driver="gelsd").solution.float()  # (C + 1, 3)
        self._matrix, self._offset = solution[:-1], solution[-1]

    def __call__(self, x_0: Tensor) -> NDArray[np.uint8]:
        """Return (4h, 4w, 3) uint8 RGB of the first of the latents (B, C, h, w)."""
        latents = x_0[0].float().cpu()
        colours = torch.einsum("chw,cr->rhw", latents, self._matrix) + self._offset[:, None, None]
        return to_uint8(F.interpolate(colours[None], scale_factor=UPSCALE, mode="bilinear"))[0]


class Throttle:
    """Calls ``draw`` as long as that takes less than a share of the time gone by; else gives None."""

    def __init__(
        self,
        draw: Callable[[Tensor], NDArray[np.uint8]],
        share: float = MAX_SHARE,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Start the clock, in seconds."""
        self._draw, self._share, self._clock = draw, share, clock
        self._began = clock()
        self._spent = 0.0

    def __call__(self, x_0: Tensor) -> NDArray[np.uint8] | None:
        """Return a preview of ``x_0``, or None where the last ones cost too much."""
        now = self._clock()
        if self._spent > self._share * (now - self._began):
            return None
        preview = self._draw(x_0)
        self._spent += self._clock() - now
        return preview
