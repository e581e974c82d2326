"""Pieces of landscape: sky, clouds, hills, grass, flowers, firs and houses."""

import math
import random

import numpy as np

from .backgrounds import SHADE, WHITE, soft_color
from .canvas import Canvas
from .palette import mix, paint
from .truth import BUILDING, WINDOW


def rgb(r: float, g: float, b: float) -> np.ndarray:
    """Write a colour."""
    return np.array([r, g, b], np.float32)


def paint_sky(canvas: Canvas, rng: random.Random, horizon: float) -> None:
    """Paint a clear blue sky, paler at the horizon."""
    blue = paint("blue", rng)
    canvas.rows(0, horizon, (mix(blue, WHITE, 0.12), mix(blue, WHITE, 0.42), mix(blue, WHITE, 0.72)))


def paint_cloud(canvas: Canvas, x: float, y: float, w: float, rng: random.Random) -> None:
    """Paint a puffy white cloud about w wide."""
    low = rgb(214, 226, 244)
    puffs = [(x + w * t, y - w * rng.uniform(0.0, 0.10), w * rng.uniform(0.15, 0.22)) for t in (-0.28, 0.30)]
    puffs.append((x + w * rng.uniform(-0.06, 0.06), y - w * 0.12, w * rng.uniform(0.22, 0.28)))
    for px, py, r in puffs:
        canvas.ellipse((px, py), (r, r * 0.86), WHITE, low)
    canvas.ellipse((x, y + w * 0.05), (w * 0.5, w * 0.13), WHITE, low)


def paint_clouds(canvas: Canvas, rng: random.Random, horizon: float) -> bool:
    """Perhaps paint one to three clouds; say whether."""
    count = rng.choice((0, 1, 2, 2, 3))
    for i in range(count):
        x = (i + rng.uniform(0.2, 0.8)) / count
        paint_cloud(canvas, x, rng.uniform(0.10, max(0.12, horizon - 0.16)), rng.uniform(0.18, 0.30), rng)
    return count > 0


def paint_ridge(
    canvas: Canvas, rng: random.Random, base: float, height: float, top: np.ndarray, bottom: np.ndarray
) -> None:
    """Paint a rolling line of hills from `base` upwards, filled below."""
    phase, waves, lean = rng.uniform(0, 6.3), rng.uniform(0.7, 1.6), rng.uniform(0, 6.3)
    xs = [i / 24 for i in range(-1, 26)]
    crest = [
        (x, base - height * (0.55 + 0.3 * math.sin(x * waves * 6.3 + phase) + 0.15 * math.sin(x * 9 + lean)))
        for x in xs
    ]
    canvas.polygon([*crest, (xs[-1], base + 0.02), (xs[0], base + 0.02)], top, bottom)


def paint_tufts(
    canvas: Canvas, rng: random.Random, horizon: float, color: np.ndarray, count: int = 14
) -> None:
    """Scatter small blades, larger nearer."""
    for _ in range(count):
        y = rng.uniform(horizon + 0.06, 1.0)
        s, x = 0.012 + 0.045 * (y - horizon), rng.random()
        lean = rng.uniform(-0.4, 0.4)
        left, right = (x - s * (0.45 - lean), y - s), (x + s * (0.4 + lean), y - s * 1.1)
        canvas.polygon([(x - s * 0.5, y), left, (x, y), right, (x + s * 0.5, y)], color)


def paint_flowers(canvas: Canvas, rng: random.Random, horizon: float) -> None:
    """Scatter small flowers."""
    colors = [paint(w, rng) for w in rng.sample(("red", "yellow", "pink", "purple", "white"), 2)]
    for _ in range(12):
        y = rng.uniform(horizon + 0.08, 0.98)
        s, x, color = 0.008 + 0.026 * (y - horizon), rng.random(), rng.choice(colors)
        canvas.ellipse((x, y), (s, s * 0.8), mix(color, WHITE, 0.15), color)
        canvas.ellipse((x, y), (s * 0.42, s * 0.34), rgb(255, 214, 80))


def paint_pines(canvas: Canvas, rng: random.Random, horizon: float, color: np.ndarray) -> None:
    """Plant far fir trees along the horizon."""
    for i in range(rng.randint(5, 10)):
        x, h = (i + rng.random()) / 9, rng.uniform(0.06, 0.13)
        for k in range(3):
            top, half = horizon - h * (1 - 0.26 * k), h * (0.16 + 0.08 * k)
            canvas.polygon(
                [(x, top), (x + half, top + h * 0.44), (x - half, top + h * 0.44)],
                mix(color, WHITE, 0.1),
                color,
            )


def paint_house(canvas: Canvas, rng: random.Random, x: float, w: float, base: float, height: float) -> None:
    """Paint a house front with a roof and windows."""
    canvas.now(BUILDING, base)
    front = soft_color(
        rng.choice(("yellow", "pink", "blue", "green", "orange", "white", "red", "purple")), rng, 0.5
    )
    roof = mix(paint(rng.choice(("red", "brown", "blue", "gray")), rng), SHADE, 0.1)
    top = base - height
    if rng.random() < 0.6:
        canvas.polygon(
            [(x - 0.012, top), (x + w / 2, top - w * 0.42), (x + w + 0.012, top)],
            mix(roof, WHITE, 0.15),
            roof,
        )
    else:
        canvas.rectangle((x - 0.006, top - 0.02), (x + w + 0.006, top), roof)
    canvas.rectangle((x, top), (x + w, base), mix(front, WHITE, 0.12), mix(front, SHADE, 0.08))
    canvas.now(WINDOW, base)
    glass, columns = rgb(150, 206, 240), 2
    for row in range(int(height / 0.11)):
        for column in range(columns):
            wx, wy = x + w * (0.16 + 0.42 * column), top + 0.03 + row * 0.11
            if wy + 0.06 < base:
                canvas.rectangle((wx, wy), (wx + w * 0.26, wy + 0.055), mix(glass, WHITE, 0.4), glass)
