"""The cost of a step is counted from what is really there."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from core.training.cost import Cost, measure, step_cost
from tests.training.own_data import own_run


def test_the_parts_of_a_step_are_counted_in_bytes() -> None:
    layer = nn.Linear(10, 20, bias=False)
    x = torch.ones(3, 10)
    cost = step_cost(layer, list(layer.parameters()), lambda: layer(x))
    assert (cost.weights, cost.gradients, cost.optimiser) == (800, 800, 1600)
    assert cost.activations == 3 * 10 * 4 + 3 * 20 * 4  # input and output
    assert step_cost(layer, list(layer.parameters()), lambda: layer(x), offload=True).optimiser == 0


def test_a_cost_is_told_relative_to_another() -> None:
    assert Cost(1.5, 6, 3, 1, 2).over(Cost(1.0, 5, 1, 1, 1), "it") == "Over it: +50% memory, +50% time."


def test_a_run_is_measured_beside_its_base(base: Path, circles: Path, tmp_path: Path) -> None:
    run = own_run(base, circles, tmp_path)
    table = measure(run)
    rows = [line.split("|") for line in table.splitlines() if line.startswith("| ")]
    assert len(rows) == 4 and "plain inference" in table and "training the base itself" in table
    assert not tmp_path.joinpath("run.json").exists()
