"""From pictures to latents and back, and what unfinished latents look like."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.images import hint_to_tensor, to_uint8
from core.models.strips import decode_in_strips
from core.models.vae import AutoencoderKL
from core.runtime.placement import Placement
from core.runtime.transfer import to_device
from core.sampling.guidance import check_finite
from core.sampling.preview import LatentPreview

log = logging.getLogger(__name__)

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
        """Compute on ``device`` in ``dtype``; ``strips`` as in ``ControlNetPipeline``.

        What leaves float16's range is computed again in float32.
        """
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
            return self._in_range(lambda dtype: self._encode_one(values, dtype), "after encoding the picture")

    def decode(self, latents: Tensor) -> tuple[NDArray[np.uint8], ...]:
        """Return the pictures of ``latents`` (B, C, h, w), one at a time to bound the memory.

        Raises:
            NumericalError: one is not finite.
        """
        images: list[NDArray[np.uint8]] = []
        with self._placement.in_use(self._vae):
            for x_0 in latents.split(1):
                images += to_uint8(self._in_range(partial(self._decode_one, x_0), "after decoding"))
        return tuple(images)

    def _in_range(self, compute: Callable[[torch.dtype], Tensor], when: str) -> Tensor:
        """Compute in the autoencoder's format and, where that is float16 and too small, in float32."""
        values = compute(self._dtype)
        if self._dtype == torch.float16 and not bool(torch.isfinite(values).all()):
            log.info("A picture left float16's range %s: computed again in float32.", when)
            with self._in_float32():
                values = compute(torch.float32)
        check_finite(values, when, self._dtype)
        return values

    @contextmanager
    def _in_float32(self) -> Iterator[None]:
        """Have float16 weights in float32 for a while; those of another format stay."""
        if self._dtype != torch.float16:
            yield
            return
        try:
            self._turn_to(torch.float32)
            yield
        finally:
            self._turn_to(torch.float16)

    def _turn_to(self, dtype: torch.dtype) -> None:
        with torch.inference_mode(False):  # weights made in inference mode could not be moved outside of it
            self._vae.to(dtype)

    def _encode_one(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        return self._vae.encode(to_device(values, self._device).to(dtype)).float()

    def _decode_one(self, latents: Tensor, dtype: torch.dtype) -> Tensor:
        vae, strips = self._vae, self._strips
        x_0 = latents.to(dtype, memory_format=torch.channels_last)
        if strips is None:
            strips = self._placement.low_vram or max(x_0.shape[2:]) * vae.factor > STRIPS_ABOVE
        return decode_in_strips(vae, x_0, rest=self._placement.rest_device) if strips else vae.decode(x_0)

    def preview(self) -> LatentPreview:
        """Return the preview of this autoencoder, fitted when first asked for."""
        if self._preview is None:
            with self._placement.in_use(self._vae), self._in_float32():
                self._preview = LatentPreview(self._vae)
        return self._preview
