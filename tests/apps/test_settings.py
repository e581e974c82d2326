from __future__ import annotations

import math
from typing import Any

import gradio as gr
import pytest

import annotators
from annotators.base import Checkbox, Slider
from apps.page.layout import advanced
from apps.page.settings import (
    ADVISED_FOR_GUESSING,
    SAMPLER_LABELS,
    SPEED,
    Choice,
    Setting,
    Text,
    declare,
    parse,
)
from core.request import MAX_SEED, SPEED_OPTIONS
from core.sampling.samplers import SAMPLERS

NEGATIVE = (
    "longbody, lowres, bad anatomy, bad hands, missing fingers, extra digit, fewer digits, cropped, "
    "worst quality, low quality"
)
# The controls of the ControlNet 1.0 canny demo, in its order: label, range, default, step.
ORIGINAL: list[tuple[Any, ...]] = [
    ("Images", 1, 12, 1, 1),
    ("Image Resolution", 256, 768, 512, 64),
    ("Control Strength", 0.0, 2.0, 1.0, 0.01),
    ("Guess Mode", False),
    ("Canny low threshold", 1, 255, 100, 1),
    ("Canny high threshold", 1, 255, 200, 1),
    ("Steps", 1, 100, 20, 1),
    ("Guidance Scale", 0.1, 30.0, 9.0, 0.1),
    ("Seed", -1, MAX_SEED, -1, 1),
    ("eta (DDIM)", 0.0, 1.0, 0.0, 0.01),
    ("Added Prompt", "best quality, extremely detailed"),
    ("Negative Prompt", NEGATIVE),
]
NEW = {"Control start", "Control end", "Preprocessor", "Sampler", *(s.label for s in SPEED)}


def declared(resolution: int = 512) -> tuple[Setting, ...]:
    return declare(annotators.load("canny"), resolution)


def defaults(**changes: Any) -> dict[str, Any]:
    return {"prompt": "a fox", **{s.name: s.default for s in declared()}, **changes}


def described(setting: Setting) -> tuple[Any, ...]:
    if isinstance(setting, Slider):
        return setting.label, setting.minimum, setting.maximum, setting.default, setting.step
    return setting.label, setting.default


def test_labels_ranges_defaults_and_order_are_the_originals() -> None:
    assert [described(s) for s in declared() if s.label not in NEW] == ORIGINAL
    assert {s.label for s in declared()} - {row[0] for row in ORIGINAL} == NEW


@pytest.mark.parametrize(("trained_at", "default"), [(256, 256), (512, 512), (768, 768), (64, 256)])
def test_the_resolution_defaults_to_the_models_within_the_range(trained_at: int, default: int) -> None:
    assert {s.name: s for s in declared(trained_at)}["resolution"].default == default


def test_what_is_advised_for_guess_mode_is_what_the_original_advises() -> None:
    by_name = {s.name: s for s in declared()}
    assert ADVISED_FOR_GUESSING["steps"] == 50 and 3 <= ADVISED_FOR_GUESSING["cfg_scale"] <= 5
    for name, value in ADVISED_FOR_GUESSING.items():
        assert by_name[name].check(value) == value


def test_the_samplers_on_offer_are_those_that_exist() -> None:
    assert list(SAMPLER_LABELS) == list(SAMPLERS)


def test_defaults_are_accepted_and_the_seed_becomes_concrete() -> None:
    settings = parse(defaults(), declared())
    assert 0 <= settings.seed <= MAX_SEED
    assert settings.seed != parse(defaults(), declared()).seed
    assert settings.full_prompt == "a fox, best quality, extremely detailed"
    assert dict(settings.detector) == {"low_threshold": 100, "high_threshold": 200}


@pytest.mark.parametrize(
    ("prompt", "added", "full"),
    [("", "fine", "fine"), ("fox", "", "fox"), ("", "", ""), (" fox ", "b", "fox, b")],
)
def test_no_comma_stands_alone_in_the_prompt(prompt: str, added: str, full: str) -> None:
    assert parse(defaults(prompt=prompt, added_prompt=added), declared()).full_prompt == full


@pytest.mark.parametrize("setting", declared(), ids=lambda s: s.name)
def test_every_setting_refuses_what_it_cannot_be_and_names_itself(setting: Setting) -> None:
    wrong: list[Any] = [None, [], {}, math.nan]
    if isinstance(setting, Slider):
        above, below = setting.maximum + 1, setting.minimum - 1
        wrong += [math.inf, -math.inf, "5", True, above, below, 10**30]
        if setting.whole:
            wrong.append(setting.default + 0.5)
    elif isinstance(setting, Checkbox):
        wrong += ["yes", 2]
    elif isinstance(setting, Text):
        wrong += [5, "x" * 10_001]
    else:
        assert isinstance(setting, Choice)
        wrong += ["", "other", 0]
    for value in wrong:
        with pytest.raises(ValueError, match=f"^{setting.name} (is|has) ") as told:
            parse(defaults(**{setting.name: value}), declared())
        assert "give" in str(told.value) and len(str(told.value)) < 300


def test_whole_floats_from_a_browser_are_taken_as_whole_numbers() -> None:
    settings = parse(defaults(steps=30.0, seed=5.0), declared())
    assert (settings.steps, settings.seed) == (30, 5)
    assert isinstance(settings.steps, int)


def test_control_cannot_start_after_its_end() -> None:
    with pytest.raises(ValueError, match="start is 0.8, after end 0.2"):
        parse(defaults(start=0.8, end=0.2), declared())


@pytest.mark.parametrize(("model", "start"), [(256, 256), (512, 512), (768, 512)])
def test_a_detector_starts_no_finer_than_the_model_draws(model: int, start: int) -> None:
    by_name = {setting.name: setting for setting in declare(annotators.load("mlsd"), model)}
    assert by_name["detect_resolution"].default == start


def test_what_trades_exactness_for_speed_is_off_and_stands_apart_and_closed() -> None:
    chosen = parse(defaults(), declared())
    assert {s.name: getattr(chosen, s.name) for s in SPEED} == SPEED_OPTIONS
    assert all(s.info.endswith("is exact.") for s in SPEED)
    with gr.Blocks():
        made, *_ = advanced("canny", declared())
    assert list(made) == [s.name for s in declared()]
    boxes = {name: _accordion(made[name]) for name in (*SPEED_OPTIONS, "steps")}
    assert {(boxes[name].label, boxes[name].open) for name in SPEED_OPTIONS} == {("Speed", False)}
    assert boxes["steps"].label == "Advanced options"


def _accordion(component: Any) -> gr.Accordion:
    """Return the accordion that a component lies in."""
    while not isinstance(component, gr.Accordion):
        component = component.parent
    return component
