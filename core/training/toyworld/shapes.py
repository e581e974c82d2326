"""Shaded solid-looking shapes on a transparent layer, drawn from signed distances.

A shape is its signed distance in pixels (negative inside). It is lit as if it were inflated: the surface
rises from the rim as a quarter circle over `radius` pixels and is flat further inside, so a disc of that
radius is a ball and a stroke is a round limb.
"""

from collections.abc import Sequence

import cv2
import numpy as np

Box = tuple[int, int, int, int]
# Factors on the surface's slope to the right, downwards and on its facing the viewer, and what is added.
TONE = np.array([-0.26, -0.385, 0.53, 0.30], np.float32)  # the light comes from the upper left front
GLINT = np.array([-1.68, -2.52, 5.16, -5.0], np.float32)  # a soft spot where the surface mirrors it
DUSK = np.array([0.60, 0.50, 0.62], np.float32)  # what is left of a colour away from the light


class Layer:
    """A transparent picture to draw solids on; all coordinates are pixels.

    `planes` is (4, height, width) float32, premultiplied RGBA in [0, 255]. `relief` is (height, width)
    float32, how far the surface stands out towards the viewer in pixels, or None if nobody wants to know.
    """

    def __init__(self, width: int, height: int, relief: bool = False) -> None:
        """Start empty."""
        self.planes = np.zeros((4, height, width), np.float32)
        self.relief = np.zeros((height, width), np.float32) if relief else None

    def picture(self) -> np.ndarray:
        """Return what is drawn, (height, width, 4) uint8 premultiplied RGBA."""
        return np.asarray(cv2.merge([cv2.add(p, 0.0, dtype=cv2.CV_8U) for p in self.planes]))

    def box(self, points: Sequence[Sequence[float]], reach: float) -> Box | None:
        """Return the pixels within `reach` of some points (x, y), cut to the layer, or None."""
        height, width = self.planes.shape[1:]
        xs, ys = [p[0] for p in points], [p[1] for p in points]
        x0, x1 = max(0, int(min(xs) - reach - 2)), min(width, int(max(xs) + reach + 3))
        y0, y1 = max(0, int(min(ys) - reach - 2)), min(height, int(max(ys) + reach + 3))
        return (x0, y0, x1, y1) if x1 > x0 and y1 > y0 else None

    def solid(
        self, box: Box, distance: np.ndarray, radius: float | np.ndarray, rgb: np.ndarray,
        *, gloss: float = 0.25, z: float = 0.0, only: np.ndarray | None = None, soft: float = 0.0,
    ) -> None:  # fmt: skip
        """Draw a lit shape.

        Args:
            box: the pixels that `distance` covers.
            distance: (h, w) float32 signed distance in pixels.
            radius: over how many pixels the surface bends, a number or (h, w).
            rgb: its colour, (3,) or (3, h, w).
            gloss: strength of the highlight.
            z: where its middle is, in pixels towards the viewer.
            only: a mask in [0, 1], (h, w), of the part to draw.
            soft: over how many pixels the surface's ridges are smoothed.
        """
        share = np.clip(0.5 - distance, 0, 1)
        if only is not None:
            share *= only
        if soft >= 1:
            distance = cv2.blur(distance, (2 * int(soft) + 1,) * 2)
        edge = np.clip(1 + distance / np.float32(radius), 0, 1)
        rise = np.sqrt(1 - edge * edge)
        slope_x = cv2.Sobel(distance, cv2.CV_32F, 1, 0, ksize=1, scale=0.5) * edge
        slope_y = cv2.Sobel(distance, cv2.CV_32F, 0, 1, ksize=1, scale=0.5) * edge
        self.surface(box, share, (slope_x, slope_y, rise), rgb, gloss=gloss, height=z + rise * radius)

    def surface(
        self, box: Box, share: np.ndarray, normal: tuple[np.ndarray, np.ndarray, np.ndarray], rgb: np.ndarray,
        *, gloss: float, height: np.ndarray,
    ) -> None:  # fmt: skip
        """Draw a lit surface.

        Args:
            box: the pixels that the arrays cover.
            share: how much of each pixel it covers, (h, w) in [0, 1].
            normal: its unit normals: to the right, downwards, to the viewer; each (h, w).
            rgb: its colour, (3,) or (3, h, w).
            gloss: strength of the highlight.
            height: how far it stands out towards the viewer in pixels, (h, w).
        """
        slope_x, slope_y, rise = normal
        tone = slope_x * TONE[0] + slope_y * TONE[1] + rise * TONE[2] + TONE[3]
        shaded = _shaded(np.asarray(rgb, np.float32), np.clip(tone, 0, 1))
        if gloss:
            glint = np.clip(slope_x * GLINT[0] + slope_y * GLINT[1] + rise * GLINT[2] + GLINT[3], 0, 1)
            shaded += (255 - shaded) * (glint * glint * np.float32(gloss))
        x0, y0, x1, y1 = box
        under = self.planes[:, y0:y1, x0:x1]
        under[:3] += (shaded - under[:3]) * share
        under[3] += (255 - under[3]) * share
        if self.relief is not None:
            self.relief[y0:y1, x0:x1] = np.where(share > 0.5, height, self.relief[y0:y1, x0:x1])


