"""Canny edges, against closed forms and against the original demo's own words."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

import annotators
from core.images import fit_size, to_rgb

PHOTOS = sorted((Path(__file__).parents[2] / "test_imgs").glob("photo_*"))


def edges(image: NDArray[np.uint8], low: int = 100, high: int = 200) -> NDArray[np.bool_]:
    size = image.shape[0], image.shape[1]
    made = annotators.load("canny")(image, size=size, low_threshold=low, high_threshold=high)
    assert set(np.unique(made.hint)) <= {0, 255}
    assert np.array_equal(made.preview, 255 - made.hint)
    return made.hint[:, :, 0] > 0


def step(height: int) -> NDArray[np.uint8]:
    """Return 64x64 grey: 0 on the left, ``height`` from column 32 on."""
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, 32:] = height
    return image


def test_a_step_gives_one_line_at_the_step() -> None:
    found = edges(step(200))
    columns = np.flatnonzero(found.any(axis=0))
    assert len(columns) == 1 and columns[0] in (31, 32)
    assert found[2:-2, columns[0]].all()


def test_thresholds_count_in_sobel_units() -> None:
    # The 3x3 Sobel of a vertical step of height h is 4 h.
    assert edges(step(50), low=100, high=199).any()
    assert not edges(step(50), low=100, high=200).any()


def test_a_weak_edge_counts_only_where_it_touches_a_strong_one() -> None:
    image = step(60)  # strong below 240
    image[32:, 32:] = 40  # the lower half is weak: 160
    assert edges(image, low=100, high=200)[40:60].any()
    assert not edges(image, low=170, high=200)[40:60].any()
    alone = step(40)
    assert not edges(alone, low=100, high=200).any()


@pytest.mark.parametrize("shade", [0, 128, 255])
def test_a_flat_picture_has_no_edges(shade: int) -> None:
    assert not edges(np.full((64, 128, 3), shade, np.uint8)).any()


def test_the_edge_of_one_colour_channel_counts() -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, 32:, 2] = 200
    assert edges(image).any()


@pytest.mark.parametrize("path", PHOTOS, ids=lambda path: path.stem)
@pytest.mark.parametrize("resolution", [256, 512])
def test_a_photo_gives_what_the_original_demo_computes(path: Path, resolution: int) -> None:
    image = to_rgb(path)
    scale = resolution / min(image.shape[:2])
    height, width = (int(np.round(side * scale / 64.0)) * 64 for side in image.shape[:2])
    how = cv2.INTER_LANCZOS4 if scale > 1 else cv2.INTER_AREA
    expected = cv2.Canny(cv2.resize(image, (width, height), interpolation=how), 100, 200)
    made = annotators.load("canny")(path, size=fit_size(image.shape[0], image.shape[1], resolution))
    assert np.array_equal(made.hint, np.stack([expected] * 3, axis=2))
    assert 0.005 < (expected > 0).mean() < 0.4
