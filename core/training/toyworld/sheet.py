"""Contact sheets: scenes with their captions underneath, or beside the maps that are true of them."""

import textwrap
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .scene import Scene, make_scene
from .sprites import SpriteLibrary
from .truth import CLASSES

PAPER, INK = (250, 249, 246), (40, 40, 48)
COLUMNS, GAP, TEXT_HEIGHT = 8, 10, 46
# Pairs of key points that a bone joins.
BONES = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13),
    (1, 0), (0, 14), (14, 16), (0, 15), (15, 17),
)  # fmt: skip


def skeleton(scene: Scene) -> np.ndarray:
    """Draw the people's visible bones in rainbow colours on black, (size, size, 3) uint8 RGB."""
    size = len(scene.image)
    picture = np.zeros((size, size, 3), np.uint8)
    hues = np.array([[[i * 180 // len(BONES), 255, 255] for i in range(len(BONES))]], np.uint8)
    colors = cv2.cvtColor(hues, cv2.COLOR_HSV2RGB)[0].tolist()
    for points in scene.people:
        for (a, b), color in zip(BONES, colors, strict=True):
            if points[a, 2] and points[b, 2]:
                ends = [tuple(int(v) for v in np.rint(points[i, :2] * 16 - 8)) for i in (a, b)]
                cv2.line(picture, ends[0], ends[1], color, max(1, size // 100), cv2.LINE_AA, 4)
        for x, y in points[points[:, 2] > 0, :2]:
            cv2.circle(picture, (int(x), int(y)), max(1, size // 100), (255, 255, 255), -1, cv2.LINE_AA)
    return picture


def maps(scene: Scene) -> list[np.ndarray]:
    """Return depth, normals, classes in chance colours and skeletons, each (size, size, 3) uint8 RGB."""
    truth = scene.truth
    if truth is None:
        raise ValueError("the scene has no truth: make it with make_scene(..., truth=True)")
    depth = np.rint(truth.depth / max(float(truth.depth.max()), 1e-6) * 255).astype(np.uint8)
    normals = np.rint(truth.normals * 127.5 + 127.5).astype(np.uint8)
    palette = np.random.default_rng(7).integers(40, 240, (CLASSES, 3)).astype(np.uint8)
    return [np.repeat(depth[..., None], 3, axis=2), normals, palette[truth.segmentation], skeleton(scene)]


def write_sheet(
    path: Path, library: SpriteLibrary, seed: int = 0, count: int = 32, size: int = 256, truth: bool = False
) -> None:
    """Write a PNG of the scenes seed .. seed + count - 1, eight in a row, or two with their maps."""
    columns = 2 if truth else COLUMNS
    wide = 5 * size if truth else size
    rows = (count + columns - 1) // columns
    sheet = Image.new("RGB", (GAP + columns * (wide + GAP), GAP + rows * (size + TEXT_HEIGHT + GAP)), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for i in range(count):
        scene = make_scene(seed + i, library, size, truth)
        x = GAP + i % columns * (wide + GAP)
        y = GAP + i // columns * (size + TEXT_HEIGHT + GAP)
        for j, picture in enumerate([scene.image, *(maps(scene) if truth else [])]):
            sheet.paste(Image.fromarray(np.ascontiguousarray(picture)), (x + j * size, y))
        lines = textwrap.wrap(scene.caption, max(16, wide // 7))[:3]
        draw.multiline_text((x, y + size + 2), "\n".join(lines), INK, font, spacing=1)
    sheet.save(path)
