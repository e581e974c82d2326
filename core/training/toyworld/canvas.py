"""A small painter of shaded, anti-aliased shapes on an RGB picture."""

from collections.abc import Sequence

import cv2
import numpy as np

from .truth import Terrain

Point = tuple[float, float]
_SUB = 4  # cv2 draws at 1/16 of a pixel


def _soft_disc(side: int = 96) -> np.ndarray:
    """Make a radial stamp, (side, side) float32: 1 in the middle, falling smoothly to 0 at the rim."""
    axis = (np.arange(side, dtype=np.float32) + 0.5) / side * 2 - 1
    radius = np.sqrt(axis[None] ** 2 + axis[:, None] ** 2)
    fall = np.clip(1 - radius, 0, 1)
    return np.asarray(fall * fall * (3 - 2 * fall), np.float32)


SOFT_DISC = _soft_disc()


def _ink(color: np.ndarray) -> tuple[float, ...]:
    """Return a colour as cv2 wants it."""
    return tuple(float(value) for value in np.clip(np.rint(color), 0, 255))


class Canvas:
    """A square picture to paint on; all coordinates and lengths are shares of its side.

    `image` is (size, size, 3) uint8 RGB; colours are (3,) float32 in [0, 255]. `terrain` is the truth about
    what was painted, or None if nobody asked for it; the picture is the same either way.
    """

    def __init__(self, size: int, truth: bool = False) -> None:
        """Start black."""
        self.size = size
        self.terrain = Terrain(size) if truth else None
        self.image = np.zeros((size, size, 3), np.uint8)

    def ground(self, vanish: float) -> None:
        """Say at which row the ground plane vanishes, as a share of the side."""
        if self.terrain is not None:
            self.terrain.ground(vanish)

    def now(self, label: int, foot: float | None = None) -> None:
        """Say of which class is what is painted next, and the ground row it stands on if it is upright."""
        if self.terrain is not None:
            self.terrain.label, self.terrain.foot = label, foot

    def rows(self, y0: float, y1: float, colors: Sequence[np.ndarray]) -> None:
        """Fill the rows from y0 to y1 with a vertical gradient through evenly spaced colours."""
        first, last = max(0, round(y0 * self.size)), min(self.size, round(y1 * self.size))
        if last > first:
            self.image[first:last] = self._ramp(last - first, colors).astype(np.uint8)
            if self.terrain is not None:
                self.terrain.rows(first, last)

    def polygon(self, points: Sequence[Point], top: np.ndarray, bottom: np.ndarray | None = None) -> None:
        """Fill a polygon, shaded from `top` to `bottom` over its height."""
        corners = np.array(points, np.float32) * self.size
        fixed = np.rint((corners - 0.5) * (1 << _SUB)).astype(np.int32)
        if self.terrain is not None:
            self.terrain.polygon(fixed, _SUB)
        if bottom is None:  # cv2 paints one colour itself, several times as fast
            cv2.fillPoly(self.image, [fixed], _ink(top), cv2.LINE_AA, _SUB)
            return
        box = self._box(corners.min(axis=0), corners.max(axis=0))
        if box is None:
            return
        x0, y0, x1, y1 = box
        mask = np.zeros((y1 - y0, x1 - x0), np.uint8)
        fixed = np.rint((corners - (x0 + 0.5, y0 + 0.5)) * (1 << _SUB)).astype(np.int32)
        cv2.fillPoly(mask, [fixed], 255, cv2.LINE_AA, _SUB)
        self._fill(box, mask, top, bottom)

    def ellipse(self, center: Point, axes: Point, top: np.ndarray, bottom: np.ndarray | None = None) -> None:
        """Fill an ellipse with half axes `axes`, shaded from `top` to `bottom`."""
        (cx, cy), (rx, ry) = center, axes
        scale = self.size * (1 << _SUB)
        half = (round(rx * scale), round(ry * scale))
        spot = (round(cx * scale - (1 << _SUB) / 2), round(cy * scale - (1 << _SUB) / 2))
        if self.terrain is not None:
            self.terrain.ellipse(spot, half, _SUB)
        if bottom is None:
            cv2.ellipse(self.image, spot, half, 0, 0, 360, _ink(top), -1, cv2.LINE_AA, _SUB)
            return
        low, high = np.array([cx - rx, cy - ry]) * self.size, np.array([cx + rx, cy + ry]) * self.size
        box = self._box(low, high)
        if box is None:
            return
        x0, y0, x1, y1 = box
        mask = np.zeros((y1 - y0, x1 - x0), np.uint8)
        middle = (round(cx * scale - (x0 + 0.5) * (1 << _SUB)), round(cy * scale - (y0 + 0.5) * (1 << _SUB)))
        cv2.ellipse(mask, middle, half, 0, 0, 360, 255, -1, cv2.LINE_AA, _SUB)
        self._fill(box, mask, top, bottom)

    def rectangle(self, a: Point, b: Point, top: np.ndarray, bottom: np.ndarray | None = None) -> None:
        """Fill the upright rectangle with corners a and b."""
        self.polygon([a, (b[0], a[1]), b, (a[0], b[1])], top, bottom)

    def line(self, a: Point, b: Point, color: np.ndarray, width: float = 0.005) -> None:
        """Draw a straight stroke `width` wide."""
        along = np.array(b) - np.array(a)
        side = np.array([-along[1], along[0]]) / max(float(np.hypot(*along)), 1e-6) * width / 2
        ends = [np.array(a) + side, np.array(b) + side, np.array(b) - side, np.array(a) - side]
        self.polygon([(float(p[0]), float(p[1])) for p in ends], color)

    def glow(self, center: Point, axes: Point, color: np.ndarray, strength: float) -> None:
        """Blend a soft spot of `color` in; a dark colour makes a shadow. `strength` in [0, 1]."""
        (cx, cy), (rx, ry) = center, axes
        x0, x1 = round((cx - rx) * self.size), round((cx + rx) * self.size)
        y0, y1 = round((cy - ry) * self.size), round((cy + ry) * self.size)
        if x1 - x0 < 2 or y1 - y0 < 2:
            return
        stamp = cv2.resize(SOFT_DISC, (x1 - x0, y1 - y0), interpolation=cv2.INTER_LINEAR)
        left, top = max(0, x0), max(0, y0)
        right, bottom = min(self.size, x1), min(self.size, y1)
        if right <= left or bottom <= top:
            return
        share = stamp[top - y0 : bottom - y0, left - x0 : right - x0, None] * np.float32(strength)
        self._blend((left, top, right, bottom), share, color)

    def band(self, y0: float, image: np.ndarray) -> None:
        """Put full-width rows of RGB values, (h, size, 3), below y0."""
        first = round(y0 * self.size)
        self.image[first : first + len(image)] = np.clip(image, 0, 255)
        if self.terrain is not None:
            self.terrain.rows(first, min(first + len(image), self.size))

    def _box(self, low: np.ndarray, high: np.ndarray) -> tuple[int, int, int, int] | None:
        """Return the pixels around a shape, cut to the picture, or None."""
        x0, y0 = np.maximum(np.floor(low).astype(int) - 1, 0)
        x1, y1 = np.minimum(np.ceil(high).astype(int) + 1, self.size)
        return (int(x0), int(y0), int(x1), int(y1)) if x1 > x0 and y1 > y0 else None

    def _ramp(self, count: int, colors: Sequence[np.ndarray]) -> np.ndarray:
        """Return (count, 1, 3) float32 running through the colours."""
        stops = np.array(colors if len(colors) > 1 else (colors[0], colors[0]), np.float32)
        at = (np.arange(count, dtype=np.float32) + np.float32(0.5)) * np.float32((len(stops) - 1) / count)
        low = np.minimum(at.astype(int), len(stops) - 2)
        return np.asarray(stops[low] + (stops[low + 1] - stops[low]) * (at - low)[:, None])[:, None]

    def _fill(
        self, box: tuple[int, int, int, int], mask: np.ndarray, top: np.ndarray, bottom: np.ndarray
    ) -> None:
        """Blend a masked vertical gradient into the box."""
        share = mask[..., None] * np.float32(1 / 255)
        self._blend(box, share, self._ramp(len(mask), (top, bottom)))

    def _blend(self, box: tuple[int, int, int, int], share: np.ndarray, color: np.ndarray) -> None:
        """Move the box's pixels towards `color` by `share`, (h, w, 1) in [0, 1]."""
        x0, y0, x1, y1 = box
        under = self.image[y0:y1, x0:x1].astype(np.float32)
        under += (color - under) * share
        self.image[y0:y1, x0:x1] = under + np.float32(0.5)
