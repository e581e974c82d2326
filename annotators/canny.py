"""Canny edges: where brightness changes sharply."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from annotators.base import Annotator, Slider


class Canny(Annotator):
    """White edges, one pixel wide, on black. Source: OpenCV's Canny, as in the ControlNet 1.0 demo."""

    title = "Canny edges"
    params = (
        Slider("low_threshold", "Canny low threshold", 1, 255, 100, 1, "Edges below this never count."),
        Slider("high_threshold", "Canny high threshold", 1, 255, 200, 1, "Edges above this always count."),
    )

    def detect(
        self, image: NDArray[np.uint8], *, low_threshold: int, high_threshold: int
    ) -> NDArray[np.uint8]:
        """Find the edges of (h, w, 3) uint8 RGB as (h, w) uint8, 0 or 255; OpenCV sorts the thresholds."""
        return np.asarray(cv2.Canny(image, low_threshold, high_threshold), dtype=np.uint8)

    def preview(self, hint: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Show black edges on white."""
        return 255 - hint
