"""What Annotator does for every detector, shown on detectors made up here."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from annotators import base
from annotators.base import Annotation, Annotator, Checkbox, Detected, ResultCache, Slider
from annotators.networks import Weights
from core.images import resize_image


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


class Counting(Annotator):
    """Returns the green channel; remembers what it was shown."""

    params = (Slider("gain", "Gain", 0, 2, 1, 0.5), Checkbox("flip", "Flip"))

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[tuple[int, ...], dict[str, Any]]] = []

    def detect(self, image: NDArray[np.uint8], *, gain: float, flip: bool) -> NDArray[np.uint8]:
        self.seen.append((image.shape, {"gain": gain, "flip": flip}))
        return (255 - image if flip else image)[:, :, 1]

    def preview(self, hint: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return 255 - hint


class AtResolution(Counting):
    """Works at a resolution of its own and thresholds at the output's size."""

    resolution = Slider("resolution", "Resolution", 128, 512, 256, 64)
    interpolation = cv2.INTER_NEAREST

    def refine(self, hint: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.where(hint > 127, np.uint8(200), np.uint8(10))


def test_without_a_resolution_the_detector_sees_the_output_size() -> None:
    detector, picture = Counting(), noise(90, 150)
    made = detector(picture, size=(128, 192))
    assert detector.seen == [((128, 192, 3), {"gain": 1.0, "flip": False})]
    expected = cv2.resize(picture, (192, 128), interpolation=cv2.INTER_LANCZOS4)[:, :, 1]
    assert np.array_equal(made.hint, np.stack([expected] * 3, axis=2))
    assert np.array_equal(made.preview, 255 - made.hint)


@pytest.mark.parametrize(
    ("resolution", "seen"),
    [(None, 256), (128, 128), ("auto", 384), (512, 512)],
    ids=["default", "128", "auto", "512"],
)
def test_with_a_resolution_the_map_is_found_there_and_then_brought_to_size(
    resolution: Any, seen: int
) -> None:
    detector, picture = AtResolution(), noise(90, 150)
    made = detector(picture, size=(384, 640), resolution=resolution)
    small = resize_image(picture, seen)
    assert detector.seen[0][0] == small.shape
    large = cv2.resize(small[:, :, 1], (640, 384), interpolation=cv2.INTER_NEAREST)
    assert np.array_equal(made.hint[:, :, 2], np.where(large > 127, 200, 10))


def test_auto_stays_within_the_declared_range() -> None:
    detector = AtResolution()
    detector(noise(90, 150), size=(64, 128), resolution="auto")
    detector(noise(90, 150), size=(1024, 1728), resolution="auto")
    assert [min(shape[:2]) for shape, _ in detector.seen] == [128, 512]


@pytest.mark.parametrize("resolution", [64, 1024, 100.5, "big", True, float("nan")])
def test_a_resolution_out_of_range_is_refused(resolution: Any) -> None:
    with pytest.raises(ValueError, match="resolution is .*give a whole number from 128 to 512"):
        AtResolution()(noise(8, 8), size=(64, 64), resolution=resolution)


def test_a_map_tells_which_weights_made_it_and_is_made_anew_when_others_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    detector, picture = Counting(), noise(90, 150)
    assert detector(picture, size=(64, 64)).weights is None
    monkeypatch.setattr(Counting, "weights", "published")
    here = [Weights("stand-in", "A stand-in", demo=True)]
    monkeypatch.setattr(base, "find_weights", lambda *names: here[0])
    first = detector(picture, size=(64, 64))
    assert first.weights == here[0] and detector(picture, size=(64, 64)) is first
    here[0] = Weights("published", "The real one", demo=False)
    assert detector(picture, size=(64, 64)).weights == here[0] and len(detector.seen) == 3


def test_a_resolution_is_refused_where_there_is_none() -> None:
    with pytest.raises(ValueError, match="works at the output's size: leave it out"):
        Counting()(noise(8, 8), size=(64, 64), resolution=256)
    Counting()(noise(8, 8), size=(64, 64), resolution="auto")


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"gain": 2.5}, "gain is 2.5: give a number from 0 to 2"),
        ({"gain": float("nan")}, "gain is nan"),
        ({"gain": "1"}, "gain is '1'"),
        ({"gain": True}, "gain is True"),
        ({"flip": 1}, "flip is 1: give true or false"),
        ({"blur": 1}, "Counting has no control 'blur': it has gain, flip"),
    ],
)
def test_a_control_with_a_wrong_name_or_value_is_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Counting()(noise(8, 8), size=(64, 64), **params)


