"""The samplers solve what has a closed form: with x_0 normal, the best eps is linear in x_t."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from core.config import ScheduleConfig
from core.sampling.samplers import SAMPLERS, StepState
from core.sampling.schedule import Schedule

SCHEDULE = Schedule(ScheduleConfig())
S = 0.5  # the deviation of the data


class GaussianDenoiser:
    """The exact eps of a normal distribution: E[eps | x_t] = sqrt(1 - a) x_t / (a s^2 + 1 - a)."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.indices: list[int] = []

    def __call__(self, x_t: Tensor, t: float, step_index: int) -> Tensor:
        self.times.append(t)
        self.indices.append(step_index)
        a = SCHEDULE.alpha_cumprod(t)
        return math.sqrt(1 - a) / (a * S**2 + 1 - a) * x_t


def no_noise() -> Tensor:
    raise AssertionError("a deterministic sampler drew noise")


def run(name: str, x_T: Tensor, steps: int, eta: float = 0.0, seed: int | None = None) -> list[StepState]:
    generator = torch.Generator().manual_seed(seed or 0)

    def noise() -> Tensor:
        return torch.randn(x_T.shape, generator=generator, dtype=x_T.dtype)

    sampler = SAMPLERS[name]
    return list(sampler(GaussianDenoiser(), x_T, SCHEDULE, steps, eta, no_noise if seed is None else noise))


def deviation(a: float) -> float:
    """Of x_t where the share ``a`` of the power is signal."""
    return math.sqrt(a * S**2 + 1 - a)


def error_at(name: str, steps: int) -> float:
    """How far the last state that still holds noise is from the exact solution of the ODE."""
    x_T = torch.ones(1, dtype=torch.float64)
    states = run(name, x_T, steps)
    # The ODE keeps each point's quantile: x(a) / deviation(a) is constant.
    if name == "dpmpp_2m":  # its last step goes on to no noise at all, in a first-order step of fixed length
        start, state = SCHEDULE.alpha_cumprod(999), states[-2]
    else:
        start = SCHEDULE.alpha_cumprod(SCHEDULE.timesteps(steps)[0] if name == "ddim" else 999)
        state = states[-1]
    exact = deviation(SCHEDULE.alpha_cumprod(0)) / deviation(start)
    return abs(state.x_t.item() - exact)


def test_the_samplers_are_these_four() -> None:
    assert list(SAMPLERS) == ["ddim", "euler_a", "dpmpp_2m", "unipc"]


@pytest.mark.parametrize(
    ("name", "low", "high"), [("ddim", 0.8, 1.3), ("dpmpp_2m", 1.8, 2.6), ("unipc", 2.5, 4.1)]
)
def test_halving_the_steps_length_divides_the_error_by_two_to_the_order(
    name: str, low: float, high: float
) -> None:
    errors = [error_at(name, steps) for steps in (40, 80, 160)]
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert low < math.log2(coarse / fine) < high, errors


@pytest.mark.parametrize("name", ["dpmpp_2m", "unipc"])
def test_second_order_beats_first_order_at_twenty_steps(name: str) -> None:
    assert error_at(name, 20) < 0.2 * error_at("ddim", 20)


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "unipc"])
def test_deterministic_samplers_draw_no_noise_and_ignore_it(name: str) -> None:
    x_T = torch.linspace(-2, 2, 5)
    torch.testing.assert_close(run(name, x_T, 9)[-1].x_t, run(name, x_T, 9, seed=3)[-1].x_t, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["euler_a", "dpmpp_2m", "unipc"])
def test_eta_is_for_ddim_alone(name: str) -> None:
    x_T = torch.linspace(-2, 2, 5)
    plain, with_eta = run(name, x_T, 7, 0.0, seed=1), run(name, x_T, 7, 1.0, seed=1)
    assert torch.equal(plain[-1].x_t, with_eta[-1].x_t)
    assert not torch.equal(run("ddim", x_T, 7, 0.0, seed=1)[-1].x_t, run("ddim", x_T, 7, 1.0, seed=1)[-1].x_t)


@pytest.mark.parametrize(("name", "eta"), [("euler_a", 0.0), ("ddim", 1.0), ("ddim", 0.5)])
def test_sampling_with_noise_ends_in_the_variance_of_the_data(name: str, eta: float) -> None:
    x_T = torch.randn(10_000, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    x = run(name, x_T, 250, eta, seed=11)[-1].x_t
    # The deviation's standard error is 0.7 %; euler_a's own error at 250 steps is 2.7 % (next test).
    assert x.std().item() == pytest.approx(S, rel=0.05)
    assert abs(x.mean().item()) < 4 * S / 100


def test_euler_a_ends_in_the_variance_that_its_own_recursion_gives() -> None:
    steps = 6
    sigmas = SCHEDULE.linear_sigmas(steps)
    variance = 1 + sigmas[0] ** 2  # of x = x_0 + sigma eps, which starts as unit noise
    for sigma, following in zip(sigmas, sigmas[1:], strict=False):
        slope = sigma / (S**2 + sigma**2)  # eps = slope * x, from the closed form
        kept = following**2 / sigma
        variance = (1 + (kept - sigma) * slope) ** 2 * variance + following**2 - kept**2
    x_T = torch.randn(100_000, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    measured = run("euler_a", x_T, steps, seed=6)[-1].x_t.var().item()
    assert measured == pytest.approx(variance, rel=0.02)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 9, 27, 30, 36, 37, 99, 333, 999, 1000])
def test_exactly_as_many_steps_and_model_calls_as_asked(name: str, steps: int) -> None:
    model = GaussianDenoiser()
    x_T = torch.linspace(-1, 1, 4)
    states = list(SAMPLERS[name](model, x_T, SCHEDULE, steps, 0.0, lambda: torch.ones(4)))
    assert [state.step for state in states] == list(range(1, steps + 1))
    assert model.indices == list(range(steps))
    assert all(a > b for a, b in zip(model.times, model.times[1:], strict=False))
    assert all(0 <= t <= 999 for t in model.times)
    assert torch.isfinite(states[-1].x_t).all()


def test_any_number_of_steps_is_kept_to() -> None:
    x_T = torch.ones(1)
    for name, sampler in SAMPLERS.items():
        for steps in range(1, 1001, 41):
            states = sampler(GaussianDenoiser(), x_T, SCHEDULE, steps, 0.0, lambda: torch.zeros(1))
            assert sum(1 for _ in states) == steps, (name, steps)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_perfect_model_is_believed(name: str) -> None:
    """Where the data is one point, every sampler ends there, and says so at each step."""
    target = torch.tensor([0.3, -1.2, 2.0], dtype=torch.float64)

    def model(x_t: Tensor, t: float, step_index: int) -> Tensor:
        a = SCHEDULE.alpha_cumprod(t)
        return (x_t - math.sqrt(a) * target) / math.sqrt(1 - a)

    x_T = torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64)
    states = list(SAMPLERS[name](model, x_T, SCHEDULE, 12, 0.0, lambda: torch.ones(3, dtype=torch.float64)))
    for state in states:
        torch.testing.assert_close(state.x_0, target)
    # ddim and unipc end at time step 0, which holds 3 % of noise
    atol = 1e-9 if name in {"euler_a", "dpmpp_2m"} else 0.08
    torch.testing.assert_close(states[-1].x_t, target, rtol=0, atol=atol)


@pytest.mark.parametrize("name", SAMPLERS)
def test_float32_latents_stay_float32(name: str) -> None:
    assert run(name, torch.ones(3), 4, seed=0)[-1].x_t.dtype == torch.float32
