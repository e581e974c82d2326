"""The demo detectors' training: what they learn decodes to the truth, what is exported finds the same."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from annotators.depth import WEIGHTS as MIDAS
from annotators.nets import midas, openpose, uniformer
from annotators.nets.keypoints import find_bodies
from core.errors import CheckpointMismatch
from core.training.detectors import train
from core.training.detectors.depth import DepthTask
from core.training.detectors.pose import HEIGHT, PoseTask, limb_fields, part_maps
from core.training.detectors.segmentation import SegmentationTask
from core.training.detectors.task import seed_with_people
from core.training.detectors.train import TASKS, Batches, draw_batch, export_detector, train_detector
from core.training.figures import key_points_met
from core.training.loop import LoopConfig
from core.training.norms import settle
from core.training.toyworld.layout import draw_kind
from core.training.toyworld.scene import EVAL_SEED_BASE, make_scene
from core.training.toyworld.truth import NORMAL_STRENGTH
from core.weights.plain import load_plain
from core.weights.registry import Registry
from tests.training.test_toyworld import LIBRARY

NOWHERE, CPU = Path("sprites"), torch.device("cpu")
BUILD = {"depth": midas.build, "pose": openpose.build_body, "segmentation": uniformer.build}


@pytest.fixture(autouse=True)
def drawn_sprites(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the scenes show the sprites that the tests draw."""
    monkeypatch.setattr(train, "_library", lambda _: LIBRARY)


def load(name: str, path: Path) -> nn.Module:
    key_of = openpose.published_key if name == "pose" else None
    return load_plain(BUILD[name], path, name=MIDAS, device=CPU, dtype=torch.float32, key_of=key_of)


def test_the_maps_that_pose_learns_decode_to_the_people_of_the_scene() -> None:
    met = seen = 0
    for index in range(1, 12):
        scene = make_scene(seed_with_people(index), LIBRARY, 128)
        scale = HEIGHT / 128 / openpose.STRIDE
        people = [points * (scale, scale, 1) for points in scene.people]
        made = find_bodies(limb_fields(people), part_maps(people), (HEIGHT, HEIGHT), (256, 256))
        peaks = np.concatenate([made.peaks, np.zeros((1, 3))])
        right, there = key_points_met(
            [peaks[parts] for parts in made.people], [points * (2, 2, 1) for points in scene.people]
        )
        met, seen = met + right, seen + there
    assert seen > 100 and met / seen > 0.97


def test_seven_of_eight_samples_of_pose_show_people_and_no_seed_comes_twice() -> None:
    seeds = [seed_with_people(index) for index in range(400)]
    assert len(set(seeds)) == 400
    kinds = [draw_kind(random.Random(seed)) for seed in seeds]
    assert 0.8 < kinds.count("people") / 400 < 0.95


@pytest.mark.parametrize("name", sorted(TASKS))
def test_a_batch_fits_its_network_and_repeats_itself(name: str) -> None:
    pictures, truth = draw_batch(name, NOWHERE, 40, 2, 128)
    again = draw_batch(name, NOWHERE, 40, 2, 128)
    assert pictures.dtype == torch.uint8 and pictures.shape[:2] == (2, 3)
    assert torch.equal(pictures, again[0])
    assert all(torch.equal(a, b) for a, b in zip(truth, again[1], strict=True))
    net = TASKS[name].build()
    loss = TASKS[name].loss(net, pictures.float(), truth)
    loss.backward()
    assert loss.isfinite() and all(p.grad is not None for p in net.parameters())


def test_small_scenes_come_first_and_the_demo_models_own_size_last() -> None:
    for task in TASKS.values():
        sides = [task.side(step / 100) for step in range(100)]
        assert sides == sorted(sides) and sides[-1] == 256


def test_a_run_goes_on_with_the_next_samples_and_exports_what_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SegmentationTask, "sides", ((0.0, 64),))
    monkeypatch.setattr(train, "NORM_BATCHES", 2)
    drawn: list[int] = []

    def spy(name: str, sprites: Path, first: int, size: int, side: int) -> train.Batch:
        drawn.append(first)
        return draw_batch(name, sprites, first, size, side)

    monkeypatch.setattr(train, "draw_batch", spy)
    out = tmp_path / "out.safetensors"
    for steps, expected in ((1, [0, 0, 2]), (3, [2, 4, 4, 6])):  # the last two settle the normalisations
        loop = LoopConfig(output=tmp_path, steps=steps, warmup=1)
        train_detector("segmentation", NOWHERE, loop, batch_size=2, device=CPU, workers=0, output=out)
        assert drawn == expected
        drawn.clear()
    loaded = load("segmentation", out)
    assert isinstance(loaded, uniformer.UperNet) and loaded.config.side == 256


def test_classes_are_learned_from_softly_drawn_scenes_too() -> None:
    scene = make_scene(3, LIBRARY, 256, truth=True)
    assert scene.truth is not None
    own = scene.truth.segmentation
    learned = [SegmentationTask().sample(scene, random.Random(seed))[1][0] for seed in range(20)]
    bent = [not np.array_equal(one, own) and not np.array_equal(one, own[:, ::-1]) for one in learned]
    assert 4 <= sum(bent) <= 16


@pytest.mark.parametrize("name", ["depth", "segmentation"])
def test_a_new_run_goes_on_from_an_exported_detector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(train, "NORM_BATCHES", 1)
    task, begun, out = TASKS[name], tmp_path / "begun.safetensors", tmp_path / "out.safetensors"
    torch.manual_seed(5)
    export_detector(task, task.build(), begun)
    loop = LoopConfig(output=tmp_path / "run", steps=1, learning_rate=0.0)
    options = {"batch_size": 2, "device": CPU, "workers": 0, "output": out, "side": 64}
    train_detector(name, NOWHERE, loop, start=begun, **options)  # type: ignore[arg-type]
    before, after = load_file(begun), load_file(out)
    for key, value in before.items():
        if "running" not in key:
            assert torch.allclose(after[key].float(), value.float(), rtol=2e-3, atol=1e-6), key


