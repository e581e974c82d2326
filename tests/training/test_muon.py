"""Muon takes the steps it says, goes on exactly, and leaves vectors to AdamW."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from core.training.loop import LoopConfig, Trainer
from core.training.muon import LIKE_ADAMW, Muon, orthogonalised


@pytest.mark.parametrize("shape", [(24, 24), (16, 90), (90, 16)])
def test_singular_values_go_to_about_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape) * 37.0
    values = torch.linalg.svdvals(orthogonalised(matrix))
    assert float(values.max()) < 1.3 and float(values.min()) > 0.3


def test_the_direction_is_the_polar_factor() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(20, 60)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonalised(matrix)
    assert float(torch.cosine_similarity(found.flatten(), (left @ right).flatten(), 0)) > 0.95


def test_a_vector_takes_the_steps_of_adamw() -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Parameter(torch.ones(5)), nn.Parameter(torch.ones(5))
    a, b = Muon([ours], 0.1, weight_decay=0.1), torch.optim.AdamW([theirs], 0.1, weight_decay=0.1)
    for _ in range(4):
        grad = torch.randn(5)
        ours.grad, theirs.grad = grad.clone(), grad.clone()
        a.step()
        b.step()
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_a_convolution_moves_as_far_as_adamw_would_move_it() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(16, 8, 3, 3))
    weight.grad = torch.randn_like(weight) * 1e-6
    Muon([weight], 0.01, weight_decay=0.0).step()
    assert float(weight.detach().square().mean().sqrt()) == pytest.approx(0.01 * LIKE_ADAMW, rel=0.15)


def _train(output: Path, steps: int) -> dict[str, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.GroupNorm(2, 6), nn.Conv2d(6, 3, 1))
    loop = LoopConfig(output=output, steps=steps, warmup=1, muon=True)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        result: Tensor = net(torch.randn(2, 3, 8, 8, generator=generator)).square().mean()
        return result

    Trainer(net.named_parameters(), loop).run(loss, 2)
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def test_five_and_five_steps_equal_ten_bit_for_bit(tmp_path: Path) -> None:
    whole = _train(tmp_path / "whole", 10)
    _train(tmp_path / "parts", 5)
    parts = _train(tmp_path / "parts", 10)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
