"""The training loop resumes exactly and never loses its last good checkpoint."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest
import torch
from torch import Tensor, nn

from core.errors import SuiteError
from core.training.checkpoints import Checkpoints
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


def test_by_the_clock_the_rate_falls_in_the_last_part_of_the_minutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("core.training.loop.time.monotonic", lambda: clock[0])
    rates: list[float] = []
    net = nn.Linear(2, 2)
    config = LoopConfig(output=tmp_path, steps=1000, minutes=10 / 60, fall=0.4, learning_rate=1.0, warmup=1)
    trainer = Trainer(net.named_parameters(), config)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        clock[0] += 1.0
        return net(torch.ones(1, 2)).square().mean()

    trainer.run(loss, 1)
    assert rates[:7] == [1.0] * 7  # six seconds of ten
    assert rates[7:] == pytest.approx([0.75, 0.5, 0.25, 0.0])


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


def _state(step: int) -> dict[str, Tensor]:
    return {"step": torch.tensor(step)}


def test_the_last_checkpoints_stay_and_a_torn_one_is_passed_over(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (10, 20, 30):
        checkpoints.write(step, _state(step))
    assert [path.name for path in checkpoints.found()] == ["step_00000030.pt", "step_00000020.pt"]
    newest = tmp_path / "step_00000030.pt"
    newest.write_bytes(newest.read_bytes()[:200])
    found = checkpoints.read()
    assert found is not None and found[0].name == "step_00000020.pt" and int(found[1]["step"]) == 20
    (tmp_path / "step_00000020.pt").write_bytes(b"")
    with pytest.raises(ValueError, match="No checkpoint in .* can be read"):
        checkpoints.read()


def test_on_a_full_disk_old_checkpoints_make_room_and_the_newest_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (10, 20, 30):
        checkpoints.write(step, _state(step))
    real = torch.save

    def full(state: object, file: BinaryIO) -> None:
        if len(checkpoints.found()) > 1:
            raise RuntimeError("enforce fail")  # torch's own words for it
        real(state, file)

    monkeypatch.setattr(torch, "save", full)
    checkpoints.write(40, _state(40))
    assert [path.name for path in checkpoints.found()] == ["step_00000040.pt", "step_00000030.pt"]

    def fuller(state: object, file: BinaryIO) -> None:
        raise RuntimeError("enforce fail")

    monkeypatch.setattr(torch, "save", fuller)
    with pytest.raises(OSError, match="MB are free"):
        checkpoints.write(50, _state(50))
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000040.pt"]


def _countdown(output: Path) -> tuple[Trainer, Callable[[int, torch.Generator], Tensor]]:
    weight = nn.Parameter(torch.ones(1))
    trainer = Trainer([("w", weight)], LoopConfig(output=output, steps=6, save_every=2))
    return trainer, lambda batch, generator: weight.pow(2).sum()


def test_a_full_disk_does_not_end_a_run_before_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, loss = _countdown(tmp_path)
    real = torch.save

    def full_at_4(state: dict[str, int], file: BinaryIO) -> None:
        if state["step"] == 4:
            raise RuntimeError("enforce fail")
        real(state, file)

    monkeypatch.setattr(torch, "save", full_at_4)
    trainer.run(loss, 1)
    assert torch.load(tmp_path / "checkpoint.pt")["step"] == 6
    trainer, loss = _countdown(tmp_path / "full")
    monkeypatch.setattr(torch, "save", lambda state, file: full_at_4({"step": 4}, file))
    with pytest.raises(SuiteError, match="Step 6: the checkpoint cannot be written"):
        trainer.run(loss, 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_after_the_step_it_falls_in_and_saves(tmp_path: Path, number: signal.Signals) -> None:
    trainer, loss = _countdown(tmp_path)
    before = signal.getsignal(number)

    def interrupted(batch: int, generator: torch.Generator) -> Tensor:
        if batch == 2:
            signal.raise_signal(number)
        return loss(batch, generator)

    trainer.run(interrupted, 1)
    assert trainer.stopped and trainer.step == 3
    assert torch.load(tmp_path / "checkpoint.pt")["step"] == 3
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_ends_at_once_and_the_last_checkpoint_stays(tmp_path: Path) -> None:
    trainer, loss = _countdown(tmp_path)

    def interrupted(batch: int, generator: torch.Generator) -> Tensor:
        if batch == 3:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return loss(batch, generator)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            trainer.run(interrupted, 1)
    finally:
        signal.signal(signal.SIGINT, before)
    assert torch.load(tmp_path / "checkpoint.pt")["step"] == 2
