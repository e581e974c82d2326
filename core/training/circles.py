"""A data set to try training with, in the format of fill50k: circles to be filled with a colour."""

from __future__ import annotations

import json
import os
import random
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor
from tqdm import tqdm

from core.training.toyworld.palette import PAINTS

FINE = 4  # bits behind the point in OpenCV's coordinates: circles need not sit on whole pixels
OUTLINE_SHARE = 1 / 128  # of the side

# The names that CSS has, with their words apart: what a text model reads.
CSS_WORDS = """
alice blue, antique white, aqua, aquamarine, azure, beige, bisque, black, blanched almond, blue, blue
violet, brown, burly wood, cadet blue, chartreuse, chocolate, coral, cornflower blue, cornsilk, crimson,
cyan, dark blue, dark cyan, dark golden rod, dark gray, dark green, dark khaki, dark magenta, dark olive
green, dark orange, dark orchid, dark red, dark salmon, dark sea green, dark slate blue, dark slate gray,
dark turquoise, dark violet, deep pink, deep sky blue, dim gray, dodger blue, fire brick, floral white,
forest green, fuchsia, gainsboro, ghost white, gold, golden rod, gray, green, green yellow, honey dew, hot
pink, indian red, indigo, ivory, khaki, lavender, lavender blush, lawn green, lemon chiffon, light blue,
light coral, light cyan, light golden rod yellow, light gray, light green, light pink, light salmon, light
sea green, light sky blue, light slate gray, light steel blue, light yellow, lime, lime green, linen,
magenta, maroon, medium aqua marine, medium blue, medium orchid, medium purple, medium sea green, medium
slate blue, medium spring green, medium turquoise, medium violet red, midnight blue, mint cream, misty rose,
moccasin, navajo white, navy, old lace, olive, olive drab, orange, orange red, orchid, pale golden rod, pale
green, pale turquoise, pale violet red, papaya whip, peach puff, peru, pink, plum, powder blue, purple,
rebecca purple, red, rosy brown, royal blue, saddle brown, salmon, sandy brown, sea green, sea shell,
sienna, silver, sky blue, slate blue, slate gray, snow, spring green, steel blue, tan, teal, thistle,
tomato, turquoise, violet, wheat, white, white smoke, yellow, yellow green
"""

Color = tuple[int, int, int]


def css_colors() -> dict[str, Color]:
    """Return the colours of CSS by name, as (red, green, blue)."""
    names = [name.strip() for name in CSS_WORDS.replace("\n", " ").split(",")]
    return {name: _rgb(ImageColor.getrgb(name.replace(" ", ""))) for name in names}


def demo_colors() -> dict[str, Color]:
    """Return the colours that the demo model has words for, as its world paints them."""
    pixels = np.array([[PAINTS[name] for name in PAINTS]], np.float32)
    rgb = (cv2.cvtColor(pixels, cv2.COLOR_HSV2RGB)[0] * 255).round().astype(int)
    return {name: _rgb(tuple(row)) for name, row in zip(PAINTS, rgb.tolist(), strict=True)}


PALETTES = {"css": css_colors, "demo": demo_colors}


def _rgb(values: tuple[int, ...]) -> Color:
    return values[0], values[1], values[2]


@dataclass(frozen=True, slots=True)
class Circle:
    """One pair: the outline (side, side, 3) and the picture (side, side, 3), uint8 RGB, and its prompt."""

    hint: NDArray[np.uint8]
    target: NDArray[np.uint8]
    prompt: str


def draw_circle(seed: int, side: int, colors: dict[str, Color]) -> Circle:
    """Draw the pair of ``seed``: a circle of one colour on a ground of another."""
    rng = random.Random(seed)
    inside, ground = rng.sample(sorted(colors), 2)
    radius = rng.uniform(0.08, 0.32) * side
    x, y = (rng.uniform(0.6 * radius, side - 0.6 * radius) for _ in range(2))
    at = (round(x * 2**FINE), round(y * 2**FINE))
    hint = np.zeros((side, side, 3), np.uint8)
    width = max(1, round(side * OUTLINE_SHARE))
    cv2.circle(hint, at, round(radius * 2**FINE), (255, 255, 255), width, cv2.LINE_AA, FINE)
    target = np.full((side, side, 3), colors[ground], np.uint8)
    cv2.circle(target, at, round(radius * 2**FINE), colors[inside], cv2.FILLED, cv2.LINE_AA, FINE)
    return Circle(hint, target, f"{inside} circle with {ground} background")


def write_circles(output: Path, count: int, *, side: int = 512, palette: str = "css", seed: int = 0) -> None:
    """Write ``count`` pairs to ``output``: source/, target/ and, last, prompt.json.

    Raises:
        ValueError: a value is not allowed, or the folder holds another set.
    """
    if palette not in PALETTES:
        raise ValueError(f"palette is {palette!r}: give one of {', '.join(PALETTES)}.")
    if count < 1 or side < 64 or side % 64:
        raise ValueError(f"count is {count}, size is {side}: give at least 1, and a multiple of 64.")
    if (output / "prompt.json").exists():
        raise ValueError(f"{output} holds a data set already: give another folder.")
    colors = PALETTES[palette]()
    lines = []
    for folder in ("source", "target"):
        (output / folder).mkdir(parents=True, exist_ok=True)
    for i in tqdm(range(count), desc="circles", mininterval=5):
        pair = draw_circle(seed + i, side, colors)
        names = {"source": f"source/{i}.png", "target": f"target/{i}.png"}
        Image.fromarray(pair.hint).save(output / names["source"])
        Image.fromarray(pair.target).save(output / names["target"])
        lines.append(json.dumps({**names, "prompt": pair.prompt}))
    partial = output / "prompt.partial"
    partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
    os.replace(partial, output / "prompt.json")
