"""A contact sheet: scenes with their captions underneath."""

import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .scene import make_scene
from .sprites import SpriteLibrary

PAPER, INK = (250, 249, 246), (40, 40, 48)
COLUMNS, GAP, TEXT_HEIGHT = 8, 10, 46


def write_sheet(path: Path, library: SpriteLibrary, seed: int = 0, count: int = 32, size: int = 256) -> None:
    """Write a PNG of the scenes seed .. seed + count - 1, eight in a row."""
    rows = (count + COLUMNS - 1) // COLUMNS
    sheet = Image.new("RGB", (GAP + COLUMNS * (size + GAP), GAP + rows * (size + TEXT_HEIGHT + GAP)), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for i in range(count):
        scene = make_scene(seed + i, library, size)
        x = GAP + i % COLUMNS * (size + GAP)
        y = GAP + i // COLUMNS * (size + TEXT_HEIGHT + GAP)
        sheet.paste(Image.fromarray(np.ascontiguousarray(scene.image)), (x, y))
        lines = textwrap.wrap(scene.caption, max(16, size // 7))[:3]
        draw.multiline_text((x, y + size + 2), "\n".join(lines), INK, font, spacing=1)
    sheet.save(path)
