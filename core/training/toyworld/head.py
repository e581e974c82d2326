"""The heads of people: a ball with face and hair painted on in the head's own axes, so that they turn."""

import numpy as np

from .pen import Pen
from .poses import Build, Joints
from .shapes import capsule, grid, length

HAIRS = {
    "man": ("short", "short", "parted", "curly", "bald"),
    "woman": ("long", "long", "bun", "parted", "curly"),
    "boy": ("short", "parted", "curly"),
    "girl": ("long", "pigtails", "pigtails", "bun"),
}
EYE, GLEAM = np.array([52, 38, 48], np.float32), np.array([255, 255, 255], np.float32)
MOUTH, BLUSH = np.array([158, 62, 66], np.float32), np.array([250, 120, 120], np.float32)
THICKNESS = {"curly": 1.17, "parted": 1.09}  # of the hair, in radii of the head; else 1.07


def _on_ball(
    pen: Pen, joints: Joints, radius: float, box: tuple[int, int, int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the distance to a ball around the head and its points in the head's own axes.

    Returns:
        Distance in pixels; x to the person's left, y up and z to the front in radii, each (h, w) float32.
    """
    x, y = grid(box)
    cx, cy = pen.pixel(joints.head)
    px, py = (x - np.float32(cx)) / np.float32(radius), (np.float32(cy) - y) / np.float32(radius)
    square = px * px + py * py
    pz = np.sqrt(np.maximum(1 - square, 0))
    turn = joints.turn.astype(np.float32)
    own = [turn[0, i] * px + turn[1, i] * py + turn[2, i] * pz for i in range(3)]
    return (np.sqrt(square) - 1) * np.float32(radius), own[0], own[1], own[2]


def _spot(distance: np.ndarray, sharp: float) -> np.ndarray:
    """Return how much of each pixel is inside, from a distance in radii."""
    return np.clip(np.float32(0.5) - distance * np.float32(sharp), 0, 1)


def _face(
    skin: np.ndarray, brow: np.ndarray, x: np.ndarray, y: np.ndarray, z: np.ndarray, radius: float,
    laughing: bool,
) -> np.ndarray:  # fmt: skip
    """Paint a face on the ball, (3, h, w)."""
    rgb = np.repeat(skin[:, None, None], x.size, axis=1).reshape(3, *x.shape)
    front = _spot(0.15 - z, radius)
    aside = np.abs(x)

    def dab(color: np.ndarray, share: np.ndarray) -> None:
        rgb[:] += (color[:, None, None] - rgb) * (share * front)

    dab(BLUSH, np.clip(1 - ((aside - 0.52) ** 2 + (y + 0.26) ** 2) * 22, 0, 1) * 0.42)
    dab(EYE, _spot((length((aside - 0.34) / 0.105, (y - 0.10) / 0.165) - 1) * 0.12, radius))
    dab(GLEAM, _spot(length(np.abs(x + 0.035) - 0.34, y - 0.165) - 0.042, radius))
    curve = y - 0.36 + (aside - 0.34) ** 2 * 1.3
    dab(brow, _spot(np.maximum(np.abs(curve) - 0.032, np.abs(aside - 0.35) - 0.14), radius))
    smile = y + 0.42 - x * x * 1.6
    if laughing:
        dab(MOUTH, _spot(np.maximum(np.maximum(-smile - 0.02, y + 0.27), aside - 0.27), radius))
    else:
        dab(MOUTH, _spot(np.maximum(np.abs(smile) - 0.034, aside - 0.25), radius))
    dab(skin * np.float32(0.84), np.clip(1 - length(x, y + 0.10) * 7.5, 0, 1))
    dab(skin + (255 - skin) * np.float32(0.4), np.clip(1 - length(x + 0.02, y + 0.05) * 12, 0, 1))
    return rgb


def draw_head(
    pen: Pen, hair: str, joints: Joints, build: Build, skin: np.ndarray, color: np.ndarray, laughing: bool
) -> None:
    """Draw ears, face and the hair on the head."""
    radius, turn = build.head * pen.scale, joints.turn
    ears = [joints.head + turn @ np.array([side * 0.99, -0.05, -0.05]) * build.head for side in (-1, 1)]
    near = [bool(ear[2] > joints.head[2] + 0.25 * build.head) for ear in ears]
    for ear, late in zip(ears, near, strict=True):
        if not late:
            pen.stroke(ear, ear, build.head * 0.22, build.head * 0.22, skin, gloss=0.0)
    box = pen.layer.box((pen.pixel(joints.head),), radius * 1.2)
    if box is None:
        return
    z = float(joints.head[2]) * pen.scale
    distance, x, y, depth = _on_ball(pen, joints, radius, box)
    face = skin
    if turn[2, 2] > -0.45:
        face = _face(skin, color * np.float32(0.8), x, y, depth, radius, laughing)
    pen.layer.solid(box, distance, radius, face, gloss=0.22, z=z)
    if hair != "bald":
        thick = radius * THICKNESS.get(hair, 1.07)
        distance, x, y, depth = _on_ball(pen, joints, thick, box)
        low = np.where(depth > 0, 0.10 + 0.44 * depth, 0.10 + 0.62 * depth)
        if hair == "parted":
            low += 0.18 * x - 0.10 * np.abs(x + 0.35)
        elif hair in ("long", "pigtails", "bun"):
            low += 0.10 - 0.30 * np.abs(x) * (depth > 0)
        above = y - low
        rgb = color[:, None, None] * (np.float32(0.80) + np.float32(0.20) * np.clip(above * 5, 0, 1))
        pen.layer.solid(box, distance, thick, rgb, gloss=0.20, z=z, only=_spot(-above, thick))
    for ear, late in zip(ears, near, strict=True):
        if late:
            pen.stroke(ear, ear, build.head * 0.22, build.head * 0.22, skin, gloss=0.0)
    if hair == "bun":
        knot = joints.head + turn @ np.array([0, 1.12, -0.30]) * build.head
        pen.stroke(knot, knot, build.head * 0.34, build.head * 0.34, color)


def draw_back_hair(pen: Pen, hair: str, joints: Joints, build: Build, color: np.ndarray) -> None:
    """Draw the hair that hangs from the back of the head."""
    head, turn, r = joints.head, joints.turn, build.head
    if hair == "pigtails":
        for side in (-1, 1):
            knot = head + turn @ np.array([side * 1.00, 0.10, -0.35]) * r
            end = head + turn @ np.array([side * 1.22, -0.85, -0.35]) * r
            pen.stroke(knot, end, r * 0.34, r * 0.20, color)
    if hair != "long":
        return
    top = head + turn @ np.array([0, 0.15, -0.30]) * r
    end = head + turn @ np.array([0, -0.95, -0.30]) * r
    a, b, k = pen.pixel(top), pen.pixel(end), pen.scale
    wide, low = r * 0.98 * k, r * 0.86 * k
    if box := pen.layer.box((a, b), wide):
        distance, _ = capsule(*grid(box), a, b, wide, low)
        pen.layer.solid(box, distance, wide, color * np.float32(0.92), gloss=0.12, z=float(head[2] - r) * k)
