"""Maps that people bring ready made: what each kind looks like, how it may be wrong, and what mends it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from core.images import resize

FEW_COLOURS = 200  # below, a colourful map holds classes and not shades


@dataclass(frozen=True, slots=True)
class MapKind:
    """A kind of map. ``mended`` names the change ``mend`` for the page; ``doubt`` says what seems wrong.

    ``mend`` and ``doubt`` take (h, w, 3) uint8 RGB at any size; no doubt is an empty text. ``shades`` is
    whether values between two neighbours' mean something.
    """

    name: str
    mended: str
    mend: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
    doubt: Callable[[NDArray[np.uint8]], str]
    shades: bool = True


def resize_map(given: NDArray[np.uint8], size: tuple[int, int], shades: bool = True) -> NDArray[np.uint8]:
    """Bring a map (h, w, 3) to ``size`` = (H, W), always as an array of its own.

    A map of two values, such as lines, keeps just those two; one of few colours, such as classes, keeps them.
    Without ``shades`` every map keeps its colours.
    """
    if given.shape[:2] == tuple(size):
        return given.copy()
    if not shades:
        return resize(given, size, cv2.INTER_NEAREST)
    smooth = cv2.INTER_AREA if min(size) < min(given.shape[:2]) else cv2.INTER_LINEAR
    if len(_colours(_thinned(given))) >= FEW_COLOURS:
        return resize(given, size, smooth)
    colours = _colours(given)
    grey = bool((colours == colours[:, :1]).all())
    if not grey and len(colours) < FEW_COLOURS:
        return resize(given, size, cv2.INTER_NEAREST)
    shares = resize(given, size, smooth)
    if grey and len(colours) == 2:
        low, high = colours[:, 0].min(), colours[:, 0].max()
        # A quarter of the way up, not half: a line one pixel wide survives being halved.
        return np.where(shares >= low + (float(high) - low) / 4, high, low)
    return shares


def _thinned(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return about a quarter of a million of the picture's pixels, or all of a smaller one."""
    step = max(1, math.ceil(math.sqrt(picture.shape[0] * picture.shape[1]) / 512))
    return picture[::step, ::step]


def _colours(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the colours that occur in (h, w, 3), as (n, 3)."""
    seen = np.zeros(2**24, np.bool_)
    for row in range(0, len(picture), 256):  # in strips, to spare memory
        red, green, blue = (picture[row : row + 256, :, i].astype(np.uint32) for i in range(3))
        seen[red << 16 | green << 8 | blue] = True
    found = np.flatnonzero(seen)
    return np.stack([found >> 16, found >> 8 & 255, found & 255], axis=1).astype(np.uint8)


def looks_inverted(given: NDArray[np.uint8]) -> bool:
    """Tell whether a map of lines (h, w, 3) seems to be dark on light; the ControlNets know white on black.

    True where the picture has hardly any colour or middle grey, and more than half of it is light.
    """
    given = _thinned(given).astype(np.int16)
    colourful = (given.max(axis=2) - given.min(axis=2)) > 48
    grey = given.mean(axis=2)
    middle = (grey > 64) & (grey < 191)
    return bool(colourful.mean() < 0.05 and middle.mean() < 0.25 and (grey >= 191).mean() > 0.5)


def invert(given: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Swap black and white."""
    return 255 - given


def swap_red_and_blue(given: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Reverse the order of the channels of (h, w, 3)."""
    return np.ascontiguousarray(given[:, :, ::-1])


def _dark_lines(given: NDArray[np.uint8]) -> str:
    if looks_inverted(given):
        return "Your map seems to be dark on light. If so, choose the inverted kind under Preprocessor."
    return ""


def _far_is_light(given: NDArray[np.uint8]) -> str:
    small = _thinned(given).astype(np.int16)
    if ((small.max(axis=2) - small.min(axis=2)) > 48).mean() > 0.05:
        return "Your depth map has colours. The ControlNet knows grey ones: light is near, dark is far."
    third = max(1, len(small) // 3)
    if small[:third].mean() > small[-third:].mean() + 40:  # what is near mostly stands at the bottom
        return "In your map far seems to be light. If so, choose the inverted kind under Preprocessor."
    return ""


def _facing_is_blue(given: NDArray[np.uint8]) -> str:
    red, _, blue = (float(channel) for channel in _thinned(given).mean(axis=(0, 1)))
    if blue > red + 20:
        return (
            "Your normal map is mostly blue; ControlNet 1.0 was trained with red and blue the other way "
            "round. If yours is the usual kind, choose the swapped one under Preprocessor."
        )
    return ""


def _not_on_black(given: NDArray[np.uint8]) -> str:
    if (_thinned(given).max(axis=2) < 32).mean() < 0.5:
        return (
            "Your map does not seem to be a skeleton in colours on black, which is all that the ControlNet "
            "knows."
        )
    return ""


def _no_doubt(given: NDArray[np.uint8]) -> str:
    return ""


LINES = MapKind("lines", "None, inverted: my map is dark on light", invert, _dark_lines)
DEPTH = MapKind("depth", "None, inverted: in my map dark is near", invert, _far_is_light)
NORMALS = MapKind(
    "normals", "None, swapped: red and blue the other way round", swap_red_and_blue, _facing_is_blue
)
SKELETON = MapKind(
    "skeleton", "None, swapped: red and blue the other way round", swap_red_and_blue, _not_on_black
)
CLASSES = MapKind(
    "classes", "None, swapped: red and blue the other way round", swap_red_and_blue, _no_doubt, shades=False
)
PICTURE = MapKind("picture", "None, swapped: red and blue the other way round", swap_red_and_blue, _no_doubt)
