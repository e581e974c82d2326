"""Squares of scenes that show a thing from near by: most of a whole scene is its background."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.images import SIZE_MULTIPLE

CLOSE_SHARE = 0.5  # of a control's batches, where there are close ones
NOWHERE = -1  # the place of no thing


def check_sides(sides: Sequence[int], whole: int) -> None:
    """Check that squares of so many pixels can be cut out of scenes of ``whole`` pixels.

    Raises:
        ValueError: a side is no multiple of what the networks reduce, or larger than the scenes.
    """
    for side in sides:
        if side % SIZE_MULTIPLE or not 0 < side <= whole:
            raise ValueError(
                f"--close is {side}: give a multiple of {SIZE_MULTIPLE} pixels, at most {whole}."
            )


def as_many(size: int, whole: int, side: int) -> int:
    """Return how many squares of ``side`` pixels have the pixels of ``size`` scenes of ``whole``."""
    return size * whole**2 // side**2


def place_of_thing(shown: NDArray[np.bool_], rng: random.Random) -> tuple[int, int]:
    """Return row and column of a place where ``shown`` (h, w) has a thing, or NOWHERE twice if it has none.

    A small thing is met as often as a large one.
    """
    count, labels = cv2.connectedComponents(shown.astype(np.uint8))
    if count == 1:  # the background alone
        return NOWHERE, NOWHERE
    places = np.argwhere(labels == rng.randint(1, count - 1))
    row, column = places[rng.randrange(len(places))]
    return int(row), int(column)


@dataclass(frozen=True, slots=True)
class Close:
    """Squares of scenes that show a thing from near by: ``size`` a batch, of ``side`` pixels.

    ``shown`` (N, h, w) tells which places of the scenes show a thing.
    """

    size: int
    side: int
    shown: NDArray[np.bool_]

    def corner(self, scene: int, whole: int, part: int, rng: random.Random) -> tuple[int, int]:
        """Return row and column where a square of ``part`` latents a side begins, of a scene's ``whole``.

        A place of one of the things, where there are some, is somewhere in it.
        """
        place = place_of_thing(self.shown[scene], rng)
        if NOWHERE in place:
            return rng.randint(0, whole - part), rng.randint(0, whole - part)
        scale = whole / self.shown.shape[1]
        y, x = (int((at + 0.5) * scale) for at in place)
        row, column = (rng.randint(max(0, at - part + 1), min(at, whole - part)) for at in (y, x))
        return row, column


def corners(places: Tensor, scale: float, whole: int, part: int, generator: torch.Generator) -> Tensor:
    """Return where squares of ``part`` latents a side begin, (B, 2) int64, as ``Close.corner`` does for one.

    ``places`` (B, 2) are those of things, or NOWHERE, each ``scale`` latents wide.
    """
    at = ((places + 0.5) * scale).long()
    none = places == NOWHERE
    low = torch.where(none, 0, at - part + 1).clamp(min=0)
    high = torch.where(none, whole - part, at).clamp(max=whole - part)
    chance = torch.rand(places.shape, generator=generator, device=places.device)
    return low + (chance * (high - low + 1)).long().clamp(max=high - low)


def squares(pictures: Tensor, which: Tensor, begin: Tensor, side: int) -> Tensor:
    """Return of ``pictures`` (N, H, W, ...) those that ``which`` (B,) names, (B, side, side, ...).

    Each is the square of it that begins at row and column ``begin`` (B, 2).
    """
    along = torch.arange(side, device=pictures.device)
    rows, columns = begin[:, 0, None] + along, begin[:, 1, None] + along
    return pictures[which[:, None, None], rows[:, :, None], columns[:, None, :]]
