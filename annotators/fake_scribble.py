"""Fake scribbles: the rough strokes that somebody might draw of a photo, from its soft edges."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

import annotators
from annotators.base import Annotator
from annotators.hed import Hed

STRONG = 127  # an edge fainter than this draws nothing
BLUR = 3.0  # pixels, of the edges before thinning and of the strokes after it
STROKE = 4  # a pixel of the blurred strokes above this is white

# Neighbours along each of the four directions, between which an edge must not be weaker than either.
DIRECTIONS = tuple(
    np.array(kernel, np.uint8)
    for kernel in (
        [[0, 0, 0], [1, 1, 1], [0, 0, 0]],
        [[0, 1, 0], [0, 1, 0], [0, 1, 0]],
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[0, 0, 1], [0, 1, 0], [1, 0, 0]],
    )
)


class FakeScribble(Annotator):
    """Thick white strokes on black. Source: the fake scribble demo of ControlNet 1.0."""

    title = "Fake scribbles from HED"
    resolution = Hed.resolution
    weights = Hed.weights

    def detect(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Find the soft edges of (h, w, 3) uint8 RGB as (h, w) uint8; HED may have them still."""
        edges = annotators.load("hed").detect(image)
        assert isinstance(edges, np.ndarray)
        return edges

    def refine(self, hint: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Turn soft edges (H, W, 3), at the output's size, into strokes of 0 and 255."""
        grey = np.ascontiguousarray(hint[:, :, 0])  # all three channels are alike
        strokes = cv2.GaussianBlur(thin(grey, STRONG, BLUR), (0, 0), BLUR)
        return np.repeat(np.where(strokes > STROKE, np.uint8(255), np.uint8(0))[:, :, None], 3, axis=2)

    def preview(self, hint: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Show black strokes on white."""
        return 255 - hint


def thin(edges: NDArray[np.uint8], threshold: float, sigma: float) -> NDArray[np.uint8]:
    """Keep the crests of blurred edges (h, w[, c]) uint8 that rise above ``threshold``: 255, else 0.

    A crest is no lower than both its neighbours in at least one of four directions. ``sigma`` is the blur in
    pixels. Source: nms of the ControlNet 1.0 demos.
    """
    blurred = cv2.GaussianBlur(edges.astype(np.float32), (0, 0), sigma)
    crest = np.zeros(blurred.shape, np.bool_)
    for direction in DIRECTIONS:
        crest |= cv2.dilate(blurred, direction) == blurred
    return np.where(crest & (blurred > threshold), np.uint8(255), np.uint8(0))
