"""The stages of the demo model's training do what they say, on networks that are small enough for a test."""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from annotators.ade20k import PALETTE
from core.config import ModelConfig, ScheduleConfig, load_config
from core.models.controlnet import ControlNet
from core.models.unet import UNet
from core.models.vae import AutoencoderKL
from core.runtime.device import for_training
from core.training import data, hints
from core.training.__main__ import STAGES, _loop, main, parser
from core.training.base import (
    UNKNOWN_WORD,
    Denoiser,
    SceneBatches,
    kept_token_ids,
    load_text,
    open_framed,
    vary_caption,
)
from core.training.control import (
    ControlBatch,
    SceneControlBatches,
    close_squares,
    control_prediction,
    train_control,
    trained_over,
)
from core.training.data import LatentScenes, Scenes, cache_latents, to_tensor
from core.training.demo import load_vae
from core.training.diffusion import DiffusionLoss, draw
from core.training.evaluate import named_color
from core.training.export import export_base, export_control
from core.training.figures import edge_f1
from core.training.hints import CachedHints, canny_hint, photographed
from core.training.loop import LoopConfig, step_generator
from core.training.start import begin_with, carry, load_start, unpack
from core.training.toyworld.captions import ADDED_PROMPT, NEGATIVE_PROMPT
from core.training.toyworld.objects import ObjectSpec
from core.training.toyworld.palette import PAINTS, SHIFT_COLORS, paint
from core.training.toyworld.scene import make_scene
from core.training.toyworld.sprites import SpriteLibrary
from core.training.vae import aligned_crops, fit_autoencoder, load_fitted, train_decoder
from core.training.vae_init import init_as_pyramid, whiten
from core.weights.checkpoint import load_base, load_control
from tests.training.test_toyworld import LIBRARY


def _blobs(count: int, size: int = 64) -> torch.Tensor:
    """Return smooth coloured pictures (count, 3, size, size) in [-1, 1]."""
    coarse = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(-1, 1)


def _psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(10 * torch.log10(4 / (a - b).pow(2).mean()))


@torch.no_grad()
def test_the_fitted_autoencoder_gives_pictures_back_before_any_training() -> None:
    torch.manual_seed(0)
    vae = AutoencoderKL(load_config("demo").vae)
    images = _blobs(10)
    untouched = _psnr(vae.decode(vae.encode(images)), images)
    init_as_pyramid(vae, images[:6])
    assert untouched < 12.0
    assert _psnr(vae.decode(vae.encode(images[6:])), images[6:]) > 20.0


@torch.no_grad()
def test_whitening_keeps_every_picture_and_gives_unit_latents(config: ModelConfig) -> None:
    torch.manual_seed(0)
    vae = AutoencoderKL(config.vae)
    images = _blobs(6)
    before = vae.decode(vae.encode(images))
    whiten(vae, images)
    latents = vae.encode(images)
    assert torch.allclose(vae.decode(latents), before, atol=2e-5)
    flat = latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1])
    assert torch.allclose(flat.mean(0), torch.zeros(flat.shape[1]), atol=1e-3)
    assert torch.allclose(torch.cov(flat.T), torch.eye(flat.shape[1]), atol=1e-2)


def test_the_decoder_learns_and_the_encoder_stays(tmp_path: Path) -> None:
    config = load_config("demo")
    pictures = ((_blobs(4, 128).permute(0, 2, 3, 1) + 1) * 127.5).byte().numpy()
    (tmp_path / "captions.json").write_text('["a", "b", "c", "d"]')
    np.save(tmp_path / "images.npy", pictures)
    fit_autoencoder(config, tmp_path, tmp_path / "run")
    fitted = load_fitted(config, tmp_path / "run")
    cache_latents(fitted, tmp_path)
    loop = LoopConfig(output=tmp_path / "run", steps=6, learning_rate=2e-4, warmup=1)
    train_decoder(config, tmp_path, loop, batch_size=2, crop=64)
    trained = load_vae(config, tmp_path / "run")
    x = to_tensor(pictures)
    with torch.no_grad():
        assert torch.equal(trained.encode(x), fitted.encode(x))
        assert not torch.equal(trained.decode(fitted.encode(x)), fitted.decode(fitted.encode(x)))


