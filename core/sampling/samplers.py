"""The samplers: generators that walk from noise to latents, one model call and one ``StepState`` a step.

All speak of latents of about unit variance, ``x_t = sqrt(a) * x_0 + sqrt(1 - a) * eps``, and start from the
same unit noise ``x_T``. Coefficients are float64 numbers; latents are float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from core.sampling.schedule import Schedule

# (x_t, time step, index of the step from 0) -> eps, the predicted noise, of x_t's shape
Denoiser = Callable[[Tensor, float, int], Tensor]
NoiseSource = Callable[[], Tensor]  # fresh unit noise of the latents' shape


@dataclass(frozen=True, slots=True, eq=False)
class StepState:
    """One finished step, from 1: the latents ``x_t`` after it, and ``x_0``, the estimate it rests on."""

    step: int
    x_t: Tensor
    x_0: Tensor


Sampler = Callable[[Denoiser, Tensor, Schedule, int, float, NoiseSource], Iterator[StepState]]


def ddim(
    model: Denoiser, x_T: Tensor, schedule: Schedule, steps: int, eta: float, noise: NoiseSource
) -> Iterator[StepState]:
    """Walk the original's DDIM: first order; ``eta`` 0 is deterministic and draws no noise, 1 is DDPM-like.

    As in the original, the last step ends at the noise level of time step 0, not at none.

    Source: arXiv 2010.02502, equations 12 and 16.
    """
    times = schedule.timesteps(steps)
    alphas = [float(schedule.alphas_cumprod[t]) for t in [*times, 0]]
    x_t = x_T
    for i, t in enumerate(times):
        a, a_prev = alphas[i], alphas[i + 1]
        eps = model(x_t, t, i)
        x_0 = (x_t - math.sqrt(1.0 - a) * eps) / math.sqrt(a)
        sigma = eta * math.sqrt((1.0 - a_prev) / (1.0 - a) * (1.0 - a / a_prev))
        x_t = math.sqrt(a_prev) * x_0 + math.sqrt(max(1.0 - a_prev - sigma**2, 0.0)) * eps
        if sigma > 0.0:
            x_t = x_t + sigma * noise()
        yield StepState(i + 1, x_t, x_0)


def euler_a(
    model: Denoiser, x_T: Tensor, schedule: Schedule, steps: int, eta: float, noise: NoiseSource
) -> Iterator[StepState]:
    """Take an Euler step to below the next noise level, then add fresh noise up to it; ``eta`` plays no part.

    Source: ancestral sampling as in DDPM (arXiv 2006.11239), in the noise levels of arXiv 2206.00364.
    """
    sigmas = schedule.linear_sigmas(steps)
    x_t = x_T
    for i in range(steps):
        sigma, sigma_next = sigmas[i], sigmas[i + 1]
        eps = model(x_t, schedule.time(sigma), i)
        x = x_t * math.hypot(1.0, sigma)  # x_0 + sigma * eps
        x_0 = x - sigma * eps
        fresh = sigma_next * math.sqrt(1.0 - (sigma_next / sigma) ** 2)
        kept = sigma_next**2 / sigma  # what is left so that kept^2 + fresh^2 = sigma_next^2
        x = x_0 + kept * eps
        if fresh > 0.0:
            x = x + fresh * noise()
        x_t = x / math.hypot(1.0, sigma_next)
        yield StepState(i + 1, x_t, x_0)


def dpmpp_2m(
    model: Denoiser, x_T: Tensor, schedule: Schedule, steps: int, eta: float, noise: NoiseSource
) -> Iterator[StepState]:
    """Walk DPM-Solver++ (2M) over Karras noise levels: second order, deterministic; ``eta`` plays no part.

    The first step and the last, which ends without noise, are first order.

    Source: arXiv 2211.01095, algorithm 2, in x = x_0 + sigma * eps, where alpha is 1 and lambda is
    -log(sigma).
    """
    sigmas = schedule.karras_sigmas(steps)
    x = x_T * math.hypot(1.0, sigmas[0])
    x_0_before: Tensor | None = None
    h_before = 0.0
    for i in range(steps):
        sigma, sigma_next = sigmas[i], sigmas[i + 1]
        x_0 = x - sigma * model(x / math.hypot(1.0, sigma), schedule.time(sigma), i)
        if sigma_next == 0.0:
            x = x_0
        else:
            h = math.log(sigma / sigma_next)
            slope = 0.0 if x_0_before is None else h / (2.0 * h_before)
            ahead = x_0 if x_0_before is None else x_0 + slope * (x_0 - x_0_before)
            x = sigma_next / sigma * x - math.expm1(-h) * ahead
            x_0_before, h_before = x_0, h
        yield StepState(i + 1, x / math.hypot(1.0, sigma_next), x_0)


@dataclass(frozen=True, slots=True, eq=False)
class _Point:
    """A point on UniPC's way: signal and noise factors, their log ratio, latents, estimate of x_0."""

    alpha: float
    sigma: float
    lam: float
    x: Tensor
    x_0: Tensor


