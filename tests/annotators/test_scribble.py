from __future__ import annotations

import numpy as np
import pytest

import annotators


def test_a_pixel_is_a_stroke_where_any_channel_is_below_127() -> None:
    picture = np.full((64, 64, 3), 255, np.uint8)
    picture[0, :4] = [[126, 255, 255], [127, 127, 127], [255, 0, 255], [200, 200, 126]]
    hint = annotators.load("scribble")(picture, size=(64, 64)).hint
    assert hint[0, :4, 0].tolist() == [255, 0, 255, 255]
    assert hint[1:].max() == 0


def test_it_works_at_the_outputs_size_and_shows_dark_on_light() -> None:
    detector = annotators.load("scribble")
    picture = np.full((100, 100, 3), 255, np.uint8)
    picture[40:60] = 0
    made = detector(picture, size=(192, 128))
    assert made.hint.shape == (192, 128, 3) and set(np.unique(made.hint)) == {0, 255}
    assert np.array_equal(made.preview, 255 - made.hint)
    with pytest.raises(ValueError, match="works at the output's size"):
        detector(picture, size=(64, 64), resolution=512)
