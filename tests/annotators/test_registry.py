"""What holds for every detector whose weights are here, and for finding detectors by name."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

import annotators
from annotators.base import Annotator, Checkbox, Slider
from annotators.networks import find_weights
from annotators.pose import HAND_WEIGHTS
from core.errors import WeightsMissing
from core.weights.registry import Registry

ROOT = Path(__file__).parents[2]


def usable() -> Iterator[str]:
    for name in annotators.names():
        detector = annotators.load(name)
        try:
            if detector.weights is not None:
                find_weights(detector.weights, detector.demo_weights)
        except WeightsMissing:
            continue
        yield name


def smallest(detector: Annotator) -> int | None:
    """Return the resolution at which a detector takes the least time."""
    return None if detector.resolution is None else int(detector.resolution.minimum)


def lacks_hands(name: str) -> bool:
    """Say whether this is the detector whose second network, for hands, may not be here."""
    return name == "pose" and Registry.load().find(HAND_WEIGHTS) is None


USABLE = list(usable())
each_usable = pytest.mark.parametrize("name", USABLE)


def pictures() -> dict[str, NDArray[np.uint8] | Image.Image]:
    rng = np.random.default_rng(0)
    return {
        "grey": rng.integers(0, 256, (50, 70), dtype=np.uint8),
        "16 bits": rng.integers(0, 65_536, (50, 70, 3), dtype=np.uint16),
        "rgba": rng.integers(0, 256, (50, 70, 4), dtype=np.uint8),
        "one pixel": np.full((1, 1, 3), 90, np.uint8),
        "flat wide": rng.integers(0, 256, (20, 3000, 3), dtype=np.uint8),
        "tall": rng.integers(0, 256, (3000, 20, 3), dtype=np.uint8),
        "black": np.zeros((64, 64, 3), np.uint8),
        "white": np.full((64, 64, 3), 255, np.uint8),
        "noise": rng.integers(0, 256, (64, 64, 3), dtype=np.uint8),
        "pillow palette": Image.fromarray(rng.integers(0, 256, (50, 70, 3), dtype=np.uint8)).convert("P"),
    }


def test_canny_is_there() -> None:
    assert "canny" in annotators.names()
    assert "base" not in annotators.names()


def test_a_wrong_name_lists_the_right_ones() -> None:
    with pytest.raises(ValueError, match=r"There is no detector 'cany': give one of .*canny"):
        annotators.load("cany")


def test_a_detector_is_shared() -> None:
    assert annotators.load("canny") is annotators.load("canny")


def test_names_are_found_without_importing_a_detector() -> None:
    code = "import sys, annotators; annotators.names(); print([m for m in sys.modules if 'annotators.' in m])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", annotators.names())
def test_the_declared_controls_are_sound(name: str) -> None:
    detector = annotators.load(name)
    assert isinstance(detector, Annotator) and detector.title
    names = [param.name for param in detector.params]
    assert len(set(names)) == len(names) and not {"image", "size", "resolution"} & set(names)
    for param in (*detector.params, *([detector.resolution] if detector.resolution else [])):
        assert isinstance(param, (Slider, Checkbox)) and param.label
        assert param.check(param.default) == param.default


@each_usable
@pytest.mark.parametrize("kind", list(pictures()))
def test_any_picture_gives_a_hint_of_the_asked_size(name: str, kind: str) -> None:
    detector = annotators.load(name)
    made = detector(pictures()[kind], size=(128, 192), resolution=smallest(detector))
    for array in (made.hint, made.preview):
        assert array.shape == (128, 192, 3) and array.dtype == np.uint8 and array.flags.c_contiguous


@each_usable
@given(data=st.data())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_detector_repeats_itself_with_any_allowed_settings(name: str, data: st.DataObject) -> None:
    shared = annotators.load(name)
    params: dict[str, Any] = {}
    for param in shared.params:
        if isinstance(param, Checkbox):
            params[param.name] = data.draw(st.booleans()) and not lacks_hands(name)
        elif param.whole:
            params[param.name] = data.draw(st.integers(int(param.minimum), int(param.maximum)))
        else:
            params[param.name] = data.draw(st.floats(param.minimum, param.maximum))
    side = st.integers(1, 5)
    size = 64 * data.draw(side), 64 * data.draw(side)
    picture = np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    least = smallest(shared)
    first, second = (type(shared)()(picture, size=size, resolution=least, **params) for _ in range(2))
    assert first.hint.shape == (*size, 3)
    assert np.array_equal(first.hint, second.hint) and np.array_equal(first.preview, second.preview)


@each_usable
def test_a_wrong_setting_is_named(name: str) -> None:
    for param in annotators.load(name).params:
        wrong: dict[str, Any] = {param.name: float("nan")}
        with pytest.raises(ValueError, match=f"{param.name} is "):
            annotators.load(name)(np.zeros((8, 8, 3), np.uint8), size=(64, 64), **wrong)
