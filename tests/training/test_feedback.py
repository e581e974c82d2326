"""A ControlNet learns from what detectors find in drawings, and nothing else changes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from annotators.ade20k import PALETTE
from core.config import ModelConfig
from core.models.controlnet import ControlNet
from core.models.vae import AutoencoderKL
from core.training import feedback
from core.training.base import Denoiser
from core.training.data import cache_latents
from core.training.detectors.critics import JUDGES, lines_missed
from core.training.export import export_base, export_control
from core.training.feedback import STEPS, Samples, drawn_late, train_feedback
from core.training.loop import LoopConfig
from core.training.redraw import Artist

SIDE = 64


def _scenes(folder: Path, config: ModelConfig, control: str) -> None:
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0, 255, (4, 8, 8, 3))
    large = [cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC) for picture in coarse]
    images = np.clip(large, 0, 255).astype(np.uint8)
    if control == "mlsd":
        for picture in images:  # there are no lines in blurs
            cv2.rectangle(picture, (10, 14), (54, 50), (255, 255, 255), -1)
            cv2.rectangle(picture, (10, 14), (54, 50), (0, 0, 0), 2)
    np.save(folder / "images.npy", images)
    (folder / "captions.json").write_text(json.dumps(["a", "b", "c", "d"]))
    cache_latents(AutoencoderKL(config.vae), folder)
    maps = rng.integers(0, 2, (2, SIDE, SIDE), np.uint8) * 255
    if control == "seg":
        maps = np.array(PALETTE, np.uint8)[rng.integers(0, 5, (2, SIDE, SIDE))]
    np.save(folder / f"hints_{control}.npy", maps)
    (folder / f"hints_{control}.json").write_text("[1, 3]")


@pytest.fixture
def model(config: ModelConfig, tmp_path: Path) -> Path:
    """A folder of a tiny base, its "canny", and controls that lie over that."""
    torch.manual_seed(0)
    networks = Denoiser(config)
    for layer in networks.unet.out:
        for p in layer.parameters():
            torch.nn.init.normal_(p, std=0.1)
    base, vae = tmp_path / "base.safetensors", AutoencoderKL(config.vae)
    export_base(config, networks.unet, vae, networks.text, base)
    nets = [ControlNet.from_unet(networks.unet, config.control) for _ in range(2)]
    for net in nets:
        for conv in (*net.zero_convs, net.middle_block_out):
            for p in conv.parameters():
                torch.nn.init.normal_(p, std=0.02)
    export_control(config, nets[0], tmp_path / "canny.safetensors")
    for control in JUDGES:
        export_control(config, nets[1], tmp_path / f"{control}.safetensors", tmp_path / "canny.safetensors")
    return tmp_path


def _loop(run: Path, steps: int) -> LoopConfig:
    return LoopConfig(output=run, steps=steps, learning_rate=1e-3, warmup=1)


@pytest.mark.parametrize("control", list(JUDGES))
def test_what_a_control_has_of_its_own_learns_and_resumes_exactly(
    config: ModelConfig, model: Path, tmp_path: Path, control: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _scenes(tmp_path, config, control)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
        for file in model.glob("*.safetensors"):
            shutil.copy(file, folder)
    files = {path.name: path.read_bytes() for path in whole.glob("*.safetensors")}
    before = load_file(whole / f"{control}.safetensors")
    train_feedback(config, tmp_path, whole, control, _loop(tmp_path / "run1", 2), batch_size=1)
    original = (parts / f"{control}.safetensors").read_bytes()
    train_feedback(config, tmp_path, parts, control, _loop(tmp_path / "run2", 1), batch_size=1)
    (parts / f"{control}.safetensors").write_bytes(original)
    train_feedback(config, tmp_path, parts, control, _loop(tmp_path / "run2", 2), batch_size=1)
    after = load_file(whole / f"{control}.safetensors")
    again = load_file(parts / f"{control}.safetensors")
    assert after.keys() == again.keys() and all(torch.equal(after[key], again[key]) for key in after)
    assert any(not torch.equal(value, before[key]) for key, value in after.items() if key in before)
    monkeypatch.setattr(feedback, "WEIGHT", 0.0)
    (parts / f"{control}.safetensors").write_bytes(original)
    train_feedback(config, tmp_path, parts, control, _loop(tmp_path / "run3", 2), batch_size=1)
    unjudged = load_file(parts / f"{control}.safetensors")
    assert any(key not in unjudged or not torch.equal(value, unjudged[key]) for key, value in after.items())
    with safe_open(whole / f"{control}.safetensors", "pt") as file:
        assert "canny.safetensors" in file.metadata().values()
    changed = {name for name, content in files.items() if (whole / name).read_bytes() != content}
    assert changed == {f"{control}.safetensors"}


def test_a_drawing_is_judged_late_and_only_its_last_step_learns(config: ModelConfig) -> None:
    torch.manual_seed(0)
    networks = Denoiser(config).requires_grad_(False)
    net = ControlNet.from_unet(networks.unet, config.control)
    seen: list[int] = []
    learning: list[bool] = []
    forward = net.forward

    def counting(x: Tensor, t: Tensor, context: Tensor, hint: Tensor) -> list[Tensor]:
        seen.append(int(t[0]))
        learning.append(torch.is_grad_enabled())
        return forward(x, t, context, hint)

    net.forward = counting  # type: ignore[assignment,method-assign]
    artist = Artist(config, networks.unet, networks.text, net)
    told = artist.told(["a"], torch.rand(1, 3, SIDE, SIDE))
    for seed in range(6):
        seen.clear()
        learning.clear()
        shape = (1, config.unet.in_channels, SIDE // 8, SIDE // 8)
        made = drawn_late(artist, told, shape, torch.Generator().manual_seed(seed))
        steps = len(seen) // 2  # with the caption, and without
        assert learning == [False] * (len(seen) - 2) + [True, False]  # the last with the caption
        assert made.requires_grad and 3 <= steps <= STEPS
        assert seen == sorted(seen, reverse=True) and seen[0] == artist.criterion.timesteps - 1


def _line_maps(*centres: tuple[int, int, float, float]) -> Tensor:
    """M-LSD's maps (1, 9, 32, 32) with level lines: x, y, half the length, and how sure."""
    maps = torch.zeros(1, 9, 32, 32)
    maps[:, 0] = -10.0
    for x, y, half, sure in centres:
        maps[0, 0, y, x] = sure
        maps[0, 1:5, y, x] = torch.tensor([-half, 0.0, half, 0.0])
    return maps


