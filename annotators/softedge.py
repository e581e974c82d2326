"""Soft edges for ControlNet 1.1: HED, and its safe variant in which no photo hides."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from annotators.base import Checkbox
from annotators.hed import Hed

STEPS = 2  # of grey above black in the safe variant


class SoftEdge(Hed):
    """Light edges on dark. Source: HED and HED_safe of ControlNet 1.1."""

    title = "HED soft edges"
    params = (
        Checkbox(
            "safe", "Safe", False, "Three greys only: what the photo itself leaves between the edges goes."
        ),
    )

    def detect(self, image: NDArray[np.uint8], safe: bool = False) -> NDArray[np.uint8]:
        """Find the soft edges of (h, w, 3) uint8 RGB as (h, w) uint8."""
        edges = super().detect(image)
        return coarsen(edges) if safe else edges


def coarsen(edges: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return ``int(x * (s + 1)) / s`` of edges x = (h, w) uint8 / 255: black, middle grey and white."""
    levels = edges.astype(np.int32) * (STEPS + 1) // 255
    return (levels.clip(0, STEPS) * 255 // STEPS).astype(np.uint8)
