"""ControlNets that are trained together share one trunk, and nothing else."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from core.config import ModelConfig
from core.models.controlnet import ControlNet
from core.models.unet import UNet
from core.models.vae import AutoencoderKL
from core.models.variants import AnyControlNet
from core.training.__main__ import main
from core.training.base import BaseBatch, Denoiser, load_text
from core.training.control import Close, ControlBatch, trained_over
from core.training.data import THINGS, LatentScenes
from core.training.demo_cli import TURNS
from core.training.export import export_base
from core.training.hints import CONTROLS
from core.training.loop import LoopConfig
from core.training.start import load_start, unpack
from core.training.together import share_trunk, train_together
from core.weights.checkpoint import load_base, load_control

TRUNK = "input_blocks.0.0.weight"


def _unet(config: ModelConfig) -> UNet:
    torch.manual_seed(0)
    unet = UNet(config.unet).requires_grad_(False)
    torch.nn.init.normal_(unet.get_parameter("out.2.weight"), std=0.1)  # a fresh one is zero
    return unet


def _draw(config: ModelConfig, level: float) -> Callable[[torch.Generator], ControlBatch]:
    def batch(generator: torch.Generator) -> ControlBatch:
        size = (2, config.unet.in_channels, 8, 8)
        context = torch.randn(2, 7, config.unet.context_dim, generator=generator)
        hint = torch.rand(2, 3, 64, 64, generator=generator) * level
        return ControlBatch(torch.randn(size, generator=generator), context, hint)

    return batch


def _train(config: ModelConfig, run: Path, steps: int) -> dict[str, ControlNet]:
    draws = {"canny": _draw(config, 1.0), "seg": _draw(config, 0.5)}
    loop = LoopConfig(output=run, steps=steps, warmup=1, muon=True)
    trained = train_together(config, _unet(config), draws, ("canny", "seg", "seg"), loop, batch_size=2)
    return {name: net for name, net in trained.items() if isinstance(net, ControlNet)}


def test_the_trunk_is_one_and_learns_from_all_while_the_rest_is_each_ones_own(
    tmp_path: Path, config: ModelConfig
) -> None:
    nets = _train(config, tmp_path, 4)
    start = ControlNet.from_unet(_unet(config), config.control).state_dict()
    canny, seg = (nets[name].state_dict() for name in ("canny", "seg"))
    alike = {key for key in canny if torch.equal(canny[key], seg[key])}
    trunk = {key for key in canny if not trained_over(nets["canny"], key)}
    assert trunk <= alike
    assert TRUNK in trunk and not torch.equal(canny[TRUNK], start[TRUNK])
    assert not torch.equal(canny["zero_convs.0.0.weight"], seg["zero_convs.0.0.weight"])
    assert nets["canny"].get_parameter(TRUNK) is nets["seg"].get_parameter(TRUNK)


def test_a_step_is_one_controls_and_leaves_the_others_own_parts_alone(
    tmp_path: Path, config: ModelConfig
) -> None:
    once = _train(config, tmp_path, 1)
    assert once["canny"].get_parameter("zero_convs.0.0.weight").abs().max() > 0
    assert once["seg"].get_parameter("zero_convs.0.0.weight").abs().max() == 0


def test_what_was_interrupted_goes_on_as_if_it_had_not_been(tmp_path: Path, config: ModelConfig) -> None:
    whole = _train(config, tmp_path / "whole", 5)
    _train(config, tmp_path / "pieces", 2)
    pieces = _train(config, tmp_path / "pieces", 5)
    for name, net in whole.items():
        for key, value in net.state_dict().items():
            assert torch.equal(value, pieces[name].state_dict()[key]), (name, key)


def _train_with_base(config: ModelConfig, run: Path, steps: int) -> tuple[UNet, dict[str, AnyControlNet]]:
    def draw_base(generator: torch.Generator) -> BaseBatch:
        drawn = _draw(config, 1.0)(generator)
        return BaseBatch(drawn.x_0, drawn.context)

    draws, unet = {"canny": _draw(config, 1.0), "seg": _draw(config, 0.5)}, _unet(config)
    loop = LoopConfig(output=run, steps=steps, warmup=1, muon=True)
    turns = ("base", "canny", "seg")
    return unet, train_together(config, unet, draws, turns, loop, batch_size=2, draw_base=draw_base)


def test_a_base_that_has_turns_learns_in_all_steps_and_a_locked_one_never(
    tmp_path: Path, config: ModelConfig
) -> None:
    before = _unet(config).state_dict()
    moved: list[float] = []
    for steps in (1, 2):
        unet, nets = _train_with_base(config, tmp_path / str(steps), steps)
        after = unet.state_dict()
        moved.append(sum(float((after[key] - value).abs().sum()) for key, value in before.items()))
        touched = [float(net.get_parameter("zero_convs.0.0.weight").abs().max()) > 0 for net in nets.values()]
        assert touched == [steps == 2, False]  # the first step was the base's own
        assert not any(p.requires_grad for p in unet.parameters())
    assert 0 < moved[0] < moved[1]
    unet, draws = _unet(config), {"canny": _draw(config, 1.0)}
    loop = LoopConfig(output=tmp_path / "locked", steps=1)
    train_together(config, unet, draws, ("canny",), loop, batch_size=2)
    assert all(torch.equal(value, before[key]) for key, value in unet.state_dict().items())


def test_a_base_that_learns_goes_on_too_as_if_it_had_not_been_interrupted(
    tmp_path: Path, config: ModelConfig
) -> None:
    whole, _ = _train_with_base(config, tmp_path / "whole", 5)
    _train_with_base(config, tmp_path / "pieces", 2)
    pieces, _ = _train_with_base(config, tmp_path / "pieces", 5)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, pieces.state_dict()[key]), key


def test_turns_that_name_other_controls_than_there_are_say_so(tmp_path: Path, config: ModelConfig) -> None:
    loop, unet, draws = LoopConfig(output=tmp_path, steps=1), _unet(config), {"canny": _draw(config, 1.0)}
    for turns in (("canny", "seg"), ("canny", "base"), ()):
        with pytest.raises(ValueError, match="name each of canny"):
            train_together(config, unet, draws, turns, loop, batch_size=2)
    with pytest.raises(ValueError, match="name one at least"):
        share_trunk({})


def test_unless_told_otherwise_every_control_has_its_turn() -> None:
    assert sorted(TURNS) == sorted(CONTROLS)


def test_the_command_goes_on_from_what_carry_left_and_ships_one_trunk(
    tmp_path: Path, config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    import core.training.__main__ as command

    monkeypatch.setattr(command, "load_config", lambda name: config)
    runs, data, ckpts = tmp_path / "runs", tmp_path / "scenes", tmp_path / "ckpts"
    model = Denoiser(config)
    load_text(model, runs / "base")
    save_file(model.unet.state_dict(), runs / "base" / "start.safetensors")
    learned = ControlNet.from_unet(model.unet, config.control)
    torch.nn.init.normal_(learned.get_parameter("zero_convs.0.0.bias"))
    (runs / "control_seg").mkdir()
    save_file(learned.state_dict(), runs / "control_seg" / "start.safetensors")
    export_base(config, model.unet, AutoencoderKL(config.vae), model.text, tmp_path / "old.safetensors")
    unpack(config, tmp_path / "old.safetensors", runs / "vae", runs / "base")
    data.mkdir()
    rng = np.random.default_rng(0)
    np.save(data / "images.npy", rng.integers(0, 256, (4, 64, 64, 3), np.uint8))
    np.save(data / "latents.npy", rng.standard_normal((4, 8, 8, 8)).astype(np.float16))
    (data / "captions.json").write_text('["a red ball", "a cat", "a dog", "a blue car"]')
    np.save(data / "hints_seg.npy", rng.integers(0, 256, (3, 64, 64, 3), np.uint8))
    (data / "hints_seg.json").write_text("[0, 1, 3]")
    command_line = ["controls", "--runs", str(runs), "--data", str(data), "--ckpts", str(ckpts)]
    more = ["--turns", "canny", "seg", "--batch", "2", "--warmup", "1", "--device", "cpu", "--crop", "32"]
    opened, read = [], LatentScenes.open

    def counted(folder: Path, device: torch.device | None = None) -> LatentScenes:
        opened.append(folder)
        return read(folder, device)

    monkeypatch.setattr(LatentScenes, "open", counted)
    assert main([*command_line, *more, "--steps", "2"]) == 0
    assert opened == [data]  # all controls share the latents
    assert main([*command_line, *more, "--steps", "3", "--close", "64"]) == 1  # who rendered told no things
    np.save(data / THINGS, np.ones((4, 4, 4), bool))
    near: list[int] = []

    def corner(self: Close, scene: int, whole: int, part: int, rng: random.Random) -> tuple[int, int]:
        near.append(scene)
        return 0, 0

    monkeypatch.setattr(Close, "corner", corner)
    elsewhere = ["--ckpts", str(tmp_path / "near"), "--seed", "1", "--steps", "6", "--close", "64"]
    assert main([*command_line, *more, *elsewhere]) == 0
    assert 0 < len(near) < 4 * 2 and len(near) % 2 == 0  # some of four batches of two
    (runs / "controls" / "checkpoint.pt").unlink()
    assert main([*command_line, *more, "--steps", "2"]) == 0
    cpu = torch.device("cpu")
    nets = {
        name: load_control(config, ckpts / f"{name}.safetensors", device=cpu, dtype=torch.float32)
        for name in ("canny", "seg")
    }
    held = load_file(ckpts / "seg.safetensors")
    assert TRUNK not in held and "zero_convs.0.0.bias" in held
    state = {name: net.state_dict() for name, net in nets.items()}
    assert torch.equal(state["seg"][TRUNK], state["canny"][TRUNK])
    begun = ControlNet(config.unet, config.control)
    load_start(begun, runs / "control_seg")
    kept = (state["seg"]["zero_convs.0.0.bias"] - begun.state_dict()["zero_convs.0.0.bias"]).abs().max()
    assert float(kept) < 0.05
    assert not (ckpts / "base.safetensors").exists()
    with_base = ["--turns", "base", "canny", "seg", *more[3:], "--steps", "3"]
    assert main([*command_line, *with_base]) == 0
    old, new = (
        load_base(config, path, device=cpu, dtype=torch.float32)
        for path in (tmp_path / "old.safetensors", ckpts / "base.safetensors")
    )
    key = "out.2.weight"  # of a fresh UNet the first to learn
    assert not torch.equal(old.unet.state_dict()[key], new.unet.state_dict()[key])
    for name, tensor in old.vae.state_dict().items():
        assert torch.equal(tensor, new.vae.state_dict()[name]), name
