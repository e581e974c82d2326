"""The decoder's training: what detectors and an adversary see, and latents that the model drew itself."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from core.config import ModelConfig, ScheduleConfig
from core.images import to_rgb
from core.models.controlnet import ControlNet
from core.models.unet import UNet
from core.models.vae import AutoencoderKL
from core.training.adversary import Adversary
from core.training.base import Denoiser
from core.training.data import LatentScenes, Redrawn, Scenes, cache_latents, to_tensor
from core.training.demo import load_vae
from core.training.detectors.critics import Detectors, EdgeCritic, seen_by
from core.training.diffusion import DiffusionLoss
from core.training.export import export_base, export_control
from core.training.loop import LoopConfig
from core.training.redraw import Artist, redraw
from core.training.vae import aligned_crops, fit_autoencoder, load_fitted, train_decoder

EXAMPLES = Path(__file__).parents[2] / "test_imgs"


def _pictures(count: int, side: int = 64) -> np.ndarray:
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0, 255, (count, side // 8, side // 8, 3))
    large = [cv2.resize(picture, (side, side), interpolation=cv2.INTER_CUBIC) for picture in coarse]
    return np.clip(large, 0, 255).astype(np.uint8)


@pytest.fixture
def scenes(config: ModelConfig, tmp_path: Path) -> Path:
    """A folder of five pictures of blobs, their latents and a fitted autoencoder in "run"."""
    np.save(tmp_path / "images.npy", _pictures(5))
    (tmp_path / "captions.json").write_text(json.dumps(["a", "b", "c", "d", "e"]))
    fit_autoencoder(config, tmp_path, tmp_path / "run")
    cache_latents(load_fitted(config, tmp_path / "run"), tmp_path)
    return tmp_path


def test_detectors_tell_pictures_apart_and_only_the_made_one_learns() -> None:
    critic = Detectors(128)
    # Scenes of people and of a car, as the detectors know them.
    scenes = [to_rgb(EXAMPLES / name) for name in ("toy_jumping.png", "toy_car.png")]
    true = to_tensor(
        np.stack([cv2.resize(scene, (128, 128), None, 0, 0, cv2.INTER_AREA) for scene in scenes])
    )
    assert float(critic(true, true)) == 0.0
    known = seen_by(critic.edges, true, true)
    assert float(critic(true, 0.5 * true, known)) < float(critic(true, 0.5 * true))
    soft = F.avg_pool2d(true, 5, 1, 2)
    softer = F.avg_pool2d(true, 11, 1, 5).requires_grad_()
    far, near = critic(softer, true), critic(soft, true)
    assert float(far.detach()) > float(near) > 0.0
    far.backward()
    assert softer.grad is not None and float(softer.grad.abs().max()) > 0
    assert all(p.grad is None for p in critic.parameters())


def test_each_side_of_the_adversary_learns_from_its_own_loss_alone() -> None:
    torch.manual_seed(0)
    judge, shapes = Adversary(), ((2, 3, 64, 64), (2, 64, 64, 64), (2, 128, 32, 32))
    true, made = (
        [torch.rand(shape) for shape in shapes],
        [torch.rand(shape).requires_grad_() for shape in shapes],
    )
    fooled, seen = judge.losses(made, true)
    fooled.backward(retain_graph=True)
    assert all(p.grad is None for p in judge.parameters())
    given = [view.grad.clone() for view in made if view.grad is not None]
    assert len(given) == 3 and all(float(grad.abs().max()) > 0 for grad in given)
    seen.backward()
    assert all(
        torch.equal(view.grad, grad) for view, grad in zip(made, given, strict=True) if view.grad is not None
    )
    assert all(p.grad is not None for p in judge.parameters())


def test_the_adversary_learns_to_tell_soft_patches_however_large_features_are() -> None:
    torch.manual_seed(0)
    judge, eyes, squares = Adversary(), EdgeCritic(), torch.rand(4, 3, 8, 8) * 2 - 1
    hard, soft = (F.interpolate(squares, scale_factor=8, mode=mode) for mode in ("nearest", "bilinear"))
    optimizer = torch.optim.AdamW(judge.parameters(), lr=1e-3)
    true, made = [hard, *eyes.see(hard)], [soft, *eyes.see(soft)]
    losses = []
    for _ in range(12):
        fooled, seen = judge.losses(made, true)
        optimizer.zero_grad()
        seen.backward()
        optimizer.step()
        losses.append((float(fooled.detach()), float(seen.detach())))
    assert losses[-1][1] < 0.8 * losses[0][1] and losses[-1][0] > losses[0][0]
    larger = [[view * 3 for view in views] for views in (made, true)]
    assert torch.allclose(
        torch.stack(judge.losses(*larger)), torch.stack(judge.losses(made, true)), atol=1e-4
    )


def test_every_second_crop_is_of_what_was_redrawn() -> None:
    picture = np.arange(3, dtype=np.uint8)[:, None, None, None].repeat(64, 1).repeat(64, 2).repeat(3, 3)
    latents = torch.arange(3.0)[:, None, None, None].expand(3, 2, 8, 8)
    redrawn = Redrawn(np.full((1, 2, 8, 8), 9, np.float16), np.array([2]))
    dataset = LatentScenes(latents.half(), Scenes(picture, ("a", "b", "c")))
    drawn, images = aligned_crops(dataset, 6, 32, 8, torch.Generator().manual_seed(0), redrawn)
    shown = ((images[:, 0, 0, 0] + 1) * 127.5).round()
    assert torch.equal(drawn[::2, 0, 0, 0], shown[::2])
    assert drawn[1::2].eq(9).all() and shown[1::2].eq(2).all()


def test_the_busier_of_two_crops_is_taken_and_its_latents_with_it() -> None:
    picture = np.zeros((1, 64, 64, 3), np.uint8)
    picture[:, ::2, :32] = 255  # stripes on the left, nothing on the right
    latents = torch.arange(8.0).expand(1, 2, 8, 8)  # numbers of columns
    dataset = LatentScenes(latents.half(), Scenes(picture, ("a",)))
    drawn, images = aligned_crops(dataset, 300, 32, 8, torch.Generator().manual_seed(0))
    columns = drawn[:, 0, 0, 0]  # 0 to 4; of two that chance chose, the one farther left has more stripes
    share = [float((columns == column).float().mean()) for column in range(5)]
    assert share == pytest.approx([1 - 16 / 25, 7 / 25, 5 / 25, 3 / 25, 1 / 25], abs=0.08)
    stripes = (images[:, 0, 0] > 0).float().sum(-1)
    assert torch.equal(stripes, 32 - 8 * columns)


@pytest.mark.parametrize("parameterization", ["eps", "v"])
def test_a_perfect_prediction_has_the_picture_and_the_noise_in_it(parameterization: str) -> None:
    criterion = DiffusionLoss(ScheduleConfig(parameterization=parameterization))
    x_0, noise = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([3, 400, 900])
    x_t = criterion.noised(x_0, noise, t)
    found, rest = criterion.parts(x_t, criterion.target(x_0, noise, t), t)
    assert torch.allclose(found, x_0, atol=1e-3) and torch.allclose(rest, noise, atol=1e-3)


def test_little_noise_is_drawn_away_and_much_noise_becomes_another_picture(config: ModelConfig) -> None:
    torch.manual_seed(0)
    model = Denoiser(config).requires_grad_(False)
    artist = Artist(config, model.unet, model.text, ControlNet.from_unet(model.unet, config.control))
    latents, noise = torch.randn(2, 1, config.unet.in_channels, 8, 8)
    told, made = artist.told(["a"], torch.rand(1, 3, 64, 64)), []
    for begin in (4, 900):
        times = [torch.tensor([begin * i // 2]) for i in (2, 1, 0)]
        made.append(artist.draw(told, artist.criterion.noised(latents, noise, times[0]), times))
    near, far = made
    assert float((near - latents).abs().mean()) < 0.2 < 0.5 < float((far - latents).abs().mean())


def _exported(config: ModelConfig, folder: Path) -> None:
    torch.manual_seed(0)
    model = Denoiser(config)
    export_base(config, model.unet, AutoencoderKL(config.vae), model.text, folder / "base.safetensors")
    net = ControlNet.from_unet(UNet(config.unet), config.control)
    export_control(config, net, folder / "canny.safetensors")


def test_scenes_are_redrawn_alike_each_time_and_keep_their_numbers(config: ModelConfig, scenes: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"core\.training redraw"):
        Redrawn.open(scenes)
    _exported(config, scenes)
    with pytest.raises(ValueError, match="count is 6"):
        redraw(config, scenes, scenes, 6)
    made = []
    for _ in range(2):
        redraw(config, scenes, scenes, 3, batch=2)
        made.append(Redrawn.open(scenes))
    assert made[0].scenes.tolist() == [0, 1, 3] and made[0].latents.shape == (3, 8, 8, 8)
    assert np.array_equal(made[0].latents, made[1].latents)
    assert np.isfinite(made[0].latents).all()


def test_a_decoder_learns_from_all_of_it_resumes_and_leaves_the_adversary_behind(
    config: ModelConfig, scenes: Path
) -> None:
    latents = LatentScenes.open(scenes).latents
    redrawn = Redrawn(latents[:2].numpy(), np.array([0, 1]))

    with pytest.raises(ValueError, match="batch is 1"):
        loop = LoopConfig(output=scenes / "none", steps=1)
        train_decoder(config, scenes, loop, batch_size=1, redrawn=redrawn)

    def train(steps: int, run: Path) -> dict[str, torch.Tensor]:
        loop = LoopConfig(output=run, steps=steps, learning_rate=1e-3, warmup=1)
        train_decoder(
            config, scenes, loop, batch_size=2, crop=32, detectors=True, adversary=True, redrawn=redrawn
        )
        return load_vae(config, run).state_dict()

    fitted = load_fitted(config, scenes / "run").state_dict()
    whole, parts = scenes / "whole", scenes / "run"
    whole.mkdir()
    (whole / "fitted.safetensors").write_bytes((parts / "fitted.safetensors").read_bytes())
    train(2, parts)
    trained = train(4, parts)
    assert all(torch.equal(value, trained[key]) for key, value in train(4, whole).items())
    moved = {key for key, value in trained.items() if not torch.equal(value, fitted[key])}
    assert moved and all(key.startswith(("decoder", "post_quant_conv")) for key in moved)
    groups = torch.load(parts / "checkpoint.pt", weights_only=True)["optimizer"]["param_groups"]
    fast = [group for group in groups if group["factor"] > 1]
    assert [len(group["params"]) for group in fast] == [len(list(Adversary().parameters()))]


def test_detectors_adversary_and_what_was_redrawn_each_change_what_is_learned(
    config: ModelConfig, scenes: Path
) -> None:
    latents = LatentScenes.open(scenes).latents
    redrawn = Redrawn(latents.flip(0).numpy(), np.arange(5))

    def train(name: str, detectors: bool, adversary: bool, redrawn: Redrawn | None) -> torch.Tensor:
        run = scenes / name
        run.mkdir()
        (run / "fitted.safetensors").write_bytes((scenes / "run" / "fitted.safetensors").read_bytes())
        # Two steps: the first of AdamW is as long whatever the gradients' sizes.
        loop = LoopConfig(output=run, steps=2, learning_rate=1e-3, warmup=1)
        train_decoder(
            config,
            scenes,
            loop,
            batch_size=2,
            crop=32,
            detectors=detectors,
            adversary=adversary,
            redrawn=redrawn,
        )
        return load_vae(config, run).decoder.conv_in.weight.clone()

    with_all = train("all", True, True, redrawn)
    for name, less in (
        ("no detectors", (False, True, redrawn)),
        ("no adversary", (True, False, redrawn)),
        ("none redrawn", (True, True, None)),
    ):
        assert float((train(name, *less) - with_all).abs().max()) > 1e-5, name
