"""Tests of pictures that are drawn softly: classes bend with them, colours change, chance repeats itself."""

from __future__ import annotations

import random

import numpy as np
import pytest

from core.training import soft
from core.training.soft import moved, smooth_noise, softly

SIDE = 64
CLASSES = np.zeros((SIDE, SIDE), np.uint8)
CLASSES[8:40, 10:30], CLASSES[30:60, 36:60] = 7, 120
COLORS = np.array([[200, 190, 180], [90, 20, 10], [10, 60, 110]], np.uint8)
IMAGE = COLORS[np.searchsorted([0, 7, 120], CLASSES)]
SEEDS = range(40)


def changed() -> list[int]:
    """Return the seeds by which the picture is drawn softly."""
    return [seed for seed in SEEDS if softly(IMAGE, CLASSES, random.Random(seed))[0] is not IMAGE]


def test_half_of_the_pictures_stay_as_they_are() -> None:
    assert 12 <= len(changed()) <= 28
    for seed in set(SEEDS) - set(changed()):
        assert softly(IMAGE, CLASSES, random.Random(seed))[1] is CLASSES


def test_chance_repeats_itself() -> None:
    first, again, other = (
        softly(IMAGE, CLASSES, random.Random(seed)) for seed in (*changed()[:1] * 2, changed()[1])
    )
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


def test_classes_bend_with_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soft, "BLOTCH", 0.0)
    monkeypatch.setattr(soft, "BLUR", 0.0)
    bent = 0
    for seed in changed():
        image, classes = softly(IMAGE, CLASSES, random.Random(seed))
        assert image.shape == IMAGE.shape and image.dtype == classes.dtype == np.uint8
        assert set(np.unique(classes)) <= set(np.unique(CLASSES))
        apart = np.abs(image[..., None, :].astype(int) - COLORS).sum(-1)
        seen = np.array([0, 7, 120])[apart.argmin(-1)]
        assert (seen == classes).mean() > 0.97
        bent += bool((classes != CLASSES).mean() > 0.005)
    assert bent > len(changed()) / 2


def test_blotches_and_blur_move_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soft, "BEND", 0.0)
    for seed in changed():
        image, classes = softly(IMAGE, CLASSES, random.Random(seed))
        assert np.array_equal(classes, CLASSES)
        assert not np.array_equal(image, IMAGE)


def test_places_come_from_where_the_first_two_fields_say() -> None:
    smooth = smooth_noise((20, 30), 4, random.Random(1))
    assert smooth.shape == (20, 30, 5)
    x, y = moved(smooth, 3.0)
    assert np.allclose(x[7, 11], 11 + 3 * smooth[7, 11, 0])
    assert np.allclose(y[7, 11], 7 + 3 * smooth[7, 11, 1])
