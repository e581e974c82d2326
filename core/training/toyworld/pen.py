"""Drawing the parts of a figure, given in shares of its height."""

from collections.abc import Callable

import numpy as np

from .shapes import Layer, capsule, grid, length, merge, trapezoid

Projection = Callable[[np.ndarray], tuple[float, float]]


class Pen:
    """Draws parts given in shares of a figure's height."""

    def __init__(self, layer: Layer, scale: float, pixel: Projection) -> None:
        """Take pixels per unit and the projection to x, y in pixels."""
        self.layer, self.scale, self.pixel = layer, scale, pixel

    def stroke(
        self, a: np.ndarray, b: np.ndarray, ra: float, rb: float, color: np.ndarray, gloss: float = 0.25
    ) -> None:
        """Draw a round stroke."""
        pa, pb, k = self.pixel(a), self.pixel(b), self.scale
        if box := self.layer.box((pa, pb), max(ra, rb) * k):
            distance, along = capsule(*grid(box), pa, pb, ra * k, rb * k)
            radius = (ra + (rb - ra) * along) * np.float32(k)
            self.layer.solid(box, distance, radius, color, gloss=gloss, z=float(a[2] + b[2]) / 2 * k)

    def limb(
        self, joints: tuple[np.ndarray, np.ndarray, np.ndarray], radii: tuple[float, float, float],
        cloth: np.ndarray, skin: np.ndarray, cut: float, end: tuple[np.ndarray, float] | None = None,
    ) -> None:  # fmt: skip
        """Draw an arm or leg, clothed from 0 (its root) up to `cut` (1 is its middle joint, 2 its end)."""
        k = self.scale
        a, b, c = (self.pixel(p) for p in joints)
        points = [a, b, c] if end is None else [a, b, c, self.pixel(end[0])]
        box = self.layer.box(points, max(radii) * k)
        if box is None:
            return
        x, y = grid(box)
        ra, rb, rc = (np.float32(r * k) for r in radii)
        upper, t = capsule(x, y, a, b, ra, rb)
        lower, u = capsule(x, y, b, c, rb, rc)
        distance, share = merge(upper, lower, float(rb) * 0.35)
        radius = (ra + (rb - ra) * t) * share + (rb + (rc - rb) * u) * (1 - share)
        place = t * share + (1 + u) * (1 - share)
        if end is not None:
            hand = np.float32(end[1] * k)
            px, py = points[3]
            ball = length(x - np.float32(px), y - np.float32(py)) - hand
            distance, near = merge(ball, distance, float(hand) * 0.3)
            radius = hand * near + radius * (1 - near)
        joint = 0 if cut < 1 else 1
        (ax, ay), (bx, by) = points[joint], points[joint + 1]
        sharp = np.float32(max(float(np.hypot(bx - ax, by - ay)), 2.0))
        bare = np.clip((place - np.float32(cut)) * sharp + np.float32(0.5), 0, 1)
        rgb = cloth[:, None, None] + (skin - cloth)[:, None, None] * bare
        z = float(joints[0][2] + joints[1][2] + joints[2][2]) / 3 * k
        self.layer.solid(box, distance, radius, rgb, gloss=0.16, z=z)

    def body(
        self, top: np.ndarray, bottom: np.ndarray, half_top: float, half_bottom: float, rounding: float,
        nip: float, color: np.ndarray,
    ) -> None:  # fmt: skip
        """Draw a trunk or a skirt."""
        k, pa, pb = self.scale, self.pixel(top), self.pixel(bottom)
        widest = max(half_top, half_bottom)
        if box := self.layer.box((pa, pb), widest * k):
            distance = trapezoid(*grid(box), pa, pb, half_top * k, half_bottom * k, rounding * k, nip * k)
            self.layer.solid(box, distance, widest * 0.75 * k, color, gloss=0.12,
                             soft=widest * 0.22 * k, z=float(top[2] + bottom[2]) / 2 * k)  # fmt: skip
