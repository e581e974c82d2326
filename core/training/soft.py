"""Pictures drawn softly, as if from memory: for networks that should still know what is in them."""

from __future__ import annotations

import random

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Floats = NDArray[np.float32]
CELLS = 8  # of a side, each bent its own way
BEND = 0.02  # of the side: how far places are moved, about
BLOTCH = 0.2  # how much lighter or darker parts are, as shares, about
BLUR = 0.01  # of the side, at most
SOFT = 0.5  # of the pictures


def smooth_noise(size: tuple[int, int], cells: int, rng: random.Random) -> Floats:
    """Return five smooth fields (height, width, 5) about 0, of a size up to about 1 that chance picks.

    ``cells`` is how many values along a side they are made of.
    """
    noise = np.random.default_rng(rng.getrandbits(32))
    coarse = noise.normal(size=(cells, cells, 5)).astype(np.float32) * rng.random()
    return np.asarray(cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC), np.float32)


def moved(smooth: Floats, far: float) -> tuple[Floats, Floats]:
    """Return from where, along x and y, each place (H, W) comes: ``far`` pixels times two fields off."""
    height, width = smooth.shape[:2]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return x + far * smooth[..., 0], y + far * smooth[..., 1]


def softly(image: Image, classes: Image, rng: random.Random) -> tuple[Image, Image]:
    """Return a picture (H, W, 3) and its classes (H, W): half of them bent alike, blotched and blurred."""
    if rng.random() >= SOFT:
        return image, classes
    height, width = classes.shape
    smooth = smooth_noise((height, width), CELLS, rng)
    x, y = moved(smooth, BEND * width)
    edge = cv2.BORDER_REPLICATE
    bent = cv2.remap(image.astype(np.float32), x, y, cv2.INTER_LINEAR, borderMode=edge)
    bent *= np.clip(1 + BLOTCH * smooth[..., 2:], 0, None)
    blur = BLUR * width * rng.random()
    if blur > 0.3:  # pixels: what is less makes no difference
        bent = cv2.GaussianBlur(bent, (0, 0), blur)
    there = cv2.remap(classes, x, y, cv2.INTER_NEAREST, borderMode=edge)
    return np.asarray(bent.clip(0, 255), np.uint8), np.asarray(there, np.uint8)
