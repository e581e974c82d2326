"""Putting a thing into a picture: shadow on the ground, waterline, premultiplied blending."""

from typing import Protocol

import cv2
import numpy as np

from .canvas import Canvas
from .truth import Terrain

SHADOW = np.array([18, 14, 36], np.float32)
FOAM = np.array([255, 255, 255], np.float32)


class Drawable(Protocol):
    """What can be put into a picture: a sprite, a person, a solid."""

    @property
    def aspect(self) -> float:
        """Width over height."""

    @property
    def foot(self) -> tuple[float, float]:
        """The left and right end of what touches the ground, as shares of the width."""

    def at(self, width: int, height: int) -> np.ndarray:
        """Return it at a size in pixels, (height, width, 4) uint8 premultiplied RGBA."""

    def relief(self, width: int, height: int) -> np.ndarray:
        """Return how far its surface stands out, (height, width) float32 in pixels, at least 0."""


def _shadow(
    canvas: Canvas, box: tuple[int, int, int, int], foot: tuple[float, float], strength: float
) -> None:
    """Lay a wide soft shadow and a narrow dark contact under a thing."""
    x0, y0, width, height = box
    side = float(canvas.size)
    middle, span = (x0 + width * (foot[0] + foot[1]) / 2) / side, width * (foot[1] - foot[0]) / side
    wide, bottom = max(span, 0.55 * width / side), (y0 + height) / side
    canvas.glow((middle, bottom - 0.004), (wide * 0.80, max(0.02, wide * 0.20)), SHADOW, 0.75 * strength)
    canvas.glow(
        (middle, bottom - 0.006), (max(span, 0.04) * 0.62, max(0.010, span * 0.075)), SHADOW, strength
    )


def put(
    canvas: Canvas, index_map: np.ndarray, picture: Drawable, box: tuple[int, int, int, int], depth: int, *,
    flipped: bool, stand: str, tint: tuple[float, float, float], shadow: float,
) -> None:  # fmt: skip
    """Blend a thing into `canvas` and write `depth` into `index_map` where it hides what is behind.

    Args:
        canvas: the picture, changed in place.
        index_map: (size, size) uint8, changed in place.
        picture: the thing.
        box: left, top, width and height in pixels; what is outside the picture is cut off.
        depth: its number in the index map, from 1.
        flipped: mirror it.
        stand: ground (casts a shadow), air, or water (its lowest part is under the water).
        tint: factors on RGB.
        shadow: darkness of the shadow, 0 to 1.
    """
    x0, y0, width, height = box
    foot = picture.foot
    cut = picture.at(width, height)
    if flipped:
        cut, foot = cut[:, ::-1], (1 - foot[1], 1 - foot[0])
    if stand == "ground" and y0 + height <= canvas.size:
        _shadow(canvas, box, foot, shadow)
    if stand == "water":
        cut = _sunk(canvas, cut, box)
    left, top = max(x0, 0), max(y0, 0)
    right, bottom = min(x0 + width, canvas.size), min(y0 + height, canvas.size)
    cut = np.ascontiguousarray(cut[top - y0 : bottom - y0, left - x0 : right - x0])
    lit = cv2.multiply(cut, (*tint, 1.0)) if tint != (1.0, 1.0, 1.0) else cut
    alpha = cut[..., 3]
    clear = cv2.merge([255 - alpha] * 3)
    under = canvas.image[top:bottom, left:right]
    kept = cv2.multiply(under, clear, scale=1 / 255)
    canvas.image[top:bottom, left:right] = cv2.add(kept, cv2.cvtColor(lit, cv2.COLOR_RGBA2RGB))
    index_map[top:bottom, left:right][alpha >= 128] = depth


def _sunk(canvas: Canvas, cut: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """Put the lowest part of a thing under the water and foam around it; return the new (h, w, 4) uint8."""
    x0, y0, width, height = box
    layer, sunk = cut.astype(np.float32), max(2, height // 9)
    layer[-sunk:] *= np.linspace(1, 0, sunk, dtype=np.float32)[:, None, None]
    middle = (x0 + width / 2) / canvas.size, (y0 + height * 0.95) / canvas.size
    canvas.glow(middle, (width * 0.72 / canvas.size, height * 0.12 / canvas.size), SHADOW, 0.35)
    canvas.glow(middle, (width * 0.60 / canvas.size, height * 0.07 / canvas.size), FOAM, 0.5)
    return np.asarray(layer, np.uint8)


def stand(
    terrain: Terrain, mask: np.ndarray, picture: Drawable, box: tuple[int, int, int, int], *, flipped: bool,
    near: float, label: int,
) -> None:  # fmt: skip
    """Put the truth of a thing that `put` has painted into `terrain`.

    Args:
        terrain: changed in place.
        mask: (size, size) bool, where the thing is seen.
        picture: the thing.
        box: left, top, width and height in pixels.
        flipped: it is mirrored.
        near: nearness of its foot.
        label: its class.
    """
    x0, y0, width, height = box
    shape = picture.relief(width, height)
    shape = shape[:, ::-1] if flipped else shape
    left, top = max(x0, 0), max(y0, 0)
    right, bottom = min(x0 + width, terrain.size), min(y0 + height, terrain.size)
    whole = np.zeros((terrain.size, terrain.size), np.float32)
    whole[top:bottom, left:right] = shape[top - y0 : bottom - y0, left - x0 : right - x0]
    terrain.stand(mask, whole, near, label)
