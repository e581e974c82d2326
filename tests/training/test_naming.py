"""Base or control learns from whether drawings can be named, and nothing else changes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load, load_file
from torch import Tensor

from core.config import ModelConfig
from core.models.controlnet import ControlNet
from core.models.vae import AutoencoderKL
from core.training import classifier, namer, naming
from core.training.base import Denoiser
from core.training.control import trained_over
from core.training.data import LatentScenes, cache_latents
from core.training.export import export_base, export_control
from core.training.hints import CachedHints
from core.training.loop import LoopConfig
from core.training.namer import Namer, load_or_train_namers
from core.training.naming import (
    Asked,
    Painter,
    Things,
    named_thing,
    shown,
    steps_of_a_drawing,
    train_control_naming,
    train_naming,
    unnamed,
)
from core.training.redraw import Artist, Told
from core.training.toyworld.places import PAINTERS
from core.weights.checkpoint import BaseNetworks
from tests.training.test_toyworld import LIBRARY

SIDE = 64
NAMES = ("bear", "polar bear", "car")
CAPTIONS = ["a bear at night", "a polar bear", "a blue car in the snow", "a red cube", "a car and a bear"]
CPU = torch.device("cpu")


def _scenes(folder: Path, config: ModelConfig, *, framed: bool) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    np.save(folder / "images.npy", rng.integers(0, 256, (len(CAPTIONS), SIDE, SIDE, 3), np.uint8))
    (folder / "captions.json").write_text(json.dumps(CAPTIONS))
    (folder / "made_of.json").write_text(json.dumps({"first_seed": 0, "things": None, "framed": framed}))
    cache_latents(AutoencoderKL(config.vae), folder)
    return folder


def _networks(config: ModelConfig) -> tuple[Denoiser, ControlNet]:
    torch.manual_seed(0)
    networks = Denoiser(config)
    for layer in networks.unet.out:
        for p in layer.parameters():
            torch.nn.init.normal_(p, std=0.1)
    net = ControlNet.from_unet(networks.unet, config.control)
    for conv in (*net.zero_convs, net.middle_block_out):
        for p in conv.parameters():
            torch.nn.init.normal_(p, std=0.1)
    return networks.requires_grad_(False), net.requires_grad_(False)


def _painter(config: ModelConfig) -> Painter:
    networks, net = _networks(config)
    base = BaseNetworks(networks.unet, AutoencoderKL(config.vae).requires_grad_(False), networks.text)
    return Painter(config, base, net)


def _namers(count: int = 2) -> list[Namer]:
    torch.manual_seed(1)
    return [Namer(NAMES).eval().requires_grad_(False) for _ in range(count)]


@pytest.mark.parametrize(
    ("caption", "number"),
    [
        ("a bear at night", 0),
        ("a polar bear", 1),
        ("three bears", None),
        ("a carpet", None),
        ("a car and a bear", None),
        ("a bear to the left of a bear", None),
        ("", None),
    ],
)
def test_a_caption_names_one_thing_or_is_left_out(caption: str, number: int | None) -> None:
    assert named_thing(caption, NAMES) == number


def test_what_is_asked_for_is_what_the_caption_names(config: ModelConfig, tmp_path: Path) -> None:
    scenes = LatentScenes.open(_scenes(tmp_path / "scenes", config, framed=False), CPU)
    plain, mapped = Things(scenes, NAMES), Things(scenes, NAMES, maps=True)
    assert plain.found == [(0, 0, 0), (1, 1, 1), (2, 2, 2)]
    asked = plain(16, torch.Generator().manual_seed(0), CPU)
    assert asked.hint is None and set(asked.wanted.tolist()) == {0, 1, 2}
    for caption, number in zip(asked.captions, asked.wanted.tolist(), strict=True):
        assert caption.startswith(CAPTIONS[number])
    hint = mapped(4, torch.Generator().manual_seed(0), CPU).hint
    assert hint is not None and hint.shape == (4, 3, SIDE, SIDE) and 0 < float(hint.mean()) < 1
    with pytest.raises(ValueError, match="names one thing"):
        Things(scenes, ("house",))


def test_maps_that_are_cached_belong_to_their_scenes(config: ModelConfig, tmp_path: Path) -> None:
    scenes = LatentScenes.open(_scenes(tmp_path / "scenes", config, framed=False), CPU)
    hints = np.stack([np.full((SIDE, SIDE), 10 * row, np.uint8) for row in (4, 2, 9, 1)])
    cached = CachedHints(hints, np.array([4, 2, 9, 1]))  # the first names two things, one has no latents
    things = Things(scenes, NAMES, cached, maps=True)
    assert things.found == [(1, 2, 2), (3, 1, 1)]
    asked = things(8, torch.Generator().manual_seed(0), CPU)
    assert asked.hint is not None and set(asked.wanted.tolist()) == {1, 2}
    for number, hint in zip(asked.wanted.tolist(), asked.hint, strict=True):
        assert torch.allclose(hint, torch.full((3, SIDE, SIDE), 10 * number / 255))


@pytest.mark.parametrize("mapped", [False, True])
def test_a_drawing_is_as_the_page_draws(config: ModelConfig, mapped: bool) -> None:
    painter = _painter(config)
    if not mapped:  # the page's own way without a map: a control that adds nothing
        for conv in (*painter.net.zero_convs, painter.net.middle_block_out):
            for p in conv.parameters():
                p.zero_()
    hint = torch.rand(2, 3, SIDE, SIDE)
    base, asked = painter.networks, Asked(["a bear", "a car"], torch.zeros(2), hint if mapped else None)
    artist = Artist(config, base.unet, base.text, painter.net)
    noise, times = torch.randn(2, config.unet.in_channels, 8, 8), [900, 600, 300]
    untold = painter.read(["", naming.NEGATIVE_PROMPT])
    told = Told(painter.read(asked.captions), untold, hint)
    expected = artist.draw(told, noise, [torch.full((2,), t) for t in (*times, 0)])
    drawn = painter.draw(asked, noise, times, set())
    assert not drawn.requires_grad
    assert (drawn - expected).norm() < 0.05 * expected.norm()  # the copy computes in another format


def test_steps_that_learn_have_gradients_and_look_at_what_has_none(
    config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    painter = _painter(config)
    unet = painter.networks.unet.requires_grad_(True)
    asked = Asked(["a bear"], torch.zeros(1))
    noise = torch.randn(1, config.unet.in_channels, 8, 8)
    looked: list[tuple[int, bool]] = []
    forward = unet.forward

    def watched(x: Tensor, t: Tensor, *rest: Any) -> Tensor:
        looked.append((int(t[0]), x.requires_grad))
        return forward(x, t, *rest)

    monkeypatch.setattr(unet, "forward", watched)
    weight = next(unet.out[-1].parameters())
    for learning in ({0}, {2}, {0, 2}):
        looked.clear()
        weight.grad = None
        painter.draw(asked, noise, [900, 600, 300], learning).square().sum().backward()
        assert looked == [((900, 600, 300)[number], False) for number in sorted(learning)]
        assert weight.grad is not None and weight.grad.abs().sum() > 0


def test_under_a_map_the_control_can_learn(config: ModelConfig) -> None:
    painter = _painter(config)
    net = painter.net.requires_grad_(True)
    asked = Asked(["a bear"], torch.zeros(1), torch.rand(1, 3, SIDE, SIDE))
    noise = torch.randn(1, config.unet.in_channels, 8, 8)
    drawn = painter.draw(asked, noise, [900, 600, 300], {1})
    drawn.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.zero_convs.parameters())
    assert all(p.grad is None for p in painter.networks.unet.parameters())
    assert not painter.draw(asked, noise, [900, 600, 300], set()).requires_grad


def test_the_copy_that_draws_follows_what_was_learned(config: ModelConfig) -> None:
    painter = _painter(config)
    asked, noise = Asked(["a bear"], torch.zeros(1)), torch.randn(1, config.unet.in_channels, 8, 8)
    before = painter.draw(asked, noise, [900, 300], set())
    next(painter.networks.unet.out[-1].parameters()).mul_(2)
    assert torch.equal(painter.draw(asked, noise, [900, 300], set()), before)
    painter.follow()
    assert not torch.equal(painter.draw(asked, noise, [900, 300], set()), before)


def test_times_fall_and_all_steps_learn_in_turn() -> None:
    drawn = [steps_of_a_drawing(torch.Generator().manual_seed(seed)) for seed in range(50)]
    for times, learning in drawn:
        assert len(times) == naming.STEPS and len(learning) == naming.LEARNING
        assert times == sorted(times, reverse=True) and 900 < times[0] <= 950 and 100 < times[-1] <= 150
    assert set().union(*(learning for _, learning in drawn)) == set(range(naming.STEPS))


def test_namers_are_shown_smaller_pictures_with_gradients() -> None:
    pictures = (torch.rand(2, 3, 256, 256) * 2 - 1).requires_grad_()
    sides = set()
    for seed in range(30):
        small = shown(pictures, torch.Generator().manual_seed(seed))
        assert small.shape[:2] == (2, 3) and small.shape[2] == small.shape[3]
        sides.add(small.shape[2])
    small.sum().backward()
    assert sides == set(naming.SIDES) and pictures.grad is not None and float(pictures.grad.abs().sum()) > 0


def test_all_namers_count_alike() -> None:
    first, second = _namers()
    pictures, wanted = torch.rand(3, 3, 96, 96), torch.tensor([0, 1, 2])
    alone = [unnamed([one], pictures, wanted) for one in (first, second)]
    assert torch.allclose(unnamed([first, second], pictures, wanted), (alone[0] + alone[1]) / 2)
    assert not torch.allclose(alone[0], alone[1])


@pytest.fixture
def model(config: ModelConfig, tmp_path: Path) -> Path:
    """A folder of a tiny base and its "canny"."""
    networks, net = _networks(config)
    folder = tmp_path / "model"
    folder.mkdir()
    vae = AutoencoderKL(config.vae)
    export_base(config, networks.unet, vae, networks.text, folder / "base.safetensors")
    export_control(config, net, folder / "canny.safetensors")
    return folder


def _train(config: ModelConfig, tmp_path: Path, ckpts: Path, run: str, steps: int) -> dict[str, Tensor]:
    loop = LoopConfig(output=tmp_path / run, steps=steps, learning_rate=1e-3, warmup=1)
    data, framed = tmp_path / "scenes", tmp_path / "framed"
    train_naming(config, data, framed, ckpts, _namers(), loop, batch_size=2)
    return load_file(ckpts / "base.safetensors")


def test_the_unet_learns_and_resumes_exactly(
    config: ModelConfig, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("scenes", "framed"):
        _scenes(tmp_path / name, config, framed=name == "framed")
    maps: list[int] = []
    made = naming.canny_hint
    monkeypatch.setattr(naming, "canny_hint", lambda *given: maps.append(1) or made(*given))  # type: ignore[func-returns-value]
    parts, unnamed_too = (Path(shutil.copytree(model, tmp_path / name)) for name in ("parts", "unnamed"))
    before, control = load_file(model / "base.safetensors"), (model / "canny.safetensors").read_bytes()
    after = _train(config, tmp_path, model, "run1", 3)
    assert len(maps) == 2  # of the third step's drawings
    assert (model / "canny.safetensors").read_bytes() == control
    changed = {key for key in after if not torch.equal(after[key], before[key])}
    assert changed and all(key.startswith("model.diffusion_model.") for key in changed)
    _train(config, tmp_path, parts, "run2", 2)
    shutil.copy(unnamed_too / "base.safetensors", parts)
    again = _train(config, tmp_path, parts, "run2", 3)
    assert all(torch.equal(after[key], again[key]) for key in after)
    monkeypatch.setattr(naming, "WEIGHT", 0.0)
    without = _train(config, tmp_path, unnamed_too, "run3", 3)
    assert any(not torch.equal(after[key], without[key]) for key in after)


@pytest.mark.parametrize("control", ["canny", "depth"])
def test_a_control_learns_what_it_has_of_its_own(
    config: ModelConfig, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, control: str
) -> None:
    data, trunk = _scenes(tmp_path / "scenes", config, framed=False), model / "canny.safetensors"
    file = model / f"{control}.safetensors"
    if control != "canny":
        np.save(data / f"hints_{control}.npy", np.full((3, SIDE, SIDE), 99, np.uint8))
        (data / f"hints_{control}.json").write_text("[0, 1, 4]")
        _, net = _networks(config)
        next(net.zero_convs[0].parameters()).add_(0.1)
        export_control(config, net, file, trunk)
    kept = {path: path.read_bytes() for path in model.iterdir() if path != file}

    def train(run: str, steps: int) -> dict[str, Tensor]:
        loop = LoopConfig(output=tmp_path / run, steps=steps, learning_rate=1e-3, warmup=1)
        shutil.copy(start, file)
        train_control_naming(config, data, model, control, _namers(), loop, batch_size=2)
        return load(file.read_bytes())

    start = shutil.copy(file, tmp_path / "start.safetensors")
    before = load(trunk.read_bytes()) | load(file.read_bytes())
    after = train("run1", 3)
    assert {path: path.read_bytes() for path in kept} == kept
    _, whole = _networks(config)
    own = {name for name, _ in whole.named_parameters() if trained_over(whole, name)}
    changed = {key for key in after if not torch.equal(after[key], before[key])}
    assert changed and changed <= own and any(key.startswith("zero_convs") for key in changed)
    train("run2", 2)
    assert all(torch.equal(after[key], value) for key, value in train("run2", 3).items())
    monkeypatch.setattr(naming, "WEIGHT", 0.0)
    assert any(not torch.equal(after[key], value) for key, value in train("run3", 3).items())


class ByColour(Namer):
    """Names the first thing in what is red, the second in what is green, the third in what is blue."""

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, 3)."""
        return 4 * x.mean((2, 3))