def test_a_line_counts_as_the_apps_threshold_sees_it() -> None:
    lines = (8, 8, 6, 2.0), (20, 20, 3, 1.0)
    wanted = _line_maps(*lines)
    same = lines_missed(wanted, wanted)
    surer = lines_missed(_line_maps((8, 8, 6, 5.0), (20, 20, 3, 5.0)), wanted)
    nearby = lines_missed(_line_maps((9, 8, 6, 2.0), (20, 19, 3, 1.0)), wanted)
    short_missed = lines_missed(_line_maps((8, 8, 6, 2.0), (20, 20, 3, -6.0)), wanted)
    long_missed = lines_missed(_line_maps((8, 8, 6, -6.0), (20, 20, 3, 1.0)), wanted)
    one_more = lines_missed(_line_maps(*lines, (26, 6, 5, 2.0)), wanted)
    doubted = lines_missed(_line_maps(*lines, (26, 6, 5, -6.0)), wanted)
    turned = lines_missed(wanted * torch.tensor([1.0, -1, 1, -1, 1, 1, 1, 1, 1])[:, None, None], wanted)
    assert surer < same < nearby < short_missed < long_missed
    assert doubted == same
    assert min(one_more, turned) > same


def test_a_missed_line_pulls_at_the_map_and_each_picture_counts_alike() -> None:
    few, many = _line_maps((8, 8, 6, 2.0)), _line_maps((8, 8, 6, 2.0), (20, 20, 8, 2.0), (8, 24, 8, 2.0))
    nothing = _line_maps()
    found = torch.cat([nothing, many]).requires_grad_()
    loss = lines_missed(found, torch.cat([few, many]))
    apart = [lines_missed(nothing, few), lines_missed(many, many)]
    assert torch.allclose(loss, torch.stack(apart).mean())
    loss.backward()
    assert found.grad is not None and found.grad.isfinite().all()
    assert found.grad[0, 0, 7:10, 7:10].sum() < 0
    assert lines_missed(nothing, nothing) == 0


def test_samples_keep_scene_hint_and_latents_together(config: ModelConfig, tmp_path: Path) -> None:
    _scenes(tmp_path, config, "mlsd")
    samples = Samples(tmp_path, "mlsd", 8, torch.device("cpu"))
    sample = samples(torch.Generator().manual_seed(0))
    images, maps = np.load(tmp_path / "images.npy"), np.load(tmp_path / "hints_mlsd.npy")
    assert sample.hint.shape == (8, 3, SIDE, SIDE) and float(sample.hint.max()) == 1.0
    shown = ((sample.true.permute(0, 2, 3, 1) + 1) * 127.5).round().byte().numpy()
    for picture, hint, x_0 in zip(shown, sample.hints, sample.x_0, strict=True):
        row = next(row for row, scene in enumerate((1, 3)) if np.array_equal(picture, images[scene]))
        assert np.array_equal(hint[:, :, 0], maps[row])
        assert torch.equal(x_0, samples.dataset.latents[(1, 3)[row]].float())


def test_a_control_that_no_detector_judges_is_refused_at_once(config: ModelConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="control is 'canny'.*give mlsd, openpose, seg"):
        train_feedback(config, tmp_path, tmp_path, "canny", _loop(tmp_path, 1), batch_size=1)
