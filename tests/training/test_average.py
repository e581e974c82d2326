"""The mean of exported models."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from core.training.__main__ import main
from core.training.average import average
from core.weights.formats import open_layers

SHAPE = (3, 4)


def _model(folder: Path, value: float) -> Path:
    """Write a base, a control, and another one that lies over it with one tensor of its own."""
    folder.mkdir()

    def full(number: float) -> Tensor:
        return torch.full(SHAPE, number).half()

    same = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).half()
    base = {"unet": full(value), "vae": same, "steps": torch.tensor([7])}
    save_file(base, folder / "base.safetensors", metadata={"config": f"base of {value}"})
    save_file({"trunk": full(value), "own": full(value)}, folder / "canny.safetensors", metadata={"a": "b"})
    over = {"own": full(-value)}
    save_file(over, folder / "seg.safetensors", metadata={"over": "canny.safetensors"})
    return folder


def test_the_mean_holds_every_tensor_and_keeps_what_is_alike(tmp_path: Path) -> None:
    folders = [_model(tmp_path / str(value), value) for value in (1.0, 2.0, 6.0)]
    assert average(folders, tmp_path / "mean") == ["base", "canny", "seg"]
    base = load_file(tmp_path / "mean" / "base.safetensors")
    assert base["unet"].dtype == torch.float16 and torch.equal(base["unet"], torch.full(SHAPE, 3.0).half())
    assert torch.equal(base["vae"], load_file(folders[0] / "base.safetensors")["vae"])
    assert base["steps"].tolist() == [7]
    with safe_open(tmp_path / "mean" / "base.safetensors", "pt") as file:
        assert file.metadata() == {"config": "base of 6.0"}
    seg = load_file(tmp_path / "mean" / "seg.safetensors")
    assert set(seg) == {"own"} and seg["own"][0, 0] == -3
    layers = open_layers(tmp_path / "mean" / "seg.safetensors")
    assert torch.equal(layers.read("trunk"), torch.full(SHAPE, 3.0).half())
    assert not list((tmp_path / "mean").glob("*.partial"))


def test_models_count_as_much_as_they_are_told_to(tmp_path: Path) -> None:
    folders = [str(_model(tmp_path / str(value), value)) for value in (1.0, 3.0)]
    command = ["average", *folders, "--weights", "1", "3", "--ckpts", str(tmp_path / "mean")]
    assert main(command) == 0
    assert load_file(tmp_path / "mean" / "base.safetensors")["unet"][0, 0] == 2.5


def test_what_cannot_be_averaged_is_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    first, second = (_model(tmp_path / str(value), value) for value in (1.0, 2.0))
    output = tmp_path / "mean"
    with pytest.raises(ValueError, match="name two at least"):
        average([first], output)
    for weights in ([1.0], [1.0, 0.0], [1.0, -1.0]):
        with pytest.raises(ValueError, match="a positive number for each folder"):
            average([first, second], output, weights)
    with pytest.raises(ValueError, match="let --ckpts be another"):
        average([first, second], first)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds neither"):
        average([tmp_path / "empty", second], output)
    other = shutil.copytree(second, tmp_path / "other")
    save_file({"trunk": torch.ones(2), "own": torch.ones(SHAPE)}, other / "canny.safetensors")
    with pytest.raises(ValueError, match="give models of one config"):
        average([first, other], tmp_path / "mixed")
    assert main(["average", str(first), str(other), "--ckpts", str(tmp_path / "mixed")]) == 1
    assert not (tmp_path / "mixed").exists()  # not even the base, which would fit
    (second / "seg.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="seg.safetensors is not there"):
        average([first, second], output)
    assert not output.exists()
    assert load_file(first / "base.safetensors")["unet"][0, 0] == 1
