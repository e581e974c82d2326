"""From pictures to latents and back, and what unfinished latents look like."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.images import hint_to_tensor, to_uint8
from core.models.strips import decode_in_strips
from core.models.vae import AutoencoderKL
from core.runtime.placement import Placement
from core.sampling.guidance import check_finite
from core.sampling.preview import LatentPreview

STRIPS_ABOVE = 1024  # px on a side


class PictureCoder:
    """An autoencoder that is brought to the device for as long as it works."""

    def __init__(
        self,
        vae: AutoencoderKL,
        placement: Placement,
        device: torch.device,
        dtype: torch.dtype,
        strips: bool | None = None,
    ) -> None:
        """Compute on ``device`` in ``dtype``; ``strips`` as in ``ControlNetPipeline``."""
        self._vae, self._placement, self._device, self._dtype = vae, placement, device, dtype
        self._strips = strips
        self._preview: LatentPreview | None = None

    def encode(self, picture: NDArray[np.uint8]) -> Tensor:
        """Return the latents (1, C, h, w), float32, of a picture (H, W, 3) uint8 RGB.

        Raises:
            NumericalError: they are not finite.
        """
        values = hint_to_tensor(picture) * 2.0 - 1.0
        with self._placement.in_use(self._vae):
            x_0 = self._vae.encode(values.to(self._device, self._dtype)).float()
        check_finite(x_0, "after encoding the picture", self._dtype)
        return x_0

    def decode(self, latents: Tensor) -> tuple[NDArray[np.uint8], ...]:
        """Return the pictures of ``latents`` (B, C, h, w), one at a time to bound the memory.

        Raises:
            NumericalError: one is not finite.
        """
        images: list[NDArray[np.uint8]] = []
        with self._placement.in_use(self._vae):
            for x_0 in latents.to(self._dtype).split(1):
                picture = self._decode_one(x_0.contiguous(memory_format=torch.channels_last))
                check_finite(picture, "after decoding", self._dtype)
                images += to_uint8(picture)
        return tuple(images)

    def _decode_one(self, x_0: Tensor) -> Tensor:
        vae, strips = self._vae, self._strips
        if strips is None:
            strips = self._placement.low_vram or max(x_0.shape[2:]) * vae.factor > STRIPS_ABOVE
        return decode_in_strips(vae, x_0, rest=self._placement.rest_device) if strips else vae.decode(x_0)

    def preview(self) -> LatentPreview:
        """Return the preview of this autoencoder, fitted when first asked for."""
        if self._preview is None:
            with self._placement.in_use(self._vae):
                self._preview = LatentPreview(self._vae)
        return self._preview
