"""Scenes that are made meanwhile lie beside their own maps and captions, and networks learn from them."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from annotators.ade20k import PALETTE
from core.config import ModelConfig
from core.errors import SuiteError
from core.models.controlnet import ControlNet
from core.models.text_encoder import TextEncoder
from core.models.unet import UNet
from core.models.vae import AutoencoderKL
from core.runtime.device import CPU
from core.training.base import kept_token_ids, vary_caption
from core.training.data import to_tensor
from core.training.export import export_base, export_control
from core.training.hints import canny_hint, depth_hint, openpose_hint
from core.training.loop import LoopConfig
from core.training.near import NOWHERE, Close, as_many, corners, place_of_thing
from core.training.pieces import CAPTIONS, make_piece, start_worker
from core.training.streamed import CHUNK, SceneStream
from core.training.streaming import StreamedRun, draw_framed, train_streamed
from core.training.toyworld.scene import Scene, make_scene
from core.weights.checkpoint import load_base, load_control
from tests.training.test_toyworld import LIBRARY

SIDE = 64
COUNT, WITH_TRUTH = CHUNK + 6, CHUNK


@pytest.fixture(scope="module")
def small(config: ModelConfig) -> ModelConfig:
    """The tiny demo model, of 64 px."""
    return replace(config, resolution=SIDE)


def _text(config: ModelConfig) -> TextEncoder:
    text = TextEncoder(config.text).requires_grad_(False)
    text.token_ids.copy_(kept_token_ids(config.text.layout))
    return text


@pytest.fixture(scope="module")
def stream(small: ModelConfig) -> SceneStream:
    """All scenes, made by two processes."""
    torch.manual_seed(0)
    vae = AutoencoderKL(small.vae).requires_grad_(False)
    made = SceneStream(LIBRARY, vae, _text(small), COUNT, WITH_TRUTH, size=SIDE, device=CPU)
    made.start(2)
    made.wait(COUNT)
    return made


def _scene(seed: int, truth: bool = True) -> tuple[Scene, random.Random]:
    return make_scene(seed, LIBRARY, SIDE, truth=truth), random.Random(seed)


def test_each_row_holds_its_own_scene_caption_and_maps(stream: SceneStream) -> None:
    for seed in (0, 7, CHUNK - 1, CHUNK + 3):
        scene, rng = _scene(seed)
        captions = [vary_caption(scene.caption, rng) for _ in range(CAPTIONS)]
        assert torch.equal(stream.tokens[seed].long(), stream.text.tokenize(captions))
        latents = stream.vae.encode(to_tensor(scene.image[None]))[0]
        assert torch.allclose(stream.latents[seed].float(), latents, atol=2e-2)
        assert np.array_equal(stream.maps["canny"].values[seed].numpy(), canny_hint(scene.image, rng))
        if seed < WITH_TRUTH:
            assert np.array_equal(stream.maps["depth"].values[seed].numpy(), depth_hint(scene, rng))


def test_only_the_first_scenes_have_all_maps_and_poses_know_whose_they_are(stream: SceneStream) -> None:
    assert stream.ready == stream.maps["canny"].count == COUNT
    assert stream.maps["depth"].count == stream.maps["seg"].count == WITH_TRUTH
    poses = stream.maps["openpose"]
    assert 0 < poses.count <= len(poses.values)
    for row in range(poses.count):
        scene, rng = _scene(int(poses.scenes[row]))
        assert scene.people or scene.seed % 8 == 0
        assert np.array_equal(poses.values[row].numpy(), openpose_hint(scene, rng))


def test_batches_are_drawn_by_the_generator_alone_and_maps_are_in_the_apps_colours(
    stream: SceneStream,
) -> None:
    first, again = (stream.draw_control("seg", 5, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first.x_0, again.x_0) and torch.equal(first.hint, again.hint)
    assert torch.equal(first.context, again.context)
    assert first.hint.shape == (5, 3, SIDE, SIDE)
    colours = {
        tuple(c)
        for c in (first.hint * 255).round().to(torch.uint8).permute(0, 2, 3, 1).reshape(-1, 3).tolist()
    }
    assert colours <= {tuple(map(int, c)) for c in PALETTE}
    lines = stream.draw_control("canny", 3, torch.Generator().manual_seed(1)).hint
    assert set(lines.unique().tolist()) <= {0.0, 1.0} and torch.equal(lines[:, 0], lines[:, 2])
    base = stream.draw_base(6, torch.Generator().manual_seed(2))
    assert base.x_0.shape[0] == base.context.shape[0] == 6 and not base.context.requires_grad


def _edges_alone(stream: SceneStream, side: int) -> SceneStream:
    """A stream of four scenes of ``side`` pixels whose latents tell what their edges are."""
    vae = AutoencoderKL(stream.vae.config).requires_grad_(False)
    made = SceneStream(LIBRARY, vae, stream.text, 4, 4, size=side, device=CPU)
    start_worker(LIBRARY, stream.text.config)
    made._add(make_piece(range(4), side, truth=True))
    edges = made.maps["canny"].values[:, None].float() / 255
    made.latents[:] = torch.nn.functional.max_pool2d(edges, 8).half()
    return made


def test_half_of_the_batches_show_things_from_near_by_as_their_maps_do(stream: SceneStream) -> None:
    small = _edges_alone(stream, 128)
    sizes = []
    for seed in range(24):
        batch = small.draw_control("canny", 2, torch.Generator().manual_seed(seed), close=(64,))
        again = small.draw_control("canny", 2, torch.Generator().manual_seed(seed), close=(64,))
        assert torch.equal(batch.x_0, again.x_0) and torch.equal(batch.hint, again.hint)
        assert len(batch.context) == len(batch.x_0)
        sizes.append((len(batch.x_0), batch.hint.shape[-1]))
        # The stand-in latents of a cell are the map's brightest pixel in it.
        brightest = torch.nn.functional.max_pool2d(batch.hint[:, :1], 8)
        assert torch.equal(batch.x_0[:, :1], brightest)
    assert set(sizes) == {(2, 128), (8, 64)} and 5 < sizes.count((8, 64)) < 19
    many = [len(stream.draw_control("canny", 9, torch.Generator().manual_seed(s)).x_0) for s in range(3)]
    assert many == [9, 9, 9]
    with pytest.raises(ValueError, match="--close is 100"):
        small.draw_control("canny", 2, torch.Generator(), close=(100,))


def test_squares_of_every_side_fill_a_batchs_pixels() -> None:
    assert [as_many(32, 256, side) for side in (256, 192, 128, 64)] == [32, 56, 128, 512]


def test_places_of_things_are_kept_and_a_square_holds_one_wherever_that_is() -> None:
    rng = random.Random(0)
    shown = np.zeros((8, 8), np.bool_)
    assert place_of_thing(shown, rng) == (NOWHERE, NOWHERE)
    shown[0, 0] = shown[4:8, 4:8] = True
    found = [place_of_thing(shown, rng) for _ in range(400)]
    assert all(shown[place] for place in found)
    assert 160 < found.count((0, 0)) < 240  # by its places it would be one in 17
    for place in [(0, 0), (3, 7), (7, 2)]:
        places = torch.tensor(place).expand(600, 2)
        made = corners(places, 2.0, 16, 8, torch.Generator().manual_seed(1))
        at = torch.tensor(place) * 2 + 1
        assert (made >= 0).all() and (made <= 8).all()
        assert (made <= at).all() and (made + 8 > at).all()
        close = Close(1, 64, np.zeros((1, 8, 8), np.bool_))
        close.shown[0][place] = True
        wanted = {close.corner(0, 16, 8, random.Random(seed)) for seed in range(1500)}
        assert {tuple(corner) for corner in made.tolist()} == wanted
    anywhere = corners(torch.full((900, 2), NOWHERE), 2.0, 16, 8, torch.Generator().manual_seed(1))
    assert len({tuple(corner) for corner in anywhere.tolist()}) == 81


def test_maps_of_rare_classes_are_drawn_as_often_as_others(small: ModelConfig) -> None:
    vae = AutoencoderKL(small.vae).requires_grad_(False)
    stream = SceneStream(LIBRARY, vae, _text(small), 40, 40, size=SIDE, device=CPU)
    start_worker(LIBRARY, small.text)
    piece = make_piece(range(40), SIDE, truth=True)
    piece.maps["seg"][:] = 3
    piece.maps["seg"][7, :16, :32] = 100
    piece.maps["seg"][9, 0, 0] = 80  # too little to be shown
    stream._add(piece)
    assert stream.classes.sum(1).nonzero()[:, 0].tolist() == [3, 100]
    hints = stream.draw_control("seg", 400, torch.Generator().manual_seed(0)).hint * 255
    rare = torch.tensor(PALETTE[100], dtype=torch.float32)[:, None, None]
    assert 75 < int((hints.round() == rare).all(1).flatten(1).any(1).sum()) < 140  # of a half a half, and few


def _maps_on_disk(folder: Path, name: str, scenes: list[int]) -> None:
    folder.mkdir(exist_ok=True)
    np.save(folder / f"hints_{name}.npy", np.full((len(scenes), SIDE, SIDE), 255, np.uint8))
    (folder / f"hints_{name}.json").write_text(json.dumps(scenes))


def test_maps_made_before_count_as_soon_as_their_scenes_are_there(tmp_path: Path, small: ModelConfig) -> None:
    _maps_on_disk(tmp_path, "mlsd", [0, 1, CHUNK, COUNT + 3])
    vae = AutoencoderKL(small.vae).requires_grad_(False)
    stream = SceneStream(LIBRARY, vae, _text(small), COUNT, 0, size=SIDE, device=CPU)
    stream.add_cached(tmp_path, ["mlsd"])
    start_worker(LIBRARY, small.text)
    assert stream.maps["mlsd"].count == 0
    with pytest.raises(SuiteError, match="none of the scenes that are there has this map"):
        stream.draw_control("mlsd", 2, torch.Generator())
    stream._add(make_piece(range(CHUNK), SIDE, truth=False))
    assert stream.maps["mlsd"].count == 2
    stream._add(make_piece(range(CHUNK, COUNT), SIDE, truth=False))
    assert stream.maps["mlsd"].count == 3  # the last one's scene is never made


def test_framed_scenes_come_without_maps_and_fill_most_of_the_bases_batches(small: ModelConfig) -> None:
    vae = AutoencoderKL(small.vae).requires_grad_(False)
    framed, others = (
        SceneStream(LIBRARY, vae, _text(small), 8, 0, size=SIDE, device=CPU, framed=alone)
        for alone in (True, False)
    )
    start_worker(LIBRARY, small.text)
    piece = make_piece(range(8), SIDE, truth=False, framed=True)
    assert not piece.maps
    assert np.array_equal(piece.images[3], make_scene(3, LIBRARY, SIDE, framed=True).image)
    framed._add(piece)
    others._add(make_piece(range(8), SIDE, truth=False))
    framed.latents[:], others.latents[:] = 1.0, 0.0
    batch = draw_framed(others, framed, 10, torch.Generator().manual_seed(0))
    assert batch.x_0.mean((1, 2, 3)).tolist() == [1.0] * 8 + [0.0] * 2 and len(batch.context) == 10
    assert not draw_framed(others, None, 4, torch.Generator()).x_0.any()


def test_scenes_that_cannot_be_made_end_the_run_with_the_reason(small: ModelConfig) -> None:
    vae = AutoencoderKL(small.vae).requires_grad_(False)
    stream = SceneStream(LIBRARY, vae, _text(small), COUNT, 0, size=16, device=CPU)  # too small a side
    stream.start(1)
    with pytest.raises(SuiteError, match=r"can no longer be made .*size is 16"):
        stream.wait(1)


def test_base_and_controls_learn_from_the_stream_and_are_exported_grown(
    tmp_path: Path, small: ModelConfig
) -> None:
    torch.manual_seed(0)
    start, ckpts = tmp_path / "start", tmp_path / "ckpts"
    unet = UNet(small.unet)
    export_base(small, unet, AutoencoderKL(small.vae), _text(small), start / "base.safetensors")
    for name in ("canny", "mlsd"):
        export_control(small, ControlNet.from_unet(unet, small.control), start / f"{name}.safetensors")
    _maps_on_disk(tmp_path / "maps", "mlsd", list(range(8)))
    large = replace(small, unet=replace(small.unet, level_res_blocks=[1, 2]))
    run = StreamedRun(
        start, ckpts, tmp_path / "maps", ("base", "canny", "mlsd"), batch_size=2, scenes=CHUNK, with_truth=4,
        workers=1, framed=CHUNK, export_every=0.0, close=(SIDE,),
    )  # fmt: skip
    train_streamed(
        large, LIBRARY, run, LoopConfig(output=tmp_path / "run", steps=3, warmup=1, muon=True), CPU
    )
    base = load_base(large, ckpts / "base.safetensors", device=CPU, dtype=torch.float32)
    nets = [
        load_control(large, ckpts / f"{n}.safetensors", device=CPU, dtype=torch.float32)
        for n in ("canny", "mlsd")
    ]
    with pytest.raises(ValueError, match=r"--close is 128: .* at most 64"):
        train_streamed(large, LIBRARY, replace(run, close=(128,)), LoopConfig(output=tmp_path, steps=1), CPU)
    assert not torch.equal(base.unet.get_parameter("out.2.weight"), unet.get_parameter("out.2.weight"))
    trunk = "input_blocks.4.0.in_layers.2.weight"
    assert torch.equal(nets[0].get_parameter(trunk), nets[1].get_parameter(trunk))
    assert any(bool(net.get_parameter("zero_convs.0.0.weight").any()) for net in nets)
