from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import annotators
from apps import find_apps
from apps.page.drawing import draw, make_hint
from apps.page.files import PictureFolder
from apps.page.model import Model
from apps.page.plan import plan_one
from apps.page.restore import restore
from apps.page.settings import Settings, declare, parse
from tests.apps.fakes import FakePipeline
from tests.apps.pictures import scene

(CANNY,) = find_apps(["canny"])
DECLARED = declare(annotators.load("canny"), 256)
CHANGED: dict[str, Any] = {
    "num_samples": 2, "resolution": 320, "strength": 0.55, "start": 0.1, "end": 0.9, "guess_mode": True,
    "preprocessor": "detect", "low_threshold": 30, "high_threshold": 90, "steps": 4, "sampler": "unipc",
    "cfg_scale": 3.3, "seed": 11, "eta": 0.25, "added_prompt": "finely drawn", "negative_prompt": "rain",
    "control_interval": 2, "cache_interval": 3, "token_merging_ratio": 0.25,
}  # fmt: skip


def settings(**changes: Any) -> Settings:
    return parse(
        {"prompt": "a fox, sitting", **{s.name: s.default for s in DECLARED}, **CHANGED, **changes}, DECLARED
    )


def made(
    tmp_path: Path, chosen: Settings, size: tuple[int, int] = (300, 200)
) -> tuple[FakePipeline, tuple[Path, ...]]:
    scene(*size).save(tmp_path / "photo.png")
    pipeline = FakePipeline()
    folder = PictureFolder(tmp_path / "served")
    *_, last = draw(plan_one(CANNY, tmp_path / "photo.png", chosen), Model.ready(pipeline), folder)
    return pipeline, last.files


@pytest.mark.parametrize("index", [0, 1, 2])
def test_every_setting_comes_back_from_the_map_and_from_each_picture(tmp_path: Path, index: int) -> None:
    assert set(CHANGED) == {s.name for s in DECLARED}
    assert all(CHANGED[s.name] != s.default for s in DECLARED if s.name != "preprocessor")
    pipeline, files = made(tmp_path, settings())
    back = restore(files[index], DECLARED)
    assert back.prompt == "a fox, sitting"
    assert back.values == {**CHANGED, "preprocessor": "none"}
    assert back.hint is not None and back.notes == ()
    np.testing.assert_array_equal(back.hint, pipeline.requests[0].controls[0].hint)


@pytest.mark.parametrize("size", [(300, 200), (257, 1900), (64, 64), (5000, 100)])
def test_what_comes_back_makes_the_same_request(tmp_path: Path, size: tuple[int, int]) -> None:
    pipeline, files = made(tmp_path, settings(), size)
    back = restore(files[1], DECLARED)
    assert back.hint is not None
    Image.fromarray(back.hint).save(tmp_path / "map.png")
    again = parse({"prompt": back.prompt, **back.values}, DECLARED)
    hint = make_hint(CANNY, tmp_path / "map.png", again).hint
    np.testing.assert_array_equal(hint, pipeline.requests[0].controls[0].hint)
    assert again.full_prompt == pipeline.requests[0].prompt


def test_another_programs_picture_gives_what_it_says_and_keeps_the_rest(tmp_path: Path) -> None:
    info = PngInfo()
    text = "a castle\nNegative prompt: fog\nSteps: 30, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 512x512"
    info.add_text("parameters", text)
    Image.new("RGB", (64, 64)).save(tmp_path / "other.png", pnginfo=info)
    back = restore(tmp_path / "other.png", DECLARED)
    assert (back.prompt, back.values["added_prompt"], back.values["negative_prompt"]) == (
        "a castle",
        "",
        "fog",
    )
    assert (back.values["steps"], back.values["sampler"], back.values["seed"]) == (30, "euler_a", 5)
    assert back.hint is None and "low_threshold" not in back.values and "preprocessor" not in back.values


def test_a_value_out_of_the_pages_range_is_left_out_and_told(tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text("parameters", "a castle\nSteps: 500, Sampler: DDIM, CFG scale: 7, Seed: 5, Size: 512x512")
    Image.new("RGB", (64, 64)).save(tmp_path / "other.png", pnginfo=info)
    back = restore(tmp_path / "other.png", DECLARED)
    assert "steps" not in back.values and back.values["cfg_scale"] == 7
    assert any("steps is 500" in note for note in back.notes)


def test_a_picture_without_settings_is_refused_with_the_remedy(tmp_path: Path) -> None:
    scene().save(tmp_path / "plain.png")
    with pytest.raises(ValueError, match="carries no settings"):
        restore(tmp_path / "plain.png", DECLARED)
