"""Noise depends on a picture's own seed and on nothing else."""

from __future__ import annotations

import torch

from core.request import MAX_SEED
from core.sampling.noise import ImageNoise, image_seeds

CPU = torch.device("cpu")
SHAPE = (4, 8, 8)


def test_seeds_count_up_and_wrap() -> None:
    assert image_seeds(5, 3) == (5, 6, 7)
    assert image_seeds(MAX_SEED - 1, 4) == (MAX_SEED - 1, MAX_SEED, 0, 1)


def test_each_picture_of_a_batch_draws_what_it_draws_alone() -> None:
    together = ImageNoise(image_seeds(7, 3), SHAPE, CPU)
    alone = [ImageNoise((seed,), SHAPE, CPU) for seed in (7, 8, 9)]
    for _ in range(4):
        assert torch.equal(together(), torch.cat([noise() for noise in alone]))


def test_noise_is_new_each_time_and_unit_normal() -> None:
    noise = ImageNoise(image_seeds(0, 12), (4, 64, 64), CPU)
    first, second = noise(), noise()
    assert first.dtype == torch.float32
    assert abs(first.mean()) < 0.01 and abs(first.std() - 1) < 0.01  # 196,608 draws
    assert abs((first * second).mean()) < 0.01


def test_noise_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(1)
    wanted = torch.rand(3)
    torch.manual_seed(1)
    ImageNoise((1, 2), SHAPE, CPU)()
    assert torch.equal(torch.rand(3), wanted)