def test_latent_crops_lie_over_their_pictures() -> None:
    picture = np.arange(64 * 64 * 3, dtype=np.uint8).reshape(1, 64, 64, 3)
    corner = picture[:, ::8, ::8].transpose(0, 3, 1, 2).astype(np.float16)
    dataset = LatentScenes(torch.from_numpy(corner), Scenes(picture, ("a",)))
    latents, images = aligned_crops(dataset, 5, 32, 8, torch.Generator().manual_seed(0))
    assert latents.shape == (5, 3, 4, 4) and images.shape == (5, 3, 32, 32)
    assert torch.allclose(images[:, :, ::8, ::8], latents / 127.5 - 1, atol=1e-5)


@pytest.mark.parametrize("parameterization", ["eps", "v"])
def test_the_target_gives_the_clean_latents_back(parameterization: str) -> None:
    criterion = DiffusionLoss(ScheduleConfig(parameterization=parameterization))
    generator = torch.Generator().manual_seed(0)
    x_0 = torch.randn(8, 4, 4, 4, generator=generator)
    noise, t = draw(tuple(x_0.shape), 1000, generator)
    x_t, target = criterion.noised(x_0, noise, t), criterion.target(x_0, noise, t)
    a, s = (table[t][:, None, None, None] for table in (criterion.signal, criterion.noise))
    rebuilt = (x_t - s * target) / a if parameterization == "eps" else a * x_t - s * target
    assert torch.allclose(rebuilt, x_0, atol=2e-4)
    assert float(criterion(target, x_0, noise, t)) == 0.0


