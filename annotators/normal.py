"""Normals from the depth that MiDaS finds: which way each surface faces."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

import annotators
from annotators.base import Annotator, Slider
from annotators.depth import DEMO_WEIGHTS, RESOLUTION, SUITS, WEIGHTS, Depth, scaled
from annotators.maps import NORMALS

STRENGTH = 2 * np.pi  # the third component before scaling to length 1: larger is flatter


class Normal(Annotator):
    """Normals whose red and blue are swapped, as ControlNet 1.0 was trained; shown unswapped.

    Source: the normal demo of ControlNet 1.0.
    """

    title = "Normals from MiDaS depth"
    params = (
        Slider(
            "background_threshold",
            "Normal background threshold",
            0.0,
            1.0,
            0.4,
            0.01,
            "What is farther than this share of the depth counts as flat.",
        ),
    )
    more_params = (Slider("alpha", "alpha", 0.1, 20.0, STRENGTH, 0.01, "Larger is flatter."),)
    resolution = replace(RESOLUTION, label="Normal Resolution")
    auto_range = SUITS
    weights = WEIGHTS
    demo_weights = DEMO_WEIGHTS
    kind = NORMALS

    def detect(
        self, image: NDArray[np.uint8], *, background_threshold: float, alpha: float
    ) -> NDArray[np.uint8]:
        """Find the normals of (h, w, 3) uint8 RGB as (h, w, 3) uint8, for the ControlNet."""
        depth = annotators.load("depth")
        assert isinstance(depth, Depth)
        found = normals_from_depth(depth.inverse_depth(image), background_threshold, alpha)
        return np.ascontiguousarray(found[:, :, ::-1])

    def preview(self, hint: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Show x as red, y as green and z, towards the viewer, as blue."""
        return np.ascontiguousarray(hint[:, :, ::-1])


def normals_from_depth(
    depth: NDArray[np.float32], background_threshold: float, alpha: float = STRENGTH
) -> NDArray[np.uint8]:
    """Return normals (h, w, 3) uint8, x, y, z in 0 to 255, of inverse depth (h, w) float32.

    x and y are the 3 x 3 Sobel derivatives, 0 where the depth scaled to [0, 1] is below
    ``background_threshold``; z is ``alpha``. Source: MidasDetector of the ControlNet 1.0 demos.
    """
    x = cv2.Sobel(depth, cv2.CV_32F, 1, 0, ksize=3)
    y = cv2.Sobel(depth, cv2.CV_32F, 0, 1, ksize=3)
    far = scaled(depth) < background_threshold
    x[far], y[far] = 0, 0
    normals = np.stack([x, y, np.full_like(x, alpha)], axis=2)
    normals /= np.sqrt((normals**2).sum(axis=2, keepdims=True))
    return (normals * np.float32(127.5) + np.float32(127.5)).clip(0, 255).astype(np.uint8)
