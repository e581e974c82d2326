"""Solids of the toy world: a cube, a ball, a cylinder and a cone in one paint."""

import math
import random

import numpy as np

from .palette import paint
from .shapes import Layer, grid, length

TILT = math.sin(math.radians(17))  # the camera looks down: a circle on the ground is this high over its width
FLAT = math.cos(math.radians(17))
SOLID_COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white", "black")


class Solid:
    """A solid, to be drawn at any size; `aspect` and `foot` are those of a Sprite."""

    def __init__(self, shape: str, color: np.ndarray, turn: float, slim: float) -> None:
        """Take cube, ball, cylinder or cone; RGB; a cube's turn in radians; another's height over breadth."""
        self.shape, self._color, self._turn, self._slim = shape, color, turn, slim

    @property
    def aspect(self) -> float:
        """Width over height."""
        if self.shape == "ball":
            return 1.0
        if self.shape == "cube":
            wide = math.cos(self._turn) + math.sin(self._turn)
            return wide / (FLAT + wide * TILT)
        return 1 / (self._slim * FLAT + TILT * (1.0 if self.shape == "cylinder" else 0.5))

    @property
    def foot(self) -> tuple[float, float]:
        """The left and right end of what touches the ground, as shares of the width."""
        return {"ball": (0.32, 0.68), "cube": (0.08, 0.92)}.get(self.shape, (0.02, 0.98))

    def at(self, width: int, height: int) -> np.ndarray:
        """Draw at a size in pixels, (height, width, 4) uint8 premultiplied RGBA."""
        return self._draw(width, height, relief=False).picture()

    def relief(self, width: int, height: int) -> np.ndarray:
        """Return how far the surface stands out, (height, width) float32 in pixels, 0 where nothing is."""
        drawn = self._draw(width, height, relief=True).relief
        assert drawn is not None
        return np.maximum(drawn, 0)

    def _draw(self, width: int, height: int, relief: bool) -> Layer:
        """Draw it."""
        layer = Layer(width, height, relief)
        if self.shape == "cube":
            self._draw_cube(layer, width, height)
        elif self.shape == "ball":
            x, y = grid((0, 0, width, height))
            half = width / 2 - 0.5
            squeeze = np.float32(width / height)  # rounding to pixels may not leave a square
            away = length(x - np.float32(width / 2), (y - np.float32(height / 2)) * squeeze)
            layer.solid((0, 0, width, height), away - np.float32(half), half, self._color, gloss=0.45)
        elif self.shape == "cylinder":
            self._draw_cylinder(layer, width, height)
        else:
            self._draw_cone(layer, width, height)
        return layer

    def _draw_cube(self, layer: Layer, width: int, height: int) -> None:
        """Draw the upper and the two nearer faces."""
        c, s = math.cos(self._turn), math.sin(self._turn)
        side, ground = (width - 1) / (c + s), height - 0.5
        rise = height - 1 - side * (c + s) * TILT
        far_left, far_right = ground - side * s * TILT, ground - side * c * TILT
        low = ((0.5, far_left), (0.5 + side * c, ground), (width - 0.5, far_right))
        left, front, right = ((x, y - rise) for x, y in low)
        back = (left[0] + right[0] - front[0], left[1] + right[1] - front[1])
        faces = (
            ([left, front, right, back], (0.0, -FLAT, TILT), front, side * TILT),
            ([low[0], low[1], front, left], (-s, c * TILT, c * FLAT), low[1], 0.0),
            ([low[1], low[2], right, front], (c, s * TILT, s * FLAT), low[1], 0.0),
        )
        box = (0, 0, width, height)
        x, y = grid(box)
        color = self._color[:, None, None]
        for corners, normal, anchor, lift in faces:
            distance = _polygon(corners, x, y)
            rim = np.clip(1 + distance / np.float32(0.06 * side), 0, 1)  # the edges catch the light
            rgb = color + (255 - color) * (rim * rim * np.float32(0.2))
            fall = (x - np.float32(anchor[0])) * np.float32(normal[0])
            fall = fall + (y - np.float32(anchor[1])) * np.float32(normal[1])
            stands_out = np.float32(width / 2 + lift) - fall / np.float32(max(normal[2], 0.15))
            nx, ny, nz = (np.full_like(distance, n) for n in normal)
            share = np.clip(0.5 - distance, 0, 1)
            layer.surface(box, share, (nx, ny, nz), rgb, gloss=0.0, height=stands_out)

    def _draw_cylinder(self, layer: Layer, width: int, height: int) -> None:
        """Draw the mantle and the upper disc."""
        box = (0, 0, width, height)
        x, y = grid(box)
        radius, bow = np.float32(width / 2 - 0.5), np.float32((width / 2 - 0.5) * TILT)
        top, base = np.float32(0.5) + bow, np.float32(height - 0.5) - bow
        across = np.clip((x - np.float32(width / 2)) / radius, -1, 1) + 0 * y
        bulge = np.sqrt(1 - across * across)
        mantle = np.maximum(y - base - bow * bulge, top - y)
        distance = np.maximum(np.abs(x - np.float32(width / 2)) - radius, mantle)
        normal = (across, bulge * np.float32(TILT), bulge * np.float32(FLAT))
        height_px = radius * (1 + bulge)
        layer.surface(box, np.clip(0.5 - distance, 0, 1), normal, self._color, gloss=0.3, height=height_px)
        disc = (length(across, (y - top) / bow) - 1) * bow
        rim = np.clip(1 + disc / (np.float32(0.15) * bow), 0, 1)
        color = self._color[:, None, None]
        rgb = color + (255 - color) * (rim * np.float32(0.25))
        up = (np.zeros_like(disc), np.full_like(disc, -FLAT), np.full_like(disc, TILT))
        stands_out = radius * np.float32(1) + (y - top) * np.float32(FLAT / TILT) + 0 * x
        layer.surface(box, np.clip(0.5 - disc, 0, 1), up, rgb, gloss=0.0, height=stands_out)

    def _draw_cone(self, layer: Layer, width: int, height: int) -> None:
        """Draw the mantle with a blunt tip."""
        box = (0, 0, width, height)
        x, y = grid(box)
        x = x - np.float32(width / 2)
        radius, bow = np.float32(width / 2 - 0.5), np.float32((width / 2 - 0.5) * TILT)
        blunt = np.float32(0.13) * radius
        top, base = np.float32(0.5) + blunt, np.float32(height - 0.5) - bow
        breadth = blunt + (radius - blunt) * np.clip((y - top) / (base - top), 0, 1)
        across = np.clip(x / breadth, -1, 1)
        bulge = np.sqrt(1 - across * across)
        lean = float((radius - blunt) / (base - top))
        hold = 1 / math.hypot(1, lean)
        arc = bow * np.sqrt(np.clip(1 - (x / radius) ** 2, 0, 1))
        distance = np.maximum((np.abs(x) - breadth) * np.float32(hold), np.maximum(y - base - arc, top - y))
        distance = np.minimum(distance, length(x, y - top) - blunt)
        normal = (across * np.float32(hold), bulge * np.float32(TILT - lean) * np.float32(hold) + 0 * y,
                  bulge * np.float32(hold))  # fmt: skip
        layer.surface(box, np.clip(0.5 - distance, 0, 1), normal, self._color, gloss=0.3,
                      height=radius + bulge * breadth)  # fmt: skip


def _polygon(corners: list[tuple[float, float]], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the signed distance to a convex polygon, (h, w) float32, from x (1, w) and y (h, 1)."""
    middle = (sum(p[0] for p in corners) / len(corners), sum(p[1] for p in corners) / len(corners))
    distance = np.full((y.shape[0], x.shape[1]), -np.inf, np.float32)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        nx, ny = by - ay, ax - bx
        sign = (-1 if (middle[0] - ax) * nx + (middle[1] - ay) * ny > 0 else 1) / math.hypot(nx, ny)
        side = (x - np.float32(ax)) * np.float32(nx * sign) + (y - np.float32(ay)) * np.float32(ny * sign)
        distance = np.maximum(distance, side)
    return distance


def make_solid(shape: str, word: str, rng: random.Random) -> Solid:
    """Draw a cube, ball, cylinder or cone in a colour of PAINTS, seen from a chance side."""
    slim = rng.uniform(1.0, 1.45) if shape == "cone" else rng.uniform(0.85, 1.4)
    return Solid(shape, paint(word, rng), math.radians(rng.uniform(22, 68)), slim)