def test_time_steps_of_a_batch_are_spread_over_the_schedule() -> None:
    _, t = draw((10, 1, 1, 1), 1000, torch.Generator().manual_seed(3))
    assert sorted((t // 100).tolist()) == list(range(10))


def test_late_time_steps_are_half_in_the_last_quarter_and_all_there() -> None:
    _, t = draw((1000, 1, 1, 1), 1000, torch.Generator().manual_seed(3), late=True)
    assert 0.48 < float((t >= 750).float().mean()) < 0.52
    assert int(t.min()) < 20 and int(t.max()) == 999


def test_squares_of_latents_are_cut_where_chance_says() -> None:
    grid = torch.arange(64.0).view(1, 1, 8, 8).expand(3, 2, 8, 8)
    dataset = LatentScenes(grid.half(), Scenes(np.zeros((3, 64, 64, 3), np.uint8), ("a", "b", "c")))
    which, squares = dataset.draw(20, torch.Generator().manual_seed(0), 4)
    assert which.shape == (20,) and squares.shape == (20, 2, 4, 4)
    assert all(torch.equal(s - s[0, 0, 0], grid[0, :, :4, :4]) for s in squares)
    assert len({float(s[0, 0, 0]) for s in squares}) > 5
    assert dataset.draw(2, torch.Generator(), 8)[1].shape == (2, 2, 8, 8)


class _Words:
    """Stands for a text encoder: the context of a caption is its number."""

    def encode(self, captions: Sequence[str]) -> torch.Tensor:
        return torch.tensor([float(caption) if caption.isdigit() else -1.0 for caption in captions])


def _numbered(first: int, value: float) -> LatentScenes:
    captions = tuple(str(first + i) for i in range(4))
    pictures = np.zeros((4, 64, 64, 3), np.uint8)
    return LatentScenes(torch.full((4, 2, 8, 8), value).half(), Scenes(pictures, captions))


def test_four_in_five_of_the_bases_pictures_are_framed_and_all_have_their_own_words() -> None:
    batches = SceneBatches(_numbered(0, 0.0), _Words(), 10, None, _numbered(50, 1.0))  # type: ignore[arg-type]
    words: list[float] = []
    for seed in range(24):
        batch = batches(torch.Generator().manual_seed(seed))
        shown = batch.x_0.mean((1, 2, 3))
        assert shown.tolist() == [0.0] * 2 + [1.0] * 8
        told = [(float(w), float(s)) for w, s in zip(batch.context, shown, strict=True) if w >= 0]
        assert all((word >= 50) == (s == 1.0) for word, s in told)
        words += [word for word, _ in told]
    assert len(set(words)) == 8


def test_without_framed_scenes_all_are_of_the_others() -> None:
    batch = SceneBatches(_numbered(0, 0.0), _Words(), 3, 32)(torch.Generator())  # type: ignore[arg-type]
    assert batch.x_0.shape == (3, 2, 4, 4)


def test_squares_of_framed_scenes_and_scenes_that_are_not_framed_are_refused(tmp_path: Path) -> None:
    scenes = _numbered(0, 0.0)
    with pytest.raises(ValueError, match="leave out --crop, or --framed"):
        SceneBatches(scenes, _Words(), 3, 32, scenes)  # type: ignore[arg-type]
    np.save(tmp_path / "latents.npy", np.zeros((1, 2, 8, 8), np.float16))
    np.save(tmp_path / "images.npy", np.zeros((1, 64, 64, 3), np.uint8))
    (tmp_path / "captions.json").write_text('["a"]')
    with pytest.raises(ValueError, match="are not framed: make some with render --framed"):
        open_framed(tmp_path, torch.device("cpu"))
    (tmp_path / data.MADE_OF).write_text('{"first_seed": 0, "things": null, "framed": true}')
    assert open_framed(tmp_path, torch.device("cpu")) is not None
    assert open_framed(None, torch.device("cpu")) is None


def test_framed_scenes_without_a_turn_of_the_base_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["controls", "--turns", "canny", "--framed", str(tmp_path), "--runs", str(tmp_path)]) == 1
    assert "name base among --turns, or leave out --framed" in capsys.readouterr().err


def _fill_output(unet: UNet) -> None:
    """Undo the zero start of the last convolution, which would hide every difference."""
    last = unet.out[2]
    assert isinstance(last, torch.nn.Conv2d)
    torch.nn.init.normal_(last.weight)


def _batch(config: ModelConfig, generator: torch.Generator) -> ControlBatch:
    x_0 = torch.randn(2, config.unet.in_channels, 8, 8, generator=generator)
    context = torch.randn(2, 77, config.unet.context_dim, generator=generator)
    return ControlBatch(x_0, context, torch.rand(2, 3, 64, 64, generator=generator))


def test_a_fresh_copy_changes_nothing_bit_for_bit(config: ModelConfig) -> None:
    torch.manual_seed(0)
    unet = UNet(config.unet)
    _fill_output(unet)
    batch = _batch(config, torch.Generator().manual_seed(0))
    t = torch.tensor([10, 500])
    with torch.inference_mode():
        net = ControlNet.from_unet(unet, config.control)
        assert torch.equal(
            control_prediction(unet, net, batch, batch.x_0, t), unet(batch.x_0, t, batch.context)
        )


def test_training_moves_the_copy_and_leaves_the_base_locked(config: ModelConfig, tmp_path: Path) -> None:
    torch.manual_seed(0)
    unet = UNet(config.unet)
    _fill_output(unet)
    base = {k: v.clone() for k, v in unet.state_dict().items()}
    loop = LoopConfig(output=tmp_path, steps=3, learning_rate=1e-2, warmup=1)
    net = train_control(config, unet, lambda g: _batch(config, g), loop, batch_size=2)
    assert all(torch.equal(v, base[k]) for k, v in unet.state_dict().items())
    assert all(p.grad is None for p in unet.parameters())
    started = [*(p for conv in net.zero_convs for p in conv.parameters()), *net.middle_block_out.parameters()]
    assert all(float(p.abs().sum()) > 0 for p in started)


def test_exported_files_load_through_the_checkpoint_loader(config: ModelConfig, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, vae = Denoiser(config), AutoencoderKL(config.vae)
    net = ControlNet.from_unet(model.unet, config.control)
    export_base(config, model.unet, vae, model.text, tmp_path / "base.safetensors")
    export_control(config, net, tmp_path / "canny.safetensors")
    cpu = torch.device("cpu")
    base = load_base(config, tmp_path / "base.safetensors", device=cpu, dtype=torch.float32)
    control = load_control(config, tmp_path / "canny.safetensors", device=cpu, dtype=torch.float32)
    pairs = ((base.unet, model.unet), (base.vae, vae), (base.text, model.text), (control, net))
    for loaded, original in pairs:
        theirs = original.state_dict()
        assert loaded.state_dict().keys() == theirs.keys()
        for key, value in loaded.state_dict().items():
            sent = theirs[key].half() if value.is_floating_point() else theirs[key]
            assert torch.equal(value, sent.to(value.dtype)), key


def test_captions_are_dropped_extended_and_kept_in_the_said_shares() -> None:
    rng = random.Random(0)
    seen = [vary_caption("a red car", rng) for _ in range(4000)]
    assert seen.count("") / 4000 == pytest.approx(0.10, abs=0.02)
    assert seen.count(NEGATIVE_PROMPT) / 4000 == pytest.approx(0.05, abs=0.015)
    rest = [s for s in seen if s not in ("", NEGATIVE_PROMPT)]
    assert all("a red car" in s for s in rest)
    assert sum(s.endswith(ADDED_PROMPT) for s in rest) / len(rest) == pytest.approx(0.5, abs=0.03)
    assert 0 < sum(UNKNOWN_WORD in s for s in rest) / len(rest) < 0.1


def test_every_command_there_is_runs_something() -> None:
    (commands,) = (a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    assert set(commands.choices) == {*STAGES, "controlnet", "circles"}


@pytest.mark.parametrize(
    "stage", ["decoder", "base", "control", "controls", "feedback", "naming", "stream", "detector"]
)
def test_what_trains_takes_a_seed(stage: str) -> None:
    options = {"feedback": "--control mlsd", "naming": "--framed framed", "detector": "--detector depth"}
    needed = options.get(stage, "").split()
    loops = [_loop(parser().parse_args([stage, *needed, *given]), "run") for given in ([], ["--seed", "5"])]
    drawn = [step_generator(loop.seed, 0).initial_seed() for loop in loops]
    assert [loop.seed for loop in loops] == [0, 5] and drawn[0] != drawn[1]


@pytest.mark.parametrize("stage", ["latents", "decoder", "base", "control", "detector", "classifier"])
def test_every_stage_takes_a_device_and_finds_the_best_by_itself(stage: str) -> None:
    needed = ["--detector", "depth"] if stage == "detector" else []
    assert parser().parse_args([stage, *needed]).device == "auto"
    assert parser().parse_args([stage, *needed, "--device", "cuda:1"]).device == "cuda:1"
    assert main([stage, *needed, "--device", "tpu"]) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_control_is_trained_on_a_gpu_and_exported(config: ModelConfig, tmp_path: Path) -> None:
    torch.manual_seed(0)
    unet, device = UNet(config.unet), torch.device("cuda")
    _fill_output(unet)

    def batch(generator: torch.Generator) -> ControlBatch:
        made = _batch(config, generator)
        return ControlBatch(made.x_0.to(device), made.context.to(device), made.hint.to(device))

    loop = LoopConfig(output=tmp_path, steps=3, learning_rate=1e-2, warmup=1)
    net = train_control(config, unet, batch, loop, batch_size=2, device=device)
    export_control(config, net, tmp_path / "canny.safetensors")
    loaded = load_control(
        config, tmp_path / "canny.safetensors", device=torch.device("cpu"), dtype=torch.float32
    )
    assert all(p.isfinite().all() for p in loaded.parameters())


def test_networks_keep_their_layout_on_a_cpu() -> None:
    net = torch.nn.Conv2d(8, 8, 3)
    for_training(net, torch.device("cpu"))
    assert net.weight.is_contiguous()


def test_the_vocabulary_has_the_size_that_the_config_says() -> None:
    text = load_config("demo").text
    assert len(kept_token_ids(text.layout)) == text.kept_tokens


def test_canny_hints_are_edges_of_the_picture() -> None:
    image = np.full((64, 64, 3), 30, np.uint8)
    image[16:48, 16:48] = 220
    hint = canny_hint(image, random.Random(0))
    assert hint.shape == (64, 64) and set(np.unique(hint)) == {0, 255}
    assert not hint[20:44, 20:44].any() and not hint[:12].any()


def test_edge_f1_allows_three_pixels_and_no_more() -> None:
    given = np.zeros((64, 64), np.uint8)
    given[32, 8:56] = 255
    assert edge_f1(given, given) == 1.0
    assert edge_f1(np.roll(given, 3, axis=0), given) == 1.0
    assert edge_f1(np.roll(given, 4, axis=0), given) == 0.0
    assert edge_f1(np.zeros_like(given), given) == 0.0


@pytest.mark.parametrize("word", SHIFT_COLORS)
def test_a_painted_surface_is_named_by_its_colour(word: str) -> None:
    assert word in PAINTS
    image = np.zeros((32, 32, 3), np.uint8)
    image[:] = paint(word, random.Random(1)).clip(0, 255)
    assert named_color(image, np.ones((32, 32), bool)) == word


def test_training_goes_on_from_exported_files(tmp_path: Path) -> None:
    config = load_config("demo")
    shipped = Path(__file__).parents[2] / "ckpts" / "demo"
    unpack(config, shipped / "base.safetensors", tmp_path / "vae", tmp_path / "base")
    model = Denoiser(config)
    load_start(model.unet, tmp_path / "base")
    load_text(model, tmp_path / "base")
    base = load_file(shipped / "base.safetensors")
    out = model.unet.state_dict()["out.2.weight"]
    assert torch.equal(out.half(), base["model.diffusion_model.out.2.weight"])
    assert model.text.encode(["a red fox"]).isfinite().all()
    begin_with(shipped / "canny.safetensors", tmp_path / "depth")
    loop = LoopConfig(output=tmp_path / "depth", steps=0)

    def never(generator: torch.Generator) -> ControlBatch:
        raise AssertionError("no step is taken")

    net = train_control(config, model.unet, never, loop, batch_size=1)
    canny = load_file(shipped / "canny.safetensors")
    assert all(torch.equal(value.half(), canny[key]) for key, value in net.state_dict().items())


def test_a_control_over_another_keeps_its_trunk_and_ships_the_rest(
    tmp_path: Path, config: ModelConfig
) -> None:
    torch.manual_seed(0)
    unet = UNet(config.unet).requires_grad_(False)
    torch.nn.init.normal_(unet.get_parameter("out.2.weight"), std=0.1)  # a fresh one is zero
    trunk = ControlNet.from_unet(unet, config.control)
    export_control(config, trunk, tmp_path / "canny.safetensors")
    begin_with(tmp_path / "canny.safetensors", tmp_path / "run")

    def batch(generator: torch.Generator) -> ControlBatch:
        size = (2, config.unet.in_channels, 8, 8)
        context = torch.randn(2, 7, config.unet.context_dim, generator=generator)
        hint = torch.rand(2, 3, 64, 64, generator=generator)
        return ControlBatch(torch.randn(size, generator=generator), context, hint)

    loop = LoopConfig(output=tmp_path / "run", steps=2, warmup=1)
    net = train_control(config, unet, batch, loop, batch_size=2, over=True)
    before = load_file(tmp_path / "canny.safetensors")
    changed = {k for k, v in net.state_dict().items() if not torch.equal(v.half(), before[k])}
    assert changed and all(trained_over(net, name) for name in changed)
    own = {name for name in net.state_dict() if trained_over(net, name)}
    same = "zero_convs.0.0.bias"  # its own even where it is the trunk's
    net.get_parameter(same).data.copy_(before[same])
    export_control(config, net, tmp_path / "depth.safetensors", tmp_path / "canny.safetensors")
    assert set(load_file(tmp_path / "depth.safetensors")) == own >= changed
    cpu = torch.device("cpu")
    loaded = load_control(config, tmp_path / "depth.safetensors", device=cpu, dtype=torch.float32)
    for key, value in net.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value.half().float()), key


def test_a_control_goes_on_under_a_base_that_was_trained_further(tmp_path: Path, config: ModelConfig) -> None:
    torch.manual_seed(0)
    old, new = UNet(config.unet), UNet(config.unet)
    control = ControlNet.from_unet(old, config.control).state_dict()
    learned = {key: value + 0.5 for key, value in control.items()}
    carry(old.state_dict(), new.state_dict(), learned, tmp_path / "run")
    begun = ControlNet(config.unet, config.control)
    load_start(begun, tmp_path / "run")
    wanted = ControlNet.from_unet(new, config.control).state_dict()
    for key, value in begun.state_dict().items():
        origin = wanted[key] if key in new.state_dict() else control[key]
        assert torch.allclose(value, origin + 0.5, atol=1e-6), key


def test_cached_hints_lie_over_their_latents(tmp_path: Path, config: ModelConfig) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", pictures)
    (tmp_path / "captions.json").write_text('["a", "b", "c", "d", "e", "f"]')
    np.save(tmp_path / "latents.npy", pictures[:, ::8, ::8].transpose(0, 3, 1, 2).astype(np.float16))
    which = [1, 3, 4]
    np.save(tmp_path / "hints_hed.npy", pictures[which][:, :, :, 0])
    (tmp_path / "hints_hed.json").write_text("[1, 3, 4]")
    assert len(CachedHints.open(tmp_path, "hed").hints) == 3
    batches = SceneControlBatches(tmp_path, Denoiser(config).text, "hed", 8, crop=32)
    batch = batches(torch.Generator().manual_seed(1))
    assert batch.hint.shape == (8, 3, 32, 32) and batch.x_0.shape == (8, 3, 4, 4)
    assert torch.allclose(batch.hint[:, 0, ::8, ::8] * 255, batch.x_0[:, 0], atol=0.2)


def _scenes_with_things(folder: Path) -> np.ndarray:
    """Four grey scenes of 128 px, each with one lighter thing but the last; latents are their means."""
    pictures = np.full((4, 128, 128, 3), 20, np.uint8)
    for i, (y, x) in enumerate([(0, 0), (48, 112), (96, 32)]):
        pictures[i, y : y + 16, x : x + 16] = 200
    np.save(folder / "images.npy", pictures)
    (folder / "captions.json").write_text('["a", "b", "c", "d"]')
    np.save(folder / "latents.npy", pictures[:, 4::8, 4::8].transpose(0, 3, 1, 2).astype(np.float16))
    np.save(folder / "hints_hed.npy", pictures[..., 0])
    (folder / "hints_hed.json").write_text("[0, 1, 2, 3]")
    np.save(folder / data.THINGS, pictures[:, 8::16, 8::16, 0] > 100)
    return pictures


@pytest.mark.parametrize("control", ["hed", "canny"])
def test_half_of_the_batches_show_things_from_near_by_and_no_more_pixels(
    tmp_path: Path, config: ModelConfig, control: str
) -> None:
    _scenes_with_things(tmp_path)
    scenes = LatentScenes.open(tmp_path)
    near = close_squares(tmp_path, scenes, 4, [64])
    assert near[0].size == 16
    batches = SceneControlBatches(tmp_path, Denoiser(config).text, control, 4, scenes=scenes, close=near)
    whole, squares, corners = 0, 0, set()
    for seed in range(30):
        batch = batches(torch.Generator().manual_seed(seed))
        again = batches(torch.Generator().manual_seed(seed))
        assert torch.equal(batch.x_0, again.x_0) and torch.equal(batch.hint, again.hint)
        if len(batch.x_0) == 4:
            assert batch.x_0.shape[2:] == (16, 16) and batch.hint.shape[2:] == (128, 128)
            whole += 1
            continue
        squares += 1
        assert batch.x_0.shape == (16, 3, 8, 8) and batch.hint.shape == (16, 3, 64, 64)
        light = batch.x_0[:, 0] > 100
        shows = light.flatten(1).any(1)
        assert 0.4 < shows.float().mean() <= 1  # the last scene has no thing
        corners |= {tuple(torch.nonzero(one)[0].tolist()) for one in light[shows]}
        if control == "hed":
            assert torch.allclose(batch.hint[:, 0, 4::8, 4::8] * 255, batch.x_0[:, 0], atol=0.2)
        else:  # where there are edges there is a thing
            assert not batch.hint[~shows].any() and batch.hint[shows].any()
    assert 8 < whole < 22 and whole + squares == 30
    assert len(corners) > 15


def test_a_square_holds_the_place_of_a_thing_wherever_that_is(tmp_path: Path) -> None:
    pictures = _scenes_with_things(tmp_path)
    (near,) = close_squares(tmp_path, LatentScenes.open(tmp_path), 1, [64])
    for scene in range(3):
        corners = {near.corner(scene, 16, 8, random.Random(seed)) for seed in range(300)}
        for y, x in corners:
            assert 0 <= y <= 8 and 0 <= x <= 8
            assert (pictures[scene, 8 * y : 8 * y + 64, 8 * x : 8 * x + 64] > 100).any()
        assert len(corners) > 3
    assert len({near.corner(3, 16, 8, random.Random(seed)) for seed in range(300)}) == 81


def test_a_small_thing_is_shown_from_near_by_as_often_as_a_large_one(tmp_path: Path) -> None:
    _scenes_with_things(tmp_path)
    shown = np.zeros((4, 8, 8), np.bool_)
    shown[0, 0, 0] = shown[0, 4:8, 4:8] = True
    np.save(tmp_path / data.THINGS, shown)
    (near,) = close_squares(tmp_path, LatentScenes.open(tmp_path), 1, [64])
    corners = [near.corner(0, 16, 8, random.Random(seed)) for seed in range(400)]
    assert 160 < sum(max(corner) < 2 for corner in corners) < 240  # by its places it would be one in 17


def test_squares_from_near_by_are_of_one_side_or_another(tmp_path: Path, config: ModelConfig) -> None:
    _scenes_with_things(tmp_path)
    scenes = LatentScenes.open(tmp_path)
    near = close_squares(tmp_path, scenes, 4, [128, 64])
    batches = SceneControlBatches(tmp_path, Denoiser(config).text, "hed", 4, scenes=scenes, close=near)
    sides = [batches(torch.Generator().manual_seed(seed)).x_0.shape for seed in range(60)]
    assert 8 < sum(shape[0] == 16 and shape[2] == 8 for shape in sides) < 22
    assert all(tuple(shape) in {(4, 3, 16, 16), (16, 3, 8, 8)} for shape in sides)


def test_maps_of_rare_classes_are_drawn_as_often_as_others(tmp_path: Path) -> None:
    maps = np.zeros((50, 32, 32, 3), np.uint8)
    maps[:] = PALETTE[3]
    maps[7, :8, :16] = PALETTE[100]
    np.save(tmp_path / "hints_seg.npy", maps)
    (tmp_path / "hints_seg.json").write_text(json.dumps(list(range(0, 100, 2))))
    cached = CachedHints.open(tmp_path, "seg")
    assert [rows.tolist() for rows in cached.by_class] == [list(range(50)), [7]]
    rows = cached.draw(400, 100, torch.Generator().manual_seed(0))
    assert 75 < (rows == 7).sum() < 135  # half of a half, and one in fifty of the others
    assert len(set(rows.tolist())) > 45
    few = cached.draw(400, 14, torch.Generator().manual_seed(0))
    assert few.max() == 6  # the map of scene 14 is none of theirs
    again = cached.draw(400, 14, torch.Generator().manual_seed(0))
    np.testing.assert_array_equal(few, again)


@pytest.mark.parametrize("side", [0, -64, 100, 192])
def test_squares_that_the_scenes_cannot_have_are_refused(tmp_path: Path, side: int) -> None:
    _scenes_with_things(tmp_path)
    scenes = LatentScenes.open(tmp_path)
    with pytest.raises(ValueError, match="give a multiple of 64 pixels, at most 128"):
        close_squares(tmp_path, scenes, 4, [64, side])
    (tmp_path / data.THINGS).unlink()
    with pytest.raises(FileNotFoundError, match=r"core\.training render --data"):
        close_squares(tmp_path, scenes, 4, [64])


def test_what_is_rendered_tells_where_things_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "ProcessPoolExecutor", _Threads)
    monkeypatch.setattr(SpriteLibrary, "load", lambda *arguments: LIBRARY)
    data.render(tmp_path, tmp_path, 5, first_seed=40, size=128, workers=1)
    shown = data.shown_things(tmp_path)
    assert shown.shape == (5, 8, 8) and shown.dtype == np.bool_
    for i, places in enumerate(shown):
        seen = make_scene(40 + i, LIBRARY, 128).index_map
        for y, x in np.ndindex(8, 8):
            assert places[y, x] == (seen[16 * y + 8, 16 * x + 8] > 0)
    assert shown.any() and not shown.all()


class _Threads(ThreadPoolExecutor):
    """Stands for processes, which would not see the drawn sprites."""


def test_hints_are_of_the_very_scenes_that_were_rendered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def load(folder: Path, objects: Sequence[ObjectSpec]) -> SpriteLibrary:
        asked.append(len(objects))
        return SpriteLibrary(objects, {spec.name: LIBRARY.sprite(spec.name) for spec in objects})

    for module in (data, hints):
        monkeypatch.setattr(module, "ProcessPoolExecutor", _Threads)
    monkeypatch.setattr(SpriteLibrary, "load", load)
    monkeypatch.setitem(hints.HINT_MAKERS, "scribble", lambda scene, rng: scene.image)
    data.render(tmp_path, tmp_path, 3, first_seed=70, size=64, things=20, workers=1)
    hints.cache_hints(tmp_path, "scribble", tmp_path, count=3, workers=1)

    assert set(asked) == {20}
    pictures = data.Scenes.open(tmp_path).images
    assert pictures.shape == (3, 64, 64, 3)
    np.testing.assert_array_equal(CachedHints.open(tmp_path, "scribble").hints, pictures)
    data.render(tmp_path / "framed", tmp_path, 3, first_seed=70, size=64, things=20, framed=True, workers=1)
    hints.cache_hints(tmp_path / "framed", "scribble", tmp_path, count=3, workers=1)
    framed = data.Scenes.open(tmp_path / "framed").images
    np.testing.assert_array_equal(CachedHints.open(tmp_path / "framed", "scribble").hints, framed)
    assert not np.array_equal(framed, pictures)
    data.render(tmp_path / "others", tmp_path, 3, size=64, things=20, workers=1)
    assert not np.array_equal(data.Scenes.open(tmp_path / "others").images, pictures)


def test_a_photographed_picture_is_still_the_same_picture() -> None:
    picture = cv2.resize(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8), (64, 64))
    seen = [photographed(picture, random.Random(seed)) for seed in range(20)]
    assert any(np.array_equal(one, picture) for one in seen)
    assert any(not np.array_equal(one, picture) for one in seen)
    for one in seen:
        assert one.shape == picture.shape and one.dtype == np.uint8
        assert np.corrcoef(one.ravel(), picture.ravel())[0, 1] > 0.9