def _as_colours(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    return F.interpolate(latents[:, :3].tanh(), scale_factor=8)


def test_drawings_come_to_be_named_as_they_should(
    config: ModelConfig, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("scenes", "framed"):
        _scenes(tmp_path / name, config, framed=name == "framed")
    monkeypatch.setattr(
        AutoencoderKL, "decode", lambda vae, x: F.interpolate(x[:, :3].tanh(), scale_factor=8)
    )
    monkeypatch.setattr(naming, "WEIGHT", 1.0)
    seen: list[float] = []
    real = naming.unnamed

    def watched(*given: Any) -> Tensor:
        wrong: Tensor = real(*given)
        seen.append(float(wrong.detach().mean()))
        return wrong

    monkeypatch.setattr(naming, "unnamed", watched)
    loop = LoopConfig(output=tmp_path / "run", steps=40, learning_rate=3e-3, warmup=1)
    namers = [ByColour(NAMES)]
    train_naming(config, tmp_path / "scenes", tmp_path / "framed", model, namers, loop, batch_size=2)
    chance = np.log(len(NAMES))
    assert np.mean(seen[:5]) > 0.9 * chance and np.mean(seen[-10:]) < 0.7 * chance


def test_a_control_that_is_none_is_refused(config: ModelConfig, model: Path, tmp_path: Path) -> None:
    data = _scenes(tmp_path / "scenes", config, framed=False)
    (model / "none.safetensors").write_bytes((model / "canny.safetensors").read_bytes())
    loop = LoopConfig(output=tmp_path / "run", steps=1)
    with pytest.raises(ValueError, match="give one of canny"):
        train_control_naming(config, data, model, "none", _namers(), loop, batch_size=2)


def test_scenes_that_are_not_framed_are_refused(config: ModelConfig, model: Path, tmp_path: Path) -> None:
    for name in ("scenes", "framed"):
        _scenes(tmp_path / name, config, framed=False)
    with pytest.raises(ValueError, match="are not framed"):
        _train(config, tmp_path, model, "run", 1)


def test_namers_learn_from_a_softness_each_and_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name, value in (
        (namer, "STEPS", 2),
        (classifier, "NORM_BATCHES", 1),
        (classifier, "PLACES", len(PAINTERS)),
    ):
        monkeypatch.setattr(module, name, value)
    learned: list[tuple[classifier.Softness, int]] = []
    real = classifier.pasted

    def watched(library: Any, grounds: Any, softness: classifier.Softness, rng: Any) -> Any:
        picture, number = real(library, grounds, softness, rng)
        learned.append((softness, len(picture)))
        return picture, number

    monkeypatch.setattr(classifier, "pasted", watched)
    first, second = load_or_train_namers(LIBRARY, tmp_path, CPU)
    each = 3 * classifier.BATCH  # two steps, and a batch for the normalisations
    assert learned == [(softness, namer.SIDE) for softness in classifier.SOFTNESS for _ in range(each)]
    assert not torch.equal(first.head.weight, second.head.weight) and not first.training
    learned.clear()
    again = load_or_train_namers(LIBRARY, tmp_path, CPU)
    assert len(learned) == 2 * classifier.BATCH  # nothing is learned twice
    assert torch.equal(again[0].head.weight, first.head.weight)
