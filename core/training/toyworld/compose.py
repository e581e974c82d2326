"""Putting a sprite into a picture: shadow on the ground, waterline, premultiplied blending."""

import numpy as np

from .canvas import Canvas
from .sprites import Sprite

SHADOW = np.array([18, 14, 36], np.float32)
FOAM = np.array([255, 255, 255], np.float32)


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
    canvas: Canvas, index_map: np.ndarray, sprite: Sprite, box: tuple[int, int, int, int], depth: int, *,
    flipped: bool, stand: str, tint: tuple[float, float, float], shadow: float,
) -> None:  # fmt: skip
    """Blend a sprite into `canvas` and write `depth` into `index_map` where it hides what is behind.

    Args:
        canvas: the picture, changed in place.
        index_map: (size, size) uint8, changed in place.
        sprite: the picture of the thing.
        box: left, top, width and height in pixels, all inside the picture.
        depth: its number in the index map, from 1.
        flipped: mirror it.
        stand: ground (casts a shadow), air, or water (its lowest part is under the water).
        tint: factors on RGB.
        shadow: darkness of the shadow, 0 to 1.
    """
    x0, y0, width, height = box
    foot = sprite.foot
    cut = sprite.at(width, height)
    if flipped:
        cut, foot = cut[:, ::-1], (1 - foot[1], 1 - foot[0])
    if stand == "ground":
        _shadow(canvas, box, foot, shadow)
    layer = cut.astype(np.float32)
    if stand == "water":
        sunk = max(2, height // 9)
        layer[-sunk:] *= np.linspace(1, 0, sunk, dtype=np.float32)[:, None, None]
        middle = (x0 + width / 2) / canvas.size, (y0 + height * 0.95) / canvas.size
        canvas.glow(middle, (width * 0.72 / canvas.size, height * 0.12 / canvas.size), SHADOW, 0.35)
        canvas.glow(middle, (width * 0.60 / canvas.size, height * 0.07 / canvas.size), FOAM, 0.5)
    layer[..., :3] *= np.array(tint, np.float32)
    under = canvas.image[y0 : y0 + height, x0 : x0 + width]
    blended = under * (1 - layer[..., 3:] * np.float32(1 / 255)) + layer[..., :3]
    np.minimum(blended, 255, out=blended)
    canvas.image[y0 : y0 + height, x0 : x0 + width] = blended + np.float32(0.5)
    index_map[y0 : y0 + height, x0 : x0 + width][layer[..., 3] >= 128] = depth
