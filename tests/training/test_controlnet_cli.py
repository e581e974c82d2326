"""The command line of training says what it means, and ends with a status and a message."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from core.training import __main__ as program
from core.training.controlnet import ControlRun
from core.training.controlnet_cli import control_run


def parsed(*more: str) -> ControlRun:
    given = ["controlnet", "--base", "sd15", "--data", "d", "--output", "runs/mine", "--device", "cpu", *more]
    return control_run(program.parser().parse_args(given))


def test_the_defaults_are_the_originals_but_for_what_the_paper_says() -> None:
    run = parsed()
    assert (run.loop.learning_rate, run.batch, run.loop.accumulate) == (1e-5, 4, 1)
    assert run.sd_locked and not run.only_mid_control and run.loop.weight_decay == 0.01
    assert run.decoder_rate == pytest.approx(2e-6)
    assert run.drop_prompts == 0.5 and run.name == "mine" and run.loop.epsilon == 1e-8
    assert not (run.recompute or run.cache or run.loop.offload)


def test_low_vram_sets_what_it_says_but_for_what_is_given() -> None:
    run = parsed("--low-vram")
    assert run.recompute and run.cache and run.loop.offload and (run.batch, run.loop.accumulate) == (1, 4)
    assert run.precision in (torch.bfloat16, torch.float16)
    assert run.loop.loss_scale == (1.0 if run.precision == torch.bfloat16 else 2.0**14)
    given = parsed("--low-vram", "--batch", "2", "--no-cache", "--precision", "float32", "--no-offload")
    assert given.batch == 2 and not given.cache and not given.loop.offload and given.recompute
    assert given.precision == torch.float32


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--size", "500", "multiples of 64"),
        ("--batch", "0", "whole number from 1"),
        ("--rate", "5", "above 0 and below 1"),
        ("--drop-prompts", "1.5", "from 0 to 1"),
        ("--variant", "tiny", "full"),
    ],
)
def test_a_wrong_value_is_told_with_what_is_allowed(
    option: str, value: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parsed(option, value)
    assert told in capsys.readouterr().err


def test_a_size_is_height_by_width() -> None:
    assert parsed("--size", "512x768").size == (512, 768) and parsed("--size", "384").size == (384, 384)
    with pytest.raises(ValueError, match="letters, digits"):
        parsed("--name", "a/b")


def test_what_is_wrong_with_the_data_is_printed_and_no_run_is_begun(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    command = ["controlnet", "--base", str(base), "--data", str(tmp_path), "--output", str(output)]
    assert program.main([*command, "--device", "cpu"]) == 1
    assert "prompt.json cannot be read" in capsys.readouterr().err
    assert not (output / "run.json").exists()


def test_circles_are_drawn_checked_and_trained_on_from_the_command_line(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, output = tmp_path / "set", tmp_path / "out"
    assert program.main(["circles", "--output", str(data), "--count", "2", "--size", "64"]) == 0
    command = ["controlnet", "--base", str(base), "--data", str(data), "--output", str(output)]
    more = ["--steps", "1", "--batch", "1", "--device", "cpu", "--name", "canny", "--precision", "float32"]
    assert program.main([*command, *more]) == 0
    told = capsys.readouterr().out
    assert "2 pairs, all readable" in told and f"python launch.py --model {output / 'model.yaml'}" in told
    assert {"canny.safetensors", "model.yaml", "loss.csv", "step_00000001.pt"} <= {
        p.name for p in output.iterdir()
    }