def _unipc_move(
    start: _Point, before: _Point | None, alpha: float, sigma: float, lam: float, x_0_end: Tensor | None
) -> Tensor:
    """Return the latents at (alpha, sigma, lam), moved there from ``start``.

    Second order where there is a point ``before`` the start, else first order. With ``x_0_end``, the estimate
    at the end itself, this is the corrector (UniC), one order higher; without it the predictor (UniP). B(h)
    is bh2.
    """
    h = lam - start.lam
    b = math.expm1(-h)
    x = sigma / start.sigma * start.x - alpha * b * start.x_0
    # The paper's phi_k at -h; over B(h) they are the right hand sides of its order conditions.
    phi_2 = b / -h - 1.0
    phi_3 = phi_2 / -h - 0.5
    rhs_1, rhs_2 = phi_2 / b, 2.0 * phi_3 / b
    if before is None:
        return x if x_0_end is None else x - alpha * b * 0.5 * (x_0_end - start.x_0)
    r = (before.lam - start.lam) / h
    slope = (before.x_0 - start.x_0) / r
    if x_0_end is None:
        return x - alpha * b * 0.5 * slope
    weight = (rhs_1 - rhs_2) / (1.0 - r)
    return x - alpha * b * (weight * slope + (rhs_1 - weight) * (x_0_end - start.x_0))


def unipc(
    model: Denoiser, x_T: Tensor, schedule: Schedule, steps: int, eta: float, noise: NoiseSource
) -> Iterator[StepState]:
    """Walk UniPC: predictor and corrector of order 2 with one model call a step; ``eta`` plays no part.

    The paper leaves the time steps open; these are at Karras noise levels, down to that of time step 0. Steps
    even in time make the last one so long that the error at 20 steps is ten times larger (x_0 normal with
    deviation 0.5). The last step is first order and has no corrector, as published. ``x_t`` of every step but
    the last is the prediction, corrected once the next step's model call is there.

    Source: arXiv 2302.04867, algorithms 5 to 8 (data prediction, multistep, B(h) = exp(h) - 1).
    """
    levels = schedule.karras_sigmas(steps + 1)[:-1]
    lams = [-math.log(level) for level in levels]
    alphas = [1.0 / math.hypot(1.0, level) for level in levels]
    sigmas = [level * alpha for level, alpha in zip(levels, alphas, strict=True)]
    x_t = x_T
    points: list[_Point] = []  # at most the two before this step
    for i in range(steps):
        x_0 = (x_t - sigmas[i] * model(x_t, schedule.time(levels[i]), i)) / alphas[i]
        if points:
            before = points[-2] if len(points) > 1 else None
            x_t = _unipc_move(points[-1], before, alphas[i], sigmas[i], lams[i], x_0)
        points = [*points[-1:], _Point(alphas[i], sigmas[i], lams[i], x_t, x_0)]
        before = points[-2] if len(points) > 1 and i + 1 < steps else None
        x_t = _unipc_move(points[-1], before, alphas[i + 1], sigmas[i + 1], lams[i + 1], None)
        yield StepState(i + 1, x_t, x_0)


def first_time(sampler: Sampler, schedule: Schedule, steps: int) -> float:
    """Return the time step of the latents that a sampler starts from, by asking it."""
    asked: list[float] = []

    def listen(x_t: Tensor, t: float, step_index: int) -> Tensor:
        asked.append(t)
        return x_t

    nothing = torch.zeros(1)
    next(sampler(listen, nothing, schedule, steps, 0.0, lambda: nothing))
    return asked[0]


SAMPLERS: dict[str, Sampler] = {"ddim": ddim, "euler_a": euler_a, "dpmpp_2m": dpmpp_2m, "unipc": unipc}
