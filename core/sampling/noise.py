"""Noise that depends on the seed alone: not on the device, not on how many pictures are made at once."""

from __future__ import annotations

import torch
from torch import Tensor

from core.request import MAX_SEED
from core.runtime.transfer import to_device


def image_seeds(seed: int, count: int) -> tuple[int, ...]:
    """Return the seeds of ``count`` pictures: ``seed``, ``seed + 1``, ..., 0 again after the largest."""
    return tuple((seed + i) % (MAX_SEED + 1) for i in range(count))


class ImageNoise:
    """A source of unit noise, float32, where each picture draws from its own generator on the CPU."""

    def __init__(self, seeds: tuple[int, ...], shape: tuple[int, int, int], device: torch.device) -> None:
        """Start one generator for each seed; ``shape`` is (channels, h, w) of one picture's latents."""
        self._generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        self._shape = shape
        self._device = device

    def __call__(self) -> Tensor:
        """Return the next (B, channels, h, w) of noise, on the device."""
        drawn = [torch.randn(self._shape, generator=g, dtype=torch.float32) for g in self._generators]
        return to_device(torch.stack(drawn), self._device)
