"""What of a picture to draw anew: a PNG's transparent parts, which is also how the page sends its paint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps

from core.images import open_image, to_rgb

OPAQUE = 128  # from here on, a pixel's alpha means that it stays
SHADE = 0.35  # of the brightness is left where the shown picture will be drawn anew
NOTHING_MASKED = "Nothing is marked: paint over what to draw anew, or bring a PNG that is transparent there."


def read_picture(path: str | Path | None) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return a picture (h, w, 3) uint8 RGB, and its mask (h, w) uint8: 255 where it is transparent.

    The colours under transparent parts are taken as they are, not blended on white.

    Raises:
        ValueError: there is no picture or it cannot be read; says what to do.
    """
    if path is None:
        raise ValueError("There is no picture: upload one or pick an example.")
    image = open_image(path)
    if not image.has_transparency_data:
        picture = to_rgb(image)
        return picture, np.zeros(picture.shape[:2], np.uint8)
    to_rgb(image)  # checks that it can be read, and its size
    pixels = np.asarray(ImageOps.exif_transpose(image.convert("RGBA")))
    return pixels[..., :3].copy(), np.where(pixels[..., 3] < OPAQUE, np.uint8(255), np.uint8(0))


def fit_mask(mask: NDArray[np.uint8], size: tuple[int, int], blur: float) -> NDArray[np.uint8]:
    """Bring a mask (h, w) to (H, W), fading outwards over about ``blur`` pixels.

    Raises:
        ValueError: nothing is masked; says what to do.
    """
    height, width = size
    resized = Image.fromarray(mask).resize((width, height), Image.Resampling.BILINEAR)
    hard = np.where(np.asarray(resized) >= OPAQUE, np.uint8(255), np.uint8(0))
    if not hard.any():
        raise ValueError(NOTHING_MASKED)
    soft = np.asarray(Image.fromarray(hard).filter(ImageFilter.GaussianBlur(blur)))
    return np.maximum(hard, np.minimum(soft, 254))  # 255 is what was marked, and nothing else


def with_holes(picture: NDArray[np.uint8], mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return (h, w, 4) uint8 RGBA that ``read_picture`` reads as ``picture`` and as where ``mask`` is 255."""
    alpha = np.where(mask == 255, np.uint8(0), np.uint8(255))
    return np.dstack([picture, alpha])


def shade(picture: NDArray[np.uint8], mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Darken (H, W, 3) where the mask (H, W) is, to show what will be drawn anew."""
    share = mask[:, :, None].astype(np.float32) / 255.0 * (1.0 - SHADE)
    return (picture * (1.0 - share)).astype(np.uint8)
