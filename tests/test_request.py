"""A request that exists is a request that can be drawn; any other is answered with what is allowed."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.request import MAX_PROMPT_CHARS, MAX_SEED, ControlUnit, Request, check_number

HINT = np.zeros((64, 128, 3), np.uint8)


def unit(**changes: Any) -> ControlUnit:
    return ControlUnit(**{"control": "canny", "hint": HINT, **changes})


def request(**changes: Any) -> Request:
    return Request(**{"prompt": "a cat", "controls": (unit(),), **changes})


def test_the_defaults_are_the_originals() -> None:
    asked = request()
    assert (asked.num_samples, asked.steps, asked.cfg_scale, asked.eta, asked.guess_mode) == (
        1,
        20,
        9.0,
        0.0,
        False,
    )
    assert (asked.sampler, asked.negative_prompt) == ("ddim", "")
    assert (unit().strength, unit().start, unit().end) == (1.0, 0.0, 1.0)
    assert asked.height_width == (64, 128)


RANGES = {
    "num_samples": (1, 12),
    "steps": (1, 1000),
    "cfg_scale": (0.1, 30.0),
    "eta": (0.0, 1.0),
    "seed": (0, MAX_SEED),
    "control_interval": (1, 10),
    "cache_interval": (1, 10),
    "token_merging_ratio": (0.0, 0.75),
}
UNIT_RANGES = {"strength": (0.0, 2.0), "start": (0.0, 1.0), "end": (0.0, 1.0)}
WRONG = [float("nan"), float("inf"), -float("inf"), "20", None, True, [1], 10**400, -(10**400), 1e308]


@pytest.mark.parametrize("name", RANGES)
def test_numbers_are_taken_in_their_range_only(name: str) -> None:
    low, high = RANGES[name]
    for good in (low, high):
        assert getattr(request(**{name: good}), name) == good
    for bad in (low - 1, high + 1, *WRONG):
        with pytest.raises(ValueError, match=f"^{name} is .*: give a .*number from"):
            request(**{name: bad})


@pytest.mark.parametrize("name", UNIT_RANGES)
def test_a_units_numbers_are_taken_in_their_range_only(name: str) -> None:
    low, high = UNIT_RANGES[name]
    assert getattr(unit(**{"end": 1.0, name: high}), name) == high
    for bad in (low - 0.01, high + 0.01, *WRONG):
        with pytest.raises(ValueError, match=f"^{name} is .*: give a number from"):
            unit(**{name: bad})


@pytest.mark.parametrize("name", ["num_samples", "steps", "seed"])
def test_whole_numbers_are_whole(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is 1.5: give a whole number from"):
        request(**{name: 1.5})


def test_the_largest_seed_is_written_in_full() -> None:
    with pytest.raises(ValueError, match="give a whole number from 0 to 2147483647"):
        request(seed=-1)


def test_numbers_of_any_kind_become_pythons_own() -> None:
    asked = request(steps=20.0, seed=np.int64(3), cfg_scale=np.float32(2.0), eta=1, guess_mode=np.bool_(True))
    kinds = [type(getattr(asked, name)) for name in ("steps", "seed", "cfg_scale", "eta", "guess_mode")]
    assert kinds == [int, int, float, float, bool]
    json.dumps([getattr(asked, f.name) for f in fields(asked) if f.name != "controls"])
    assert type(unit(strength=np.float64(1.5)).strength) is float


@given(st.floats() | st.integers() | st.text() | st.none() | st.booleans())
def test_check_number_accepts_exactly_the_numbers_in_range(value: Any) -> None:
    inside = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 5
    try:
        check_number("value", value, 0, 5)
    except ValueError as error:
        assert not inside and str(error).startswith("value is ")
    else:
        assert inside


@pytest.mark.parametrize("name", ["prompt", "negative_prompt"])
def test_texts_are_texts_of_a_sensible_length(name: str) -> None:
    assert getattr(request(**{name: "x" * MAX_PROMPT_CHARS}), name)
    with pytest.raises(ValueError, match=f"{name} has 10,001 characters: give at most 10,000"):
        request(**{name: "x" * (MAX_PROMPT_CHARS + 1)})
    with pytest.raises(ValueError, match=f"{name} is a NoneType: give a text"):
        request(**{name: None})


def test_an_unknown_sampler_is_answered_with_the_choices() -> None:
    for wrong in ("DDIM", "", None, ["ddim"], "x" * 10_000):
        with pytest.raises(ValueError, match="give one of ddim, euler_a, dpmpp_2m, unipc") as caught:
            request(sampler=wrong)
        assert len(str(caught.value)) < 200


def test_guess_mode_is_true_or_false() -> None:
    for wrong in (1, "yes", None):
        with pytest.raises(ValueError, match="guess_mode is .*: give true or false"):
            request(guess_mode=wrong)


@pytest.mark.parametrize(
    "hint",
    [
        HINT.astype(np.float32),
        HINT[:, :, 0],
        np.zeros((64, 64, 4), np.uint8),
        np.zeros((0, 0, 3), np.uint8),
        np.zeros((64, 65, 3), np.uint8),
        np.zeros((64, 4160, 3), np.uint8),
        [[0, 0, 0]],
        None,
    ],
)
def test_a_hint_is_a_picture_of_a_size_that_can_be_drawn(hint: Any) -> None:
    with pytest.raises(ValueError, match="hint is .*: give"):
        unit(hint=hint)


def test_a_control_has_a_name_and_does_not_end_before_it_starts() -> None:
    for wrong in ("", None, 3):
        with pytest.raises(ValueError, match="control is .*: give a ControlNet's name"):
            unit(control=wrong)
    with pytest.raises(ValueError, match="start is 0.6, after end 0.5: give start at most end"):
        unit(start=0.6, end=0.5)
    assert unit(start=0.5, end=0.5).end == 0.5


def test_controls_are_a_tuple_of_units() -> None:
    for wrong in ([unit()], (HINT,), None, unit()):
        with pytest.raises(ValueError, match="controls must be a tuple of ControlUnit"):
            request(controls=wrong)


def test_all_sizes_agree() -> None:
    other = unit(hint=np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(ValueError, match=r"sizes differ \(128x64, 64x64\)"):
        request(controls=(unit(), other))
    with pytest.raises(ValueError, match=r"sizes differ \(128x64, 64x128\)"):
        request(size=(128, 64))
    assert request(size=[64, 128]).size == (64, 128)


@pytest.mark.parametrize("size", [(64,), (64, 64, 64), "64", 64, (64, 63), (0, 64), (64, None), (64, 8192)])
def test_a_size_is_two_multiples_of_64(size: Any) -> None:
    with pytest.raises(ValueError, match=r"(size|height|width) is .*: give"):
        request(controls=(), size=size)


def test_without_controls_a_size_is_needed() -> None:
    with pytest.raises(ValueError, match=r"give size=\(height, width\)"):
        request(controls=())
    assert request(controls=(), size=(64, 64)).height_width == (64, 64)


def test_requests_do_not_change() -> None:
    asked = request()
    with pytest.raises(FrozenInstanceError):
        asked.steps = 3  # type: ignore[misc]
    assert replace(asked, steps=3).steps == 3 and asked.steps == 20
