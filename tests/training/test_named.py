"""What the model draws is named, and it learns from that."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from core.config import ModelConfig
from core.models.controlnet import ControlNet
from core.models.unet import UNet
from core.models.vae import AutoencoderKL
from core.training import data, namer
from core.training.__main__ import main
from core.training.base import Denoiser
from core.training.control import SceneControlBatches
from core.training.data import LatentScenes, Scenes
from core.training.export import export_base
from core.training.loop import LoopConfig
from core.training.named import BASE_BEGINS, LOOKS, NamedScenes, Naming
from core.training.namer import (
    CELL,
    ELSEWHERE,
    Namer,
    cache_names,
    hazed,
    load_namer,
    misnamed,
    open_names,
    train_namer,
)
from core.training.start import unpack
from core.training.toyworld.scene import make_scene
from core.training.toyworld.sprites import SpriteLibrary
from tests.training.test_toyworld import LIBRARY

SIDE, COUNT = 64, 6
PLACES = SIDE // CELL


class _Threads(ThreadPoolExecutor):
    """Stands for processes, which would not see the drawn sprites."""


def _scenes(folder: Path, config: ModelConfig) -> LatentScenes:
    """Scenes of noise with latents and names."""
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    np.save(folder / "images.npy", rng.integers(0, 256, (COUNT, SIDE, SIDE, 3), np.uint8))
    shape = (COUNT, config.unet.in_channels, SIDE // 8, SIDE // 8)
    np.save(folder / "latents.npy", rng.standard_normal(shape).astype(np.float16))
    np.save(folder / "names.npy", rng.integers(0, 4, (COUNT, PLACES, PLACES), np.uint16))
    (folder / "captions.json").write_text(json.dumps([f"a thing {i}" for i in range(COUNT)]))
    return LatentScenes.open(folder)


@pytest.mark.parametrize("framed", [False, True])
def test_every_place_has_the_name_of_what_is_seen_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, framed: bool
) -> None:
    for module in (data, namer):
        monkeypatch.setattr(module, "ProcessPoolExecutor", _Threads)
    monkeypatch.setattr(SpriteLibrary, "load", lambda *arguments: LIBRARY)
    data.render(tmp_path, tmp_path, 5, first_seed=40, size=128, framed=framed)
    cache_names(tmp_path, tmp_path)
    names = open_names(tmp_path)
    assert names.shape == (5, 8, 8) and names.dtype == torch.int64
    order = [spec.name for spec in LIBRARY.specs]
    shown = set()
    for i, found in enumerate(names):
        scene = make_scene(40 + i, LIBRARY, 128, framed=framed)
        by_depth = {thing.depth: thing.name for thing in scene.objects}
        for y, x in np.ndindex(8, 8):
            thing = by_depth.get(int(scene.index_map[y * CELL + CELL // 2, x * CELL + CELL // 2]))
            number = int(found[y, x])
            if thing is None:
                assert number == 0
            elif thing in order:
                assert number == 1 + order.index(thing)
            else:
                assert number == 1 + len(order)
            shown.add(number)
    assert len(shown) > 2


def test_what_is_missing_is_named_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"core\.training names --data"):
        open_names(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"core\.training namer --runs"):
        load_namer(tmp_path / "namer")


def test_haze_is_of_many_strengths_and_the_same_for_the_same_chance() -> None:
    latents = torch.randn(64, 8, 16, 16, generator=torch.Generator().manual_seed(1))
    found, again = (hazed(latents, torch.Generator().manual_seed(2)) for _ in range(2))
    assert torch.equal(found, again)
    apart = (found - latents).pow(2).mean(dim=(1, 2, 3)).sqrt()
    assert apart.min() < 0.3 and apart.max() > 0.5 and apart.max() < 1
    even = torch.ones(4, 8, 16, 16)
    assert (hazed(even, torch.Generator().manual_seed(3)).mean(dim=(1, 2, 3)) - 1).abs().max() < 0.1


def _sure(names: Tensor, sure: float = 8.0) -> Tensor:
    return sure * torch.nn.functional.one_hot(names, 4).permute(0, 3, 1, 2).float()


def test_things_count_by_their_pictures_and_what_is_no_thing_counts_less() -> None:
    names = torch.zeros(2, 4, 4, dtype=torch.int64)
    names[0, 0, 0], names[1, :2] = 1, 2
    right = _sure(names)
    small, large, ground = (right.clone() for _ in range(3))
    small[0, :, 0, 0] = _sure(torch.tensor([[[3]]]))[0, :, 0, 0]
    large[1, :, :2] = _sure(torch.full((1, 2, 4), 3))[0]
    ground[0, :, 1:] = _sure(torch.full((1, 3, 4), 3))[0]
    best, first, second, third = (float(misnamed(logits, names)) for logits in (right, small, large, ground))
    assert best < 0.01
    assert first == pytest.approx(8 / 2 / 2, rel=0.01)  # one place of a thing, one that is always counted
    assert second == pytest.approx(8 * 8 / 9 / 2, rel=0.01)
    assert third == pytest.approx(ELSEWHERE * 8 * 12 / 16 / 2, rel=0.01)


def _blocks(count: int) -> tuple[LatentScenes, Tensor]:
    """Latents in which things are squares, each with a direction of its own."""
    generator = torch.Generator().manual_seed(0)
    looks = torch.randn(4, 8, generator=generator)
    looks[0] = 0
    names = torch.randint(0, 4, (count, 4, 4), generator=generator)
    latents = looks[names].permute(0, 3, 1, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    return LatentScenes(
        latents.half(), Scenes(np.zeros((count, SIDE, SIDE, 3), np.uint8), ("",) * count)
    ), names


def test_the_namer_learns_to_name_hazy_latents_and_is_kept(tmp_path: Path) -> None:
    source, run = _blocks(64), tmp_path / "namer"
    loop = LoopConfig(output=run, steps=60, learning_rate=3e-3, warmup=5, ema_decay=0.9)
    net = train_namer([source, source], loop, batch_size=16)
    scenes, names = source
    seen = hazed(scenes.latents.float(), torch.Generator().manual_seed(9))
    assert (net(seen).argmax(1) == names).float().mean() > 0.9
    kept = load_namer(run)
    assert not any(p.requires_grad for p in kept.parameters())
    assert torch.equal(kept(seen), net(seen))


def _networks(config: ModelConfig) -> tuple[Denoiser, ControlNet]:
    torch.manual_seed(0)
    model = Denoiser(config).requires_grad_(False)
    for layer in model.unet.out:
        for p in layer.parameters():
            torch.nn.init.normal_(p, std=0.1)
    net = ControlNet.from_unet(model.unet, config.control)
    for conv in (*net.zero_convs, net.middle_block_out):
        for p in conv.parameters():
            torch.nn.init.normal_(p, std=0.02)
    return model, net


@pytest.fixture
def naming(config: ModelConfig, tmp_path: Path) -> tuple[Naming, UNet, ControlNet]:
    """What judges turns of "canny" and of the base, and the networks, which learn."""
    scenes = _scenes(tmp_path, config)
    model, net = _networks(config)
    torch.manual_seed(1)
    judge = Namer(config.unet.in_channels, 4).requires_grad_(False)
    batches = SceneControlBatches(tmp_path, model.text, "canny", 3, None, scenes)
    sources = {
        "canny": NamedScenes(scenes, open_names(tmp_path), batches),
        "base": NamedScenes(scenes, open_names(tmp_path)),
    }
    return Naming(config, model.text, judge, sources, 2), model.unet.requires_grad_(True), net


@pytest.mark.parametrize("turn", ["canny", "base"])
def test_one_step_of_a_drawing_learns_from_its_names(
    naming: tuple[Naming, UNet, ControlNet], turn: str
) -> None:
    judge, unet, net = naming
    times: list[tuple[int, bool]] = []
    forward = unet.forward

    def counting(x: Tensor, t: Tensor, *rest: Any) -> Tensor:
        times.append((int(t[0]), torch.is_grad_enabled()))
        return forward(x, t, *rest)

    unet.forward = counting  # type: ignore[assignment,method-assign]
    steps = set()
    for seed in range(8):
        times.clear()
        control = net if turn == "canny" else None
        loss = judge(turn, unet, control, torch.Generator().manual_seed(seed))
        again = judge(turn, unet, control, torch.Generator().manual_seed(seed))
        assert torch.equal(loss, again) and loss > 0
        once = times[: len(times) // 2]
        assert [learns for _, learns in once] == [False] * (len(once) - 2) + [True, False]
        assert once[0][0] == (999 if turn == "canny" else round(BASE_BEGINS * 999))
        assert [t for t, _ in once] == sorted((t for t, _ in once), reverse=True)
        steps.add(len(once) // 2)
        loss.backward()
    assert steps == set(range(LOOKS[0] + 1, LOOKS[1] + 1))
    moved = [p for p in unet.parameters() if p.grad is not None and p.grad.abs().max() > 0]
    assert len(moved) > len(list(unet.parameters())) / 2
    led = [p for p in net.parameters() if p.grad is not None and p.grad.abs().max() > 0]
    assert bool(led) == (turn == "canny")
    assert not any(p.requires_grad for p in judge.namer.parameters())


def test_other_turns_have_no_more_loss_and_the_weight_is_a_factor(
    naming: tuple[Naming, UNet, ControlNet],
) -> None:
    judge, unet, net = naming
    assert judge("seg", unet, net, torch.Generator().manual_seed(0)) == 0
    losses = []
    for weight in (0.5, 1.0):
        judge.weight = weight
        losses.append(judge("canny", unet, net, torch.Generator().manual_seed(0)).item())
    assert losses[1] == pytest.approx(2 * losses[0])


def test_learning_from_names_makes_drawings_nameable(naming: tuple[Naming, UNet, ControlNet]) -> None:
    judge, unet, net = naming
    judge.weight = 1.0
    optimizer = torch.optim.AdamW([*unet.parameters(), *net.parameters()], lr=1e-3)
    losses = []
    for step in range(24):
        optimizer.zero_grad()
        loss = judge("canny", unet, net, torch.Generator().manual_seed(step % 4))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])


def test_the_commands_name_what_base_and_controls_draw_and_resume_exactly(
    tmp_path: Path, config: ModelConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("core.training.__main__.load_config", lambda name: config)
    scenes, framed, ckpts = tmp_path / "scenes", tmp_path / "framed", tmp_path / "ckpts"
    _scenes(scenes, config)
    _scenes(framed, config)
    (framed / "made_of.json").write_text('{"framed": true}')
    model, _ = _networks(config)
    export_base(config, model.unet, AutoencoderKL(config.vae), model.text, tmp_path / "old.safetensors")

    def controls(runs: Path, steps: int, *more: str) -> int:
        return main(
            ["controls", "--runs", str(runs), "--data", str(scenes), "--framed", str(framed)]
            + ["--ckpts", str(ckpts), "--turns", "canny", "base", "--batch", "2", "--warmup", "1"]
            + ["--steps", str(steps), "--drawings", "1", "--device", "cpu", *more]
        )

    both = "--named", "canny", "base"
    exported = []
    for runs, pieces in ((tmp_path / "whole", (3,)), (tmp_path / "parts", (1, 3))):
        unpack(config, tmp_path / "old.safetensors", runs / "vae", runs / "base")
        assert controls(runs, 1, *both) == 1
        assert "core.training namer --runs" in capsys.readouterr().err
        naming = ["namer", "--runs", str(runs), "--data", str(scenes), "--framed", str(framed)]
        assert main([*naming, "--steps", "2", "--batch", "4", "--device", "cpu"]) == 0
        assert load_namer(runs / "namer").head[2].out_channels == 4
        assert all(controls(runs, steps, *both) == 0 for steps in pieces)
        exported.append([load_file(ckpts / f"{name}.safetensors") for name in ("base", "canny")])
    for whole, parts in zip(*exported, strict=True):
        assert all(torch.equal(value, parts[key]) for key, value in whole.items())
    (tmp_path / "whole" / "controls" / "checkpoint.pt").unlink()
    assert controls(tmp_path / "whole", 3) == 0
    unnamed = load_file(ckpts / "base.safetensors")
    assert any(not torch.equal(value, unnamed[key]) for key, value in exported[0][0].items())
    assert controls(tmp_path / "whole", 3, "--named", "seg") == 1
    assert "seg shall be named, but has no turns" in capsys.readouterr().err
