"""Starting from a picture, and leaving parts of it as they are, for any sampler."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from core.sampling.samplers import Denoiser
from core.sampling.schedule import Schedule


def add_noise(x_0: Tensor, noise: Tensor, schedule: Schedule, t: float) -> Tensor:
    """Return ``x_0`` with as much of the unit ``noise`` as latents hold at time step ``t``."""
    alpha = schedule.alpha_cumprod(t)
    return math.sqrt(alpha) * x_0 + math.sqrt(1.0 - alpha) * noise


@dataclass(frozen=True, slots=True, eq=False)
class Repaint:
    """A ``Denoiser`` that another one paints with, inside a mask; outside, the estimate is ``x_0`` itself.

    ``share`` (1, 1, h, w) in [0, 1] is 1 where to paint. What the other sees outside is ``x_0`` under the
    same ``noise`` at every step, so that what it paints fits to it.
    """

    paint: Denoiser
    schedule: Schedule
    x_0: Tensor
    noise: Tensor
    share: Tensor

    def __call__(self, x_t: Tensor, t: float, step_index: int) -> Tensor:
        """Predict the noise in ``x_t`` (B, C, h, w): outside the mask, that which leaves exactly ``x_0``."""
        alpha = self.schedule.alpha_cumprod(t)
        around = add_noise(self.x_0, self.noise, self.schedule, t)
        painted = self.paint(torch.lerp(around, x_t, self.share), t, step_index)
        kept = (x_t - math.sqrt(alpha) * self.x_0) / math.sqrt(1.0 - alpha)
        return torch.lerp(kept, painted, self.share)


def latent_share(mask: NDArray[np.uint8], factor: int) -> Tensor:
    """Return the mask (H, W), 255 where to paint, as shares (1, 1, H / factor, W / factor) in [0, 1]."""
    return F.avg_pool2d(torch.from_numpy(mask).float()[None, None] / 255.0, factor)


def composite(
    painted: NDArray[np.uint8], picture: NDArray[np.uint8], mask: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """Lay (H, W, 3) ``painted`` over ``picture`` by the mask (H, W); where that is 0, not a bit changes."""
    share = mask[:, :, None].astype(np.float32) / 255.0
    mixed = picture + share * (painted.astype(np.float32) - picture)
    return np.rint(mixed).astype(np.uint8)
