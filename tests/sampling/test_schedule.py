"""The schedule is the original's, and every number of steps is kept to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from core.config import ScheduleConfig
from core.sampling.schedule import Schedule

GOLDEN = Path(__file__).parents[1] / "golden" / "sampling" / "schedule.safetensors"


@pytest.fixture(scope="module")
def schedule() -> Schedule:
    return Schedule(ScheduleConfig())


def test_betas_and_cumulative_alphas_are_the_originals(schedule: Schedule) -> None:
    golden = load_file(GOLDEN)
    np.testing.assert_allclose(schedule.betas, golden["betas"], rtol=1e-14)
    np.testing.assert_allclose(schedule.alphas_cumprod, golden["alphas_cumprod"], rtol=1e-13)
    assert schedule.betas.dtype == schedule.alphas_cumprod.dtype == np.float64


def test_every_number_of_steps_gives_that_many_different_time_steps(schedule: Schedule) -> None:
    for steps in range(1, 1001):
        times = schedule.timesteps(steps)
        assert len(times) == steps
        assert all(0 <= t <= 999 for t in times)
        assert all(a > b for a, b in zip(times, times[1:], strict=False))


@pytest.mark.parametrize("steps", [10, 20, 50, 100])
def test_time_steps_are_the_originals_in_its_own_file(schedule: Schedule, steps: int) -> None:
    assert schedule.timesteps(steps)[::-1] == load_file(GOLDEN)[f"ddim_timesteps.{steps}"].tolist()


@pytest.mark.parametrize("steps", [2, 4, 5, 8, 10, 20, 25, 40, 50, 100, 125, 200, 250, 500])
def test_time_steps_are_the_originals_where_steps_divide_1000(schedule: Schedule, steps: int) -> None:
    assert schedule.timesteps(steps)[::-1] == [t + 1 for t in range(0, 1000, 1000 // steps)]


def test_time_steps_are_evenly_spread(schedule: Schedule) -> None:
    for steps in (3, 7, 30, 31, 60, 99, 333, 999):
        gaps = -np.diff(schedule.timesteps(steps))
        assert gaps.max() - gaps.min() <= 1


def test_a_single_step_starts_where_there_is_noise_to_remove(schedule: Schedule) -> None:
    assert schedule.timesteps(1) == [999]


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_impossible_numbers_of_steps_are_refused(schedule: Schedule, steps: int) -> None:
    with pytest.raises(ValueError, match=f"steps is {steps}: give a whole number from 1 to 1000"):
        schedule.timesteps(steps)


def test_time_is_the_inverse_of_sigma(schedule: Schedule) -> None:
    for t in (0.0, 0.25, 1.0, 499.9, 731.0, 998.5, 999.0):
        assert schedule.time(schedule.sigma(t)) == pytest.approx(t, abs=1e-6)


def test_sigma_and_cumulative_alpha_agree_between_and_on_whole_steps(schedule: Schedule) -> None:
    for t in (0.0, 17.0, 17.5, 999.0):
        alpha = schedule.alpha_cumprod(t)
        assert schedule.sigma(t) ** 2 == pytest.approx((1 - alpha) / alpha, rel=1e-12)
    assert schedule.alpha_cumprod(17) == schedule.alphas_cumprod[17]


@pytest.mark.parametrize("steps", [1, 2, 20, 1000])
def test_noise_levels_fall_from_the_highest_to_nothing(schedule: Schedule, steps: int) -> None:
    for sigmas in (schedule.karras_sigmas(steps), schedule.linear_sigmas(steps)):
        assert len(sigmas) == steps + 1
        assert sigmas[0] == pytest.approx(schedule.sigma(999))
        assert sigmas[-1] == 0.0
        assert all(a > b for a, b in zip(sigmas, sigmas[1:], strict=False))
        if steps > 1:
            assert sigmas[-2] == pytest.approx(schedule.sigma(0))


def test_karras_levels_are_even_in_their_seventh_root(schedule: Schedule) -> None:
    roots = np.array(schedule.karras_sigmas(12)[:-1]) ** (1 / 7)
    np.testing.assert_allclose(np.diff(roots), np.diff(roots)[0], rtol=1e-9)


def test_x_0_eps_and_v_agree(schedule: Schedule) -> None:
    generator = torch.Generator().manual_seed(1)
    x_0, eps = torch.randn(2, 3, 4, 5, 5, generator=generator, dtype=torch.float64)
    for t in (0, 400, 650.25, 999):
        a = schedule.alpha_cumprod(t)
        x_t = a**0.5 * x_0 + (1 - a) ** 0.5 * eps
        v = a**0.5 * eps - (1 - a) ** 0.5 * x_0
        torch.testing.assert_close(schedule.eps_from_v(v, x_t, t), eps)
        torch.testing.assert_close(schedule.x_0(x_t, eps, t), x_0, rtol=1e-9, atol=1e-9)
