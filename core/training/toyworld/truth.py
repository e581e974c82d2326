"""What is true of a picture beside its colours: how near and of which class every pixel is.

Nearness is like the inverse of a distance: 0 is infinitely far, 1 is where the ground plane meets the lower
edge of the picture. On the ground it grows evenly from the row where the plane vanishes; what stands upright
has the nearness of its foot, and what is round stands out towards the viewer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

# Classes of the ADE20K benchmark that places show, counted from 0 in its order of 150.
WALL, BUILDING, SKY, FLOOR, TREE, ROAD, WINDOW, GRASS = 0, 1, 2, 3, 4, 6, 8, 9
SIDEWALK, PERSON, EARTH, TABLE, MOUNTAIN, SEA, RUG, FIELD = 11, 12, 13, 15, 16, 26, 28, 29
BOX, SAND, HILL, PLAYTHING, BALL = 41, 46, 68, 108, 119
CLASSES = 150

FOCAL = 1.0  # focal length in sides of the picture: says how much nearer the front of a thing is than its rim
STEP = 0.004  # by how much a thing is nearer than what it hides, at least
NORMAL_STRENGTH = 220.0  # nearness 1 in units of the depth network, at NORMAL_SIZE pixels a side
NORMAL_SIZE = 256
NORMAL_Z = 2 * np.pi  # the constant third component of the suite's normal detector


@dataclass(frozen=True)
class Truth:
    """The maps of a picture, each of its size.

    `depth` is float32 nearness, 0 for the sky; `segmentation` is uint8, an index 0 to 149 of ADE20K.
    """

    depth: np.ndarray
    segmentation: np.ndarray

    @cached_property
    def normals(self) -> np.ndarray:
        """Unit normals, (size, size, 3) float32: x, y and z as `depth_normals` has them."""
        return depth_normals(self.depth)


def depth_normals(depth: np.ndarray) -> np.ndarray:
    """Return unit normals of a nearness map (h, w), (h, w, 3) float32.

    The rule is that of the normal detector: x and y are the 3 x 3 Sobel derivatives of the depth network's
    output along the columns and rows, z is 2 pi. Nearness is scaled to that network's range, and by the
    picture's size, so that one scene has the same normals at any size.
    """
    raw = depth.astype(np.float32) * np.float32(NORMAL_STRENGTH * len(depth) / NORMAL_SIZE)
    x = cv2.Sobel(raw, cv2.CV_32F, 1, 0, ksize=3)
    y = cv2.Sobel(raw, cv2.CV_32F, 0, 1, ksize=3)
    normals = np.stack([x, y, np.full_like(x, NORMAL_Z)], axis=-1)
    return np.asarray(normals / np.linalg.norm(normals, axis=-1, keepdims=True), np.float32)


class Terrain:
    """The truth about a place while it is painted.

    `labels` is (size, size) uint8, `depth` (size, size) float32. What is painted next is of class `label`,
    and stands upright on the ground row `foot`, a share of the side, or lies on the ground if that is None.
    """

    def __init__(self, size: int) -> None:
        """Start with nothing but sky."""
        self.size = size
        self.labels = np.full((size, size), SKY, np.uint8)
        self.depth = np.zeros((size, size), np.float32)
        self._vanish = 1.0
        self.label = SKY
        self.foot: float | None = None

    def near(self, row: float) -> float:
        """Return the nearness of the ground at a row, a share of the side."""
        return max(0.0, (row - self._vanish) / max(1 - self._vanish, 1e-3))

    def ground(self, vanish: float) -> None:
        """Let the ground plane vanish at a row, a share of the side."""
        self._vanish = vanish
        self.rows(0, self.size)

    def rows(self, first: int, last: int) -> None:
        """Set whole rows of pixels."""
        self.labels[first:last] = self.label
        middles = (np.arange(first, last) + 0.5) / self.size
        plane = [self.near(row if self.foot is None else self.foot) for row in middles]
        self.depth[first:last] = np.array(plane, np.float32)[:, None]

    def polygon(self, corners: np.ndarray, shift: int) -> None:
        """Set a polygon, (n, 2) int32 in 1 / 2**shift pixels."""
        cv2.fillPoly(self.labels, [corners], self.label, cv2.LINE_8, shift)
        if self.foot is not None:
            cv2.fillPoly(self.depth, [corners], self.near(self.foot), cv2.LINE_8, shift)

    def ellipse(self, center: Sequence[int], axes: Sequence[int], shift: int) -> None:
        """Set an ellipse, in 1 / 2**shift pixels."""
        cv2.ellipse(self.labels, center, axes, 0, 0, 360, self.label, -1, cv2.LINE_8, shift)
        if self.foot is not None:
            near = self.near(self.foot)
            cv2.ellipse(self.depth, center, axes, 0, 0, 360, near, -1, cv2.LINE_8, shift)

    def stand(self, mask: np.ndarray, relief: np.ndarray, near: float, label: int) -> None:
        """Put a thing before what is there.

        Args:
            mask: (size, size) bool, where it is seen.
            relief: (size, size) float32, how far it stands out in pixels.
            near: nearness of its foot.
            label: its class.
        """
        self.labels[mask] = label
        shape = near * (1 + relief[mask] / np.float32(self.size * FOCAL))
        self.depth[mask] = np.maximum(shape, self.depth[mask] + np.float32(STEP))


def inflate(alpha: np.ndarray) -> np.ndarray:
    """Return a smooth round shape for an outline, from its distance to the rim.

    Args:
        alpha: (h, w) uint8.

    Returns:
        (h, w) float32, how far it stands out in pixels; a disc becomes a half ball.
    """
    mask = cv2.copyMakeBorder((alpha >= 128).astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    rim = cv2.distanceTransform(mask, cv2.DIST_L2, 5)
    radius = float(rim.max())
    shape = np.sqrt(rim * np.maximum(2 * radius - rim, 0))
    shape = cv2.GaussianBlur(shape, (0, 0), max(0.8, 0.10 * radius)) * mask
    return np.asarray(shape[1:-1, 1:-1], np.float32)
