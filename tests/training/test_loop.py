"""The training loop resumes exactly and never loses its last good checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import pytest
import torch
from torch import Tensor, nn

from core.training.loop import LoopConfig, Trainer


def _train(output: Path, steps: int, stop_after: int | None = None) -> dict[str, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.SiLU(), nn.Linear(16, 2))
    trainer = Trainer(net.named_parameters(), LoopConfig(output=output, steps=steps, decay=3, warmup=2))

    def loss(step: int, generator: torch.Generator) -> Tensor:
        x = torch.randn(8, 6, generator=generator)
        return (net(x) - x[:, :2]).pow(2).mean()

    for _ in range(steps if stop_after is None else stop_after):
        if trainer.step < steps:
            trainer.one_step(loss)
    trainer.save()
    weights = {k: v.clone() for k, v in net.state_dict().items()}
    return weights | {f"ema.{k}": v for k, v in trainer.ema.items()}


def test_five_and_five_steps_equal_ten_bit_for_bit(tmp_path: Path) -> None:
    whole = _train(tmp_path / "whole", 10)
    _train(tmp_path / "halves", 10, stop_after=5)
    halves = _train(tmp_path / "halves", 10, stop_after=5)
    assert whole.keys() == halves.keys()
    for key, value in whole.items():
        assert torch.equal(value, halves[key]), key


def test_training_changes_weights_and_the_average_lags_behind(tmp_path: Path) -> None:
    start, end = _train(tmp_path / "a", 10, stop_after=0), _train(tmp_path / "b", 10)
    assert not torch.equal(start["0.weight"], end["0.weight"])
    moved = (end["0.weight"] - start["0.weight"]).abs().sum()
    assert 0 < (end["ema.0.weight"] - start["0.weight"]).abs().sum() < moved


def test_the_rate_rises_stays_and_falls_to_zero() -> None:
    config = LoopConfig(output=Path("x"), steps=100, learning_rate=1.0, warmup=10, decay=20)
    assert config.rate(0) == pytest.approx(0.1)
    assert config.rate(50) == 1.0
    assert config.rate(90) == pytest.approx(0.5)
    assert config.rate(100) == 0.0


def test_a_gradient_that_is_not_finite_stops_before_it_spoils_the_weights(tmp_path: Path) -> None:
    net = nn.Linear(2, 1)
    before = net.weight.clone()
    trainer = Trainer(net.named_parameters(), LoopConfig(output=tmp_path, steps=3))
    with pytest.raises(FloatingPointError, match="Lower the learning rate"):
        trainer.one_step(lambda step, g: net(torch.full((1, 2), float("inf"))).sum())
    assert torch.equal(net.weight, before)


def test_a_torn_write_leaves_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _train(tmp_path, 10, stop_after=4)
    good = (tmp_path / "checkpoint.pt").read_bytes()

    def torn(state: object, file: BinaryIO) -> None:
        file.write(b"half a file")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(OSError, match="No space"):
        _train(tmp_path, 10, stop_after=2)
    assert (tmp_path / "checkpoint.pt").read_bytes() == good
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]