def test_whole_sliders_take_whole_numbers_only() -> None:
    slider = Slider("n", "N", 1, 255, 100, 1)
    assert slider.check(np.int64(7)) == 7 and slider.check(7.0) == 7 and isinstance(slider.check(7.0), int)
    with pytest.raises(ValueError, match="n is 7.5: give a whole number from 1 to 255"):
        slider.check(7.5)


def test_the_same_picture_and_settings_are_detected_once() -> None:
    detector, picture = Counting(), noise(40, 40)
    first = detector(picture, size=(64, 64))
    assert detector(picture.copy(), size=(64, 64), gain=1, flip=False) is first
    assert len(detector.seen) == 1
    detector(picture, size=(64, 64), flip=True)
    detector(picture, size=(64, 128))
    detector(noise(40, 40, seed=1), size=(64, 64))
    detector(picture.reshape(20, 80, 3), size=(64, 64))
    assert len(detector.seen) == 5


def test_what_is_remembered_cannot_be_changed() -> None:
    picture = noise(64, 64)
    made = Counting()(picture, size=(64, 64))
    with pytest.raises(ValueError, match="read-only"):
        made.hint[0, 0] = 0
    picture[0, 0] = 0  # the caller's own array stays the caller's


def test_a_detector_that_changes_nothing_leaves_the_callers_array_alone() -> None:
    class Same(Annotator):
        def detect(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
            return image

    picture = noise(64, 64)
    made = Same()(picture, size=(64, 64))
    picture[:] = 0
    assert made.hint.any()


def test_the_memory_forgets_what_was_longest_unused() -> None:
    cache = ResultCache(max_bytes=2 * 2 * 300)
    made = [Annotation(noise(10, 10, i), noise(10, 10, i)) for i in range(3)]
    cache.put((0,), made[0])
    cache.put((1,), made[1])
    assert cache.get((0,)) is made[0]
    cache.put((2,), made[2])
    assert cache.get((1,)) is None
    assert cache.get((0,)) is made[0] and cache.get((2,)) is made[2]


def test_an_annotation_larger_than_the_memory_is_not_kept() -> None:
    cache = ResultCache(max_bytes=100)
    cache.put((0,), Annotation(noise(10, 10), noise(10, 10)))
    assert cache.get((0,)) is None


class Told(Annotator):
    """Also says how light the picture is."""

    def detect(self, image: NDArray[np.uint8]) -> Detected:
        return Detected(image[:, :, 0], {"mean": float(image.mean())})


def test_facts_that_a_detector_finds_come_with_the_map() -> None:
    picture = noise(64, 64)
    made = Told()(picture, size=(64, 64))
    assert made.data == {"mean": picture.mean()} and np.array_equal(made.hint[:, :, 1], picture[:, :, 0])


def test_a_brought_map_is_shown_as_the_network_gets_it() -> None:
    picture = noise(64, 64) // 128 * 255
    made = Counting().ready(picture, size=(64, 64))
    assert np.array_equal(made.hint, picture) and np.array_equal(made.preview, made.hint)
    assert not made.hint.flags.writeable


def test_a_brought_map_is_mended_where_asked_and_doubted_where_not() -> None:
    paper = np.full((64, 64, 3), 255, np.uint8)
    paper[30] = 0
    doubted, mended = (Counting().ready(paper, size=(64, 64), mend=mend) for mend in (False, True))
    assert "dark on light" in doubted.note and np.array_equal(doubted.hint, paper)
    assert mended.note == "" and np.array_equal(mended.hint, 255 - paper)


def test_auto_takes_what_suits_the_detector() -> None:
    class Limited(AtResolution):
        auto_range = (256, 384)

    detector = Limited()
    for side in (128, 320, 1024):
        detector(noise(90, 90), size=(side, side), resolution="auto")
    assert [shape[0] for shape, _ in detector.seen] == [256, 320, 384]
