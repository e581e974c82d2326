"""Maps that people bring: resizing, and what seems wrong with them."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from annotators.maps import CLASSES, DEPTH, LINES, NORMALS, SKELETON, looks_inverted, resize_map

KINDS = (LINES, DEPTH, NORMALS, SKELETON, CLASSES)


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def lines(height: int = 256, width: int = 320) -> NDArray[np.uint8]:
    canvas = np.zeros((height, width, 3), np.uint8)
    cv2.line(canvas, (10, 20), (width - 20, height - 30), (255, 255, 255), 1)
    cv2.circle(canvas, (width // 2, height // 2), 60, (255, 255, 255), 1)
    return canvas


def test_a_map_of_the_right_size_stays_and_is_copied() -> None:
    given_map = lines()
    kept = resize_map(given_map, (256, 320))
    assert np.array_equal(kept, given_map) and not np.may_share_memory(kept, given_map)


@pytest.mark.parametrize("size", [(128, 192), (512, 640), (192, 256)])
def test_thin_lines_stay_black_and_white_and_whole_in_any_size(size: tuple[int, int]) -> None:
    hint = resize_map(lines(), size)
    assert set(np.unique(hint)) == {0, 255}
    # One line and one circle, crossing: a single piece, as before.
    assert cv2.connectedComponents(hint[:, :, 0], connectivity=8)[0] == 2


def test_a_map_of_classes_keeps_its_colours() -> None:
    colours = np.array([[120, 120, 120], [180, 120, 120], [6, 230, 230]], np.uint8)
    classes = colours[np.random.default_rng(0).integers(0, 3, (50, 70))]
    hint = resize_map(classes, (128, 192))
    assert {tuple(c) for c in hint.reshape(-1, 3)} <= {tuple(c) for c in colours}


def test_a_scan_of_few_greys_keeps_its_lines_when_shrunk() -> None:
    scan = 255 - lines(512, 512) // 36 * 36
    scan[0, 0] = 128  # a third grey
    hint = resize_map(255 - scan, (128, 128))
    drawn = cv2.connectedComponents((hint[:, :, 0] > 10).astype(np.uint8), connectivity=8)[0]
    assert drawn == 2  # the background and the lines, in one piece


def test_a_smooth_map_stays_smooth() -> None:
    ramp = np.linspace(0, 255, 400).astype(np.uint8)[None, :, None].repeat(100, 0).repeat(3, 2)
    hint = resize_map(ramp, (128, 512))[0, :, 0].astype(int)
    assert (np.diff(hint) >= 0).all() and np.diff(hint).max() <= 2


def test_dark_lines_on_light_are_recognised() -> None:
    assert looks_inverted(255 - lines())
    assert not looks_inverted(lines())


def test_photographs_depth_maps_and_colourful_maps_are_not_called_inverted() -> None:
    ramp = np.linspace(0, 255, 256).astype(np.uint8)[None, :, None].repeat(64, 0).repeat(3, 2)
    assert not looks_inverted(noise(64, 64))
    assert not looks_inverted(ramp)
    assert not looks_inverted(np.full((8, 8, 3), (250, 200, 0), np.uint8))


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 3))
@settings(deadline=None, max_examples=40)
def test_any_map_passes(height: int, width: int, colours: int) -> None:
    picture = noise(height, width) // (255 // (colours + 1) or 1)
    assert resize_map(picture, (64, 128)).shape == (64, 128, 3)
    looks_inverted(picture)


def ramp() -> NDArray[np.uint8]:
    """Light at the bottom, as what is near mostly is."""
    return np.linspace(0, 255, 90).astype(np.uint8)[:, None, None].repeat(64, 1).repeat(3, 2)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_mending_twice_changes_nothing(kind: object) -> None:
    assert isinstance(kind, type(LINES))
    assert np.array_equal(kind.mend(kind.mend(noise(9, 7))), noise(9, 7))


def test_a_depth_map_with_the_far_light_is_doubted() -> None:
    assert DEPTH.doubt(ramp()) == ""
    assert "far seems to be light" in DEPTH.doubt(DEPTH.mend(ramp()))
    assert "has colours" in DEPTH.doubt(noise(64, 64))


def test_a_normal_map_in_the_usual_blue_is_doubted() -> None:
    facing = np.full((8, 8, 3), (128, 128, 255), np.uint8)
    assert "mostly blue" in NORMALS.doubt(facing)
    assert NORMALS.doubt(NORMALS.mend(facing)) == ""


def test_a_skeleton_that_is_not_on_black_is_doubted() -> None:
    assert SKELETON.doubt(lines()) == ""
    assert "on black" in SKELETON.doubt(255 - lines())
