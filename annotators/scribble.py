"""Scribbles that somebody drew: dark strokes on light paper, as they are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from annotators.base import Annotator

DARK = 127  # a pixel with a channel below this is a stroke


class Scribble(Annotator):
    """White strokes on black from a drawing on light paper. Source: the scribble demo of ControlNet 1.0."""

    title = "Scribbles"

    def detect(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Turn (h, w, 3) uint8 RGB into (h, w) uint8: 255 where any channel is dark, else 0."""
        return np.where(image.min(axis=2) < DARK, np.uint8(255), np.uint8(0))

    def preview(self, hint: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Show black strokes on white."""
        return 255 - hint
