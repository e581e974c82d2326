"""A model that predicts v draws what one that predicts the same as eps draws, up to the closed form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from core.models.unet import UNet
from core.sampling.guidance import GuidedDenoiser
from core.sampling.noise import ImageNoise
from core.sampling.samplers import SAMPLERS, ddim
from core.sampling.schedule import Schedule
from tests.tiny_model import latents, tiny_config

STEPS = 10
SCHEDULES = {kind: Schedule(tiny_config(kind).schedule) for kind in ("eps", "v")}
X_0 = latents(2, seed=5) * 0.5  # what the model believes, whatever it sees
X_T = latents(2, seed=6)


def no_noise() -> Tensor:
    raise AssertionError("A deterministic sampler draws no noise.")


def believer(kind: str) -> Callable[..., Tensor]:
    """Return a network that knows X_0 and says so as eps or as v, by their definitions."""
    schedule = SCHEDULES[kind]

    def predict(x_t: Tensor, t: Tensor, context: Any, *options: Any) -> Tensor:
        a = schedule.alpha_cumprod(float(t[0]))
        eps = (x_t - a**0.5 * X_0) / (1 - a) ** 0.5
        return eps if kind == "eps" else a**0.5 * eps - (1 - a) ** 0.5 * X_0

    return predict


def denoiser(kind: str) -> GuidedDenoiser:
    nothing = ((torch.zeros(1), torch.zeros(1)),)
    return GuidedDenoiser(cast(UNet, believer(kind)), SCHEDULES[kind], nothing, [], 1.0, False, STEPS)


@pytest.mark.parametrize("kind", ["eps", "v"])
def test_ddim_ends_where_the_equations_say(kind: str) -> None:
    schedule = SCHEDULES[kind]
    *_, last = ddim(denoiser(kind), X_T, schedule, STEPS, 0.0, no_noise)
    a_T, a_0 = (float(schedule.alphas_cumprod[t]) for t in (schedule.timesteps(STEPS)[0], 0))
    eps = (X_T - a_T**0.5 * X_0) / (1 - a_T) ** 0.5
    torch.testing.assert_close(last.x_t, a_0**0.5 * X_0 + (1 - a_0) ** 0.5 * eps, atol=2e-4, rtol=0)
    torch.testing.assert_close(last.x_0, X_0, atol=2e-4, rtol=0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_walks_the_same_way_with_either(name: str) -> None:
    ways = {}
    for kind, schedule in SCHEDULES.items():
        noise = ImageNoise((1, 2), (4, 8, 8), torch.device("cpu"))
        states = SAMPLERS[name](denoiser(kind), X_T, schedule, STEPS, 0.0, noise)
        ways[kind] = torch.stack([state.x_t for state in states])
    torch.testing.assert_close(ways["v"], ways["eps"], atol=5e-4, rtol=1e-4)
    assert (ways["eps"][-1] - X_T).abs().max() > 0.5


def test_v_taken_for_eps_ends_elsewhere() -> None:
    confused = GuidedDenoiser(
        cast(UNet, believer("v")),
        SCHEDULES["eps"],
        ((torch.zeros(1), torch.zeros(1)),),
        [],
        1.0,
        False,
        STEPS,
    )
    first = next(ddim(confused, X_T, SCHEDULES["eps"], STEPS, 0.0, no_noise))
    assert (first.x_0 - X_0).abs().max() > 0.5
