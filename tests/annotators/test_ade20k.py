"""ADE20K's classes and colours: there and back, the nearest by brute force, and soft edges."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from annotators.ade20k import CLASSES, PALETTE, nearest, share_in_palette, to_classes, to_colours

WALL, SKY, ROAD, PERSON, SKYSCRAPER = 0, 2, 6, 12, 48


def areas(side: int = 64) -> NDArray[np.uint8]:
    """Return classes (side, side) in which a disc and a bar stand on two halves."""
    classes = np.full((side, side), SKY, np.uint8)
    classes[side // 2 :] = CLASSES.index("grass")
    cv2.circle(classes, (side // 3, side // 2), side // 5, PERSON, -1)
    cv2.rectangle(classes, (3 * side // 4, side // 8), (7 * side // 8, 7 * side // 8), WALL, -1)
    return classes


def test_there_are_150_classes_with_their_colours() -> None:
    assert len(CLASSES) == len(set(CLASSES)) == 150 and PALETTE.shape == (150, 3)
    assert (CLASSES[SKY], CLASSES[PERSON], CLASSES[149]) == ("sky", "person", "flag")
    assert PALETTE[[SKY, PERSON, 149]].tolist() == [[6, 230, 230], [150, 5, 61], [92, 0, 255]]
    assert all(name == name.strip() for name in CLASSES)


def test_the_palette_cannot_be_changed_by_accident() -> None:
    with pytest.raises(ValueError, match="read-only"):
        PALETTE[0] = 1


def test_colours_lead_back_to_their_classes_but_for_the_one_that_two_share() -> None:
    classes = np.arange(150, dtype=np.uint8).reshape(10, 15)
    found = to_classes(to_colours(classes))
    assert found.dtype == np.uint8
    assert np.flatnonzero(found != classes).tolist() == [SKYSCRAPER] and found.flat[SKYSCRAPER] == ROAD


def test_the_nearest_colour_is_that_of_trying_all() -> None:
    given = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    squares = ((given[:, :, None].astype(int) - PALETTE.astype(int)) ** 2).sum(axis=3)  # (40, 50, 150)
    classes, distances = nearest(given)
    assert np.array_equal(classes, squares.argmin(axis=2)) and np.array_equal(distances, squares.min(axis=2))
    assert np.array_equal(to_classes(given), classes)


def test_many_colours_are_compared_in_chunks() -> None:
    codes = np.arange(2**17, dtype=np.uint32).reshape(256, 512) * 97
    given = np.stack([codes >> 16 & 255, codes >> 8 & 255, codes & 255], axis=2).astype(np.uint8)
    classes, _ = nearest(given)
    for row, column in ((0, 0), (100, 7), (200, 300), (255, 511)):
        squares = ((given[row, column].astype(int) - PALETTE.astype(int)) ** 2).sum(axis=1)
        assert classes[row, column] == squares.argmin()


def test_a_soft_edge_takes_one_of_the_classes_that_meet_there() -> None:
    classes = areas()
    soft = np.asarray(cv2.resize(to_colours(classes), (256, 256), interpolation=cv2.INTER_LINEAR), np.uint8)
    alone, _ = nearest(soft)
    assert set(np.unique(alone)) > set(np.unique(classes))  # a mixed colour is nearest to some other class
    found = to_classes(soft)
    assert set(np.unique(found)) == set(np.unique(classes))
    sharp = cv2.resize(classes, (256, 256), interpolation=cv2.INTER_NEAREST)
    assert (found != sharp).mean() < 0.02


def test_an_area_in_an_unknown_colour_takes_the_nearest_colours_class_up_to_its_border() -> None:
    given = to_colours(np.full((60, 60), SKY, np.uint8)).copy()
    given[20:40, 10:30] = PALETTE[PERSON] + 9
    expected = np.full((60, 60), SKY, np.uint8)
    expected[20:40, 10:30] = PERSON
    assert np.array_equal(to_classes(given), expected)


def test_a_map_saved_as_jpeg_keeps_its_classes() -> None:
    classes = areas(256)
    _, file = cv2.imencode(".jpg", to_colours(classes)[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
    given = np.asarray(cv2.imdecode(file, cv2.IMREAD_COLOR), np.uint8)[:, :, ::-1]
    assert share_in_palette(given) < 0.9
    assert (to_classes(given) != classes).mean() < 0.01


def test_the_share_in_the_palette_counts_exact_colours() -> None:
    given = to_colours(areas()).copy()
    assert share_in_palette(given) == 1
    given[:16] += 1
    assert share_in_palette(given) == 0.75


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (300, 1)])
def test_any_size_will_do(size: tuple[int, int]) -> None:
    given = np.full((*size, 3), PALETTE[PERSON], np.uint8)
    given[0, 0] = (77, 77, 77)
    assert to_classes(given).shape == size
