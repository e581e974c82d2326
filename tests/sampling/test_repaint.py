"""From a picture under noise, and inside a mask only: what follows from the equations, for every sampler."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from core.sampling.repaint import Repaint, add_noise, composite, latent_share
from core.sampling.samplers import SAMPLERS, first_time
from tests.sampling.test_samplers import SCHEDULE, GaussianDenoiser, run

SHAPE = (1, 1, 4, 4)
each_sampler = pytest.mark.parametrize("name", SAMPLERS)


def unit_noise(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@each_sampler
def test_the_last_steps_visit_the_times_that_a_whole_walk_visits_last(name: str) -> None:
    def times(steps: int, skipped: int) -> list[float]:
        model = GaussianDenoiser()
        late = SCHEDULE.after(skipped)
        list(SAMPLERS[name](model, torch.zeros(SHAPE), late, steps, 0.0, lambda: torch.zeros(SHAPE)))
        assert model.times[0] == first_time(SAMPLERS[name], late, steps)
        return model.times

    whole = times(10, 0)
    for skipped in (1, 5, 9):
        assert times(10 - skipped, skipped) == pytest.approx(whole[skipped:])


def test_a_late_start_from_the_walks_own_latents_ends_where_the_whole_walk_ends() -> None:
    x_T = unit_noise(0)
    whole = run("ddim", x_T, 10)
    late = list(SAMPLERS["ddim"](GaussianDenoiser(), whole[3].x_t, SCHEDULE.after(4), 6, 0.0, lambda: x_T))
    torch.testing.assert_close(late[-1].x_t, whole[-1].x_t)


def test_noise_is_added_with_the_power_of_the_schedule() -> None:
    x_0, noise = unit_noise(1), unit_noise(2)
    found = add_noise(x_0, noise, SCHEDULE, 500)
    torch.testing.assert_close(SCHEDULE.x_0(found, noise, 500), x_0)


@each_sampler
def test_outside_the_mask_every_estimate_is_the_picture_and_inside_it_is_the_models(name: str) -> None:
    x_0, x_T = unit_noise(1) * 0.5, unit_noise(2)
    share = torch.zeros(SHAPE, dtype=torch.float64)
    share[..., :2] = 1.0
    model = Repaint(GaussianDenoiser(), SCHEDULE, x_0, x_T, share)
    walk = list(SAMPLERS[name](model, x_T, SCHEDULE, 8, 0.0, lambda: unit_noise(3)))
    alone = list(SAMPLERS[name](GaussianDenoiser(), x_T, SCHEDULE, 8, 0.0, lambda: unit_noise(3)))
    for state, free in zip(walk, alone, strict=True):
        torch.testing.assert_close(state.x_0[..., 2:], x_0[..., 2:])
        # This model looks at each place by itself, so that the mask makes no difference inside it.
        torch.testing.assert_close(state.x_0[..., :2], free.x_0[..., :2])


def test_a_model_sees_the_picture_under_noise_outside_the_mask() -> None:
    seen: list[Tensor] = []

    def model(x_t: Tensor, t: float, step_index: int) -> Tensor:
        seen.append(x_t)
        return x_t

    x_0, noise = unit_noise(1), unit_noise(2)
    Repaint(model, SCHEDULE, x_0, noise, torch.zeros(SHAPE).double())(unit_noise(3), 300, 0)
    torch.testing.assert_close(seen[0], add_noise(x_0, noise, SCHEDULE, 300))


def test_a_mask_becomes_the_share_of_each_latent_that_it_covers() -> None:
    mask = np.zeros((64, 128), np.uint8)
    mask[:8, :12] = 255
    share = latent_share(mask, 8)
    assert share.shape == (1, 1, 8, 16)
    assert share[0, 0, 0, :3].tolist() == pytest.approx([1.0, 0.5, 0.0], abs=0.01)


def test_the_composite_keeps_every_bit_where_the_mask_is_nothing() -> None:
    rng = np.random.default_rng(0)
    painted, picture = (rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(2))
    mask = np.zeros((64, 64), np.uint8)
    mask[16:32], mask[32:40] = 255, 128
    found = composite(painted, picture, mask)
    assert np.array_equal(found[:16], picture[:16]) and np.array_equal(found[40:], picture[40:])
    assert np.array_equal(found[16:32], painted[16:32])
    half = (picture[32:40].astype(float) + painted[32:40]) / 2
    assert np.abs(found[32:40] - half).max() <= 1.1