def _shaded(rgb: np.ndarray, tone: np.ndarray) -> np.ndarray:
    """Shade a colour, (3,) or (3, h, w), from dusk (tone 0) to light (1), (3, h, w) float32 in [0, 255]."""
    if rgb.ndim == 1:
        rgb = rgb[:, None, None]
    dark, bright = rgb * DUSK[:, None, None], rgb * np.float32(0.86) + np.float32(255 * 0.14)
    return np.asarray(dark + (bright - dark) * tone, np.float32)


def length(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the length of vectors; np.hypot guards against overflow and is much slower."""
    return np.asarray(np.sqrt(x * x + y * y))


def grid(box: Box) -> tuple[np.ndarray, np.ndarray]:
    """Return the middles of the pixels of a box: x (1, w) and y (h, 1), float32."""
    x0, y0, x1, y1 = box
    return (
        np.arange(x0, x1, dtype=np.float32)[None] + np.float32(0.5),
        np.arange(y0, y1, dtype=np.float32)[:, None] + np.float32(0.5),
    )


def capsule(
    x: np.ndarray, y: np.ndarray, a: Sequence[float], b: Sequence[float], ra: float, rb: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the distance to a stroke from a to b, and the place along it in [0, 1], both (h, w).

    Its half width runs from `ra` to `rb`.
    """
    dx, dy = np.float32(b[0] - a[0]), np.float32(b[1] - a[1])
    px, py = x - np.float32(a[0]), y - np.float32(a[1])
    along = np.clip((px * dx + py * dy) / max(float(dx * dx + dy * dy), 1e-3), 0, 1)
    away = length(px - along * dx, py - along * dy)
    return away - (np.float32(ra) + np.float32(rb - ra) * along), along


def merge(a: np.ndarray, b: np.ndarray, soft: float) -> tuple[np.ndarray, np.ndarray]:
    """Join two shapes with a fillet of `soft` pixels; return the distance and the share of the first."""
    share = np.clip(0.5 + (b - a) * np.float32(0.5 / soft), 0, 1)
    return b + (a - b) * share - np.float32(soft) * share * (1 - share), share


def trapezoid(
    x: np.ndarray, y: np.ndarray, top: Sequence[float], bottom: Sequence[float],
    half_top: float, half_bottom: float, rounding: float, nip: float = 0.0,
) -> np.ndarray:  # fmt: skip
    """Return the distance to a body with round corners around the axis from `top` to `bottom`, (h, w).

    Its half width runs from `half_top` to `half_bottom`, less up to `nip` in the middle.
    """
    dx, dy = bottom[0] - top[0], bottom[1] - top[1]
    long = max(float(np.hypot(dx, dy)), 1e-3)
    ux, uy = np.float32(dx / long), np.float32(dy / long)
    px, py = x - np.float32((top[0] + bottom[0]) / 2), y - np.float32((top[1] + bottom[1]) / 2)
    v = px * ux + py * uy
    t = np.clip(v / np.float32(long) + np.float32(0.5), 0, 1)
    half = np.float32(half_top) + np.float32(half_bottom - half_top) * t - np.float32(4 * nip) * t * (1 - t)
    qx = np.abs(px * uy - py * ux) - (half - np.float32(rounding))
    qy = np.abs(v) - np.float32(max(long / 2 - rounding, 0.1))
    outside = length(np.maximum(qx, 0), np.maximum(qy, 0))
    return np.asarray(outside + np.minimum(np.maximum(qx, qy), 0) - np.float32(rounding), np.float32)
