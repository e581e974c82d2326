"""Colour words: what they look like as paint, and how a sprite is repainted in one."""

import random

import cv2
import numpy as np

# Word -> (hue in degrees, saturation, value) of a brightly lit surface of that colour.
PAINTS: dict[str, tuple[float, float, float]] = {
    "red": (355, 0.84, 0.90),
    "orange": (26, 0.88, 0.98),
    "yellow": (49, 0.82, 1.00),
    "green": (128, 0.66, 0.74),
    "blue": (215, 0.80, 0.92),
    "purple": (272, 0.62, 0.82),
    "pink": (331, 0.44, 1.00),
    "white": (220, 0.04, 0.96),
    "black": (230, 0.18, 0.26),
    "brown": (24, 0.62, 0.55),
    "gray": (215, 0.08, 0.66),
}
SHIFT_COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white", "black")
HUE_BAND = (30.0, 52.0)  # degrees off the main hue: fully repainted below, untouched above


def paint(word: str, rng: random.Random, lightness: float = 1.0) -> np.ndarray:
    """Return a slightly varied RGB of a colour word, (3,) float32 in [0, 255].

    `lightness` scales the value; the word still has to be true, so keep it within 0.75 to 1.25.
    """
    h, s, v = PAINTS[word]
    h += rng.uniform(-5, 5)
    s = min(1.0, s * rng.uniform(0.88, 1.05))
    v = min(1.0, v * rng.uniform(0.95, 1.04) * lightness)
    pixel = np.array([[[h % 360, s, v]]], np.float32)
    return np.asarray(cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB)[0, 0] * 255, np.float32)


def mix(a: np.ndarray, b: np.ndarray, share: float) -> np.ndarray:
    """Blend two colours: `share` 0 gives a, 1 gives b."""
    return np.asarray(a + (b - a) * np.float32(share), np.float32)


def _hue_distance(hue: np.ndarray, center: float) -> np.ndarray:
    """Return the signed difference of hues in degrees, in [-180, 180)."""
    return np.asarray((hue - center + 180.0) % 360.0 - 180.0, np.float32)


def main_hue(hsv: np.ndarray, alpha: np.ndarray, word: str | None) -> float:
    """Find the hue of most of the paint, within 45 degrees of a colour word where one is given.

    Args:
        hsv: (h, w, 3) float32, hue in degrees, the others in [0, 1].
        alpha: (h, w) float32 in [0, 1].
        word: the sprite's own colour or None.
    """
    weight = hsv[..., 1] ** 2 * hsv[..., 2] * alpha
    if word is not None:
        weight = weight * (np.abs(_hue_distance(hsv[..., 0], PAINTS[word][0])) < 45)
    counts, _ = np.histogram(hsv[..., 0], bins=36, range=(0, 360), weights=weight)
    smooth = counts + np.roll(counts, 1) + np.roll(counts, -1)
    peak = float(np.argmax(smooth)) * 10 + 5
    offset = _hue_distance(hsv[..., 0], peak)
    weight = weight * (np.abs(offset) < 15)
    return peak + float((weight * offset).sum() / max(float(weight.sum()), 1e-6))


def repaint(sprite: np.ndarray, own: str | None, word: str) -> np.ndarray:
    """Repaint a sprite's main colour; windows, tyres, eyes and highlights keep theirs.

    Args:
        sprite: (h, w, 4) uint8, premultiplied RGBA.
        own: the colour word of the untouched sprite, or None to find the commonest hue.
        word: one of SHIFT_COLORS.

    Returns:
        (h, w, 4) uint8, premultiplied RGBA.
    """
    alpha = sprite[..., 3:].astype(np.float32) / 255
    rgb = np.minimum(sprite[..., :3] / 255 / np.maximum(alpha, 1 / 255), 1).astype(np.float32)
    hsv = cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV)
    offset = _hue_distance(hsv[..., 0], main_hue(hsv, alpha[..., 0], own))
    near = np.clip((HUE_BAND[1] - np.abs(offset)) / (HUE_BAND[1] - HUE_BAND[0]), 0, 1)
    member = near * np.clip((hsv[..., 1] - 0.10) / 0.15, 0, 1)
    body = (member > 0.5) & (alpha[..., 0] > 0.9)
    saturation, value = (float(np.median(hsv[..., i][body])) if body.any() else 0.8 for i in (1, 2))
    h, s, v = PAINTS[word]
    shade = (hsv[..., 2] / max(value, 0.05)) * (1.0 - 0.004 * np.clip(np.abs(offset), 0, 40))
    depth = np.clip(hsv[..., 1] / max(saturation, 0.05), 0, 1.2)
    drift = cv2.blur(np.clip(offset, -HUE_BAND[1], HUE_BAND[1]), (5, 5))  # hides the pictures' lossy blocks
    new = np.stack([
        (h + 0.45 * drift) % 360,
        np.clip(s * depth, 0, 1),
        np.clip(v * shade ** (0.85 if word == "white" else 1.0) + 0.10 * (1 - np.minimum(depth, 1)), 0, 1),
    ], axis=-1).astype(np.float32)  # fmt: skip
    painted = cv2.cvtColor(new, cv2.COLOR_HSV2RGB)
    rgb += (painted - rgb) * member[..., None]
    out = sprite.copy()
    out[..., :3] = np.rint(rgb * alpha * 255)
    return out