def test_poses_go_on_though_their_normalisations_were_merged_into_the_convolutions(tmp_path: Path) -> None:
    task, path = TASKS["pose"], tmp_path / "pose.safetensors"
    torch.manual_seed(0)
    trained = task.build()
    for module in trained.modules():
        if isinstance(module, nn.BatchNorm2d):  # as if it had learned
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    batch = train.draw_batch("pose", NOWHERE, 0, 4, 64)
    with torch.no_grad():
        settle(trained, lambda _: train._loss(task, trained, batch, CPU), 1)
        known = float(train._loss(task, trained, batch, CPU))
        export_detector(task, trained, path)
        begun = task.build()
        fresh = float(train._loss(task, begun, batch, CPU))
        task.begin(begun, load_file(path))
        assert float(train._loss(task, begun, batch, CPU)) == pytest.approx(known, rel=2e-3)
        assert fresh != pytest.approx(known, rel=2e-2)
        norms = [module for module in begun.modules() if isinstance(module, nn.BatchNorm2d)]
        before = [norm.bias.clone() for norm in norms]
        train._loss(task, begun, train.draw_batch("pose", NOWHERE, 4, 4, 64), CPU)
    assert all(torch.equal(a, norm.bias) for a, norm in zip(before, norms, strict=True))  # measured once


def test_a_run_cannot_begin_with_a_network_that_it_does_not_train(tmp_path: Path) -> None:
    path, loop = tmp_path / "depth.safetensors", LoopConfig(output=tmp_path / "run", steps=1)
    task = TASKS["depth"]
    export_detector(task, task.build(), path)
    for name in ("pose", "segmentation"):
        with pytest.raises(ValueError, match="without --start"):
            train_detector(
                name, NOWHERE, loop, batch_size=1, device=CPU, workers=0, output=tmp_path / "out", start=path
            )


def test_the_side_of_the_scenes_can_be_given() -> None:
    assert [Batches("depth", NOWHERE, 2, 10, 64).arguments(step)[-1] for step in (0, 9)] == [64, 64]
    assert Batches("depth", NOWHERE, 2, 10).arguments(9)[-1] == 256


def test_another_seed_shows_other_scenes_and_none_that_evaluation_keeps(tmp_path: Path) -> None:
    first, second, last = (Batches("pose", NOWHERE, 8, 10, seed=seed) for seed in (0, 1, 39))
    assert first.arguments(0)[2] == 0
    assert second.arguments(0)[2] > first.arguments(10_000)[2]
    _, _, number, size, _ = last.arguments(10**6)
    assert max(seed_with_people(number + i) for i in range(size)) < EVAL_SEED_BASE
    loop, out = LoopConfig(output=tmp_path, steps=1, seed=40), tmp_path / "out"
    with pytest.raises(ValueError, match="0 to 39"):
        train_detector("pose", NOWHERE, loop, batch_size=1, device=CPU, workers=0, output=out)


def test_workers_draw_the_same_batches_in_the_same_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "ProcessPoolExecutor", _Threads)
    source = Batches("depth", NOWHERE, 2, 10)
    alone, helped = source.run(3, 0), source.run(3, 2)
    for _ in range(3):
        assert torch.equal(next(alone)[0], next(helped)[0])
    helped.close()


class _Threads(ThreadPoolExecutor):
    """Stands for processes, which would not see the drawn sprites."""

    def __init__(self, workers: int, initializer: object) -> None:
        super().__init__(1)


def test_the_exported_pose_network_needs_no_normalisations_and_finds_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    task = PoseTask()
    net = task.build()
    pictures, truth = draw_batch("pose", NOWHERE, 1, 2, 256)
    with torch.no_grad():
        task.loss(net, pictures.float(), truth)  # fills the means
    export_detector(task, net.eval(), tmp_path / "pose.safetensors")
    loaded = load("pose", tmp_path / "pose.safetensors")
    x = pictures.float() / 256 - 0.5
    with torch.no_grad():
        for found, wanted in zip(loaded(x), net(x), strict=True):
            assert torch.allclose(found, wanted, atol=0.02 * float(wanted.abs().max()))


def test_the_exported_depth_network_speaks_in_the_units_of_midas(tmp_path: Path) -> None:
    torch.manual_seed(0)
    task = DepthTask()
    net = task.build().eval()
    export_detector(task, net, tmp_path / "depth.safetensors")
    loaded = load("depth", tmp_path / "depth.safetensors")
    x = torch.rand(1, 3, 64, 96) * 2 - 1
    with torch.no_grad():
        assert torch.allclose(loaded(x), net(x) * NORMAL_STRENGTH, rtol=0.02, atol=0.5)


def test_a_size_of_picture_that_no_network_can_know_is_refused() -> None:
    with pytest.raises(CheckpointMismatch, match="side is 8"):
        uniformer.UniFormerConfig.from_metadata({"config": '{"side": 8}'})


def test_the_bundled_demo_detectors_are_small_and_float16() -> None:
    registry = Registry.load()
    files = {task.file for task in TASKS.values()}
    rows = [row for row in registry.files.values() if row.path.removeprefix("demo/") in files]
    assert rows and {row.kind for row in rows} == {"detector"}
    assert sum(row.size_bytes or 10**9 for row in rows) < 6_500_000
    for row in rows:
        with safe_open(registry.home / row.path, "pt") as file:
            assert file.metadata()["config"]
            assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"F16"}  # noqa: SIM118
