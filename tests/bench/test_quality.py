"""The measurement of quality compares like with like."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from core.pipeline import ControlNetPipeline
from core.request import SPEED_OPTIONS, ControlUnit, Request
from tests.bench.options import Case, option_cases
from tests.bench.quality import LONG, SAME_DB, Image, measure, psnr, rows, sampler_cases, table


def test_every_sampler_is_compared_with_its_own_long_walk_and_f1_with_what_is_usual() -> None:
    cases = sampler_cases(["ddim", "unipc"], [4, 20])
    assert [c.name for c in cases if c.shown] == [
        *("ddim, 20 steps", "ddim, 4 steps", "unipc, 4 steps", "unipc, 20 steps")
    ]
    names = {c.name: c for c in cases}
    assert all(names[c.like].request == {"sampler": c.request["sampler"], "steps": LONG} for c in cases)


def test_psnr_is_that_of_the_mean_square() -> None:
    black = np.zeros((4, 4, 3), np.uint8)
    assert psnr(black, black) == SAME_DB
    assert psnr(black, black + 1) == pytest.approx(20 * np.log10(255))
    assert psnr(black, black + 255) == pytest.approx(0.0)


class Painter:
    """Draws the scene itself, or with few steps its left half."""

    config = SimpleNamespace(cfg_scale=4.0)

    def __init__(self, scene: Image) -> None:
        self.scene = scene

    def __call__(self, request: Request) -> Any:
        picture = self.scene.copy()
        if request.steps < 10:
            picture[:, 64:] = picture[0, 0]
        return SimpleNamespace(images=[picture])


def test_a_row_tells_what_a_case_loses_to_the_first() -> None:
    scene = np.zeros((128, 128, 3), np.uint8)
    scene[32:96, 16:112] = 255
    cases = [Case("whole", "whole"), Case("half", "whole", {"steps": 4}, {"strength": 0.5})]
    pipe = cast(ControlNetPipeline, Painter(scene))
    ticks = iter(range(100))
    found = measure(pipe, [(scene, "a square")] * 3, cases, lambda: float(next(ticks)))
    whole, half = rows(cases, found)
    assert (whole.f1, whole.difference, whole.psnr, whole.seconds) == (1.0, 0.0, None, 1.0)
    assert half.difference == pytest.approx(half.f1 - 1.0) and half.f1 < 0.9
    assert half.difference_error == pytest.approx(0.0)
    assert half.psnr is not None and half.psnr < 20
    first = table([whole, half], "the whole").splitlines()[2]
    assert first == "| whole | 1.00 | 100% | 1.000 ± 0.000 |  |  |"


def test_every_option_for_speed_is_measured_alone_and_against_none() -> None:
    exact, *others = option_cases()
    asked = Request("x", (ControlUnit("canny", np.zeros((64, 64, 3), np.uint8)),))
    assert exact.of(asked).speed_options == {}
    seen = [(case.of(asked).speed_options, case.of(asked).controls[0].end) for case in others]
    assert all(len(options) + (end < 1.0) == 1 for options, end in seen)
    assert {name for options, _ in seen for name in options} == set(SPEED_OPTIONS)
