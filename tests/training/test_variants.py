"""The variants learn from the same batches and noise, and are measured by the same pictures."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from core.config import CONTROL_VARIANTS, ModelConfig, load_config, with_variant
from core.errors import CheckpointMismatch
from core.models.vae import AutoencoderKL
from core.training import control as training
from core.training import variants
from core.training.__main__ import parser
from core.training.base import Denoiser
from core.training.control import ControlBatch
from core.training.demo import train_demo_control
from core.training.evaluate_variants import (
    MODES,
    NONE,
    Measured,
    file_parameters,
    mean_and_error,
    measure,
    requests,
    sheet,
    table,
    training_seconds,
    variants_pipeline,
)
from core.training.export import export_base
from core.training.loop import LoopConfig
from core.weights.checkpoint import load_base
from tests.tiny_model import tiny_request

SIDE = 64


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    small = load_config("demo")
    small.unet = replace(small.unet, model_channels=32, channel_mult=[1, 2], attention_resolutions=[2])
    small.vae = replace(small.vae, ch=8, ch_mult=[1, 1, 2, 2])
    small.resolution = SIDE
    return small


@pytest.fixture(scope="module")
def base(config: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = Denoiser(config)
    torch.nn.init.normal_(model.unet.get_parameter("out.2.weight"), std=0.1)  # a fresh one is zero
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    export_base(config, model.unet, AutoencoderKL(config.vae), model.text, path)
    return path


def pictures(count: int) -> NDArray[np.uint8]:
    """Return grey squares on grey grounds (count, SIDE, SIDE, 3)."""
    made = np.full((count, SIDE, SIDE, 3), 60, np.uint8)
    for i, picture in enumerate(made):
        picture[10 + i : 40 + i, 14:44] = 200
    return made


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    np.save(folder / "images.npy", pictures(6))
    (folder / "captions.json").write_text('["a", "b", "c", "d", "e", "f"]')
    return folder


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[ControlBatch, torch.Tensor]]]:
    """Record every batch and its noised latents."""
    found: list[tuple[ControlBatch, torch.Tensor]] = []
    predict = training.control_prediction

    def record(unet, net, batch, x_t, t):  # type: ignore[no-untyped-def]
        found.append((batch, x_t))
        return predict(unet, net, batch, x_t, t)

    monkeypatch.setattr(training, "control_prediction", record)
    yield found


def losses(run: Path) -> list[str]:
    with (run / "loss.csv").open(newline="") as file:
        return [row[1] for row in csv.reader(file)]


@pytest.fixture(scope="module")
def trained(config: ModelConfig, base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("variants")
    loop = LoopConfig(output=folder, steps=2, learning_rate=1e-3, warmup=1)
    variants.train_variants(config, base, data, loop, CONTROL_VARIANTS, batch_size=2, crop=32)
    return folder


def test_all_learn_from_the_same_scenes_crops_words_times_and_noise(
    config: ModelConfig,
    base: Path,
    data: Path,
    tmp_path: Path,
    seen: list[tuple[ControlBatch, torch.Tensor]],
) -> None:
    loop = LoopConfig(output=tmp_path, steps=2, learning_rate=1e-3, warmup=1)
    variants.train_variants(config, base, data, loop, CONTROL_VARIANTS, batch_size=2, crop=32)
    assert len(seen) == 2 * len(CONTROL_VARIANTS)
    for i, (batch, x_t) in enumerate(seen):
        first, noised = seen[i % 2]
        assert torch.equal(x_t, noised)
        for name in ("x_0", "context", "hint"):
            assert torch.equal(getattr(batch, name), getattr(first, name))
    assert not torch.equal(seen[0][1], seen[1][1])
    # Before the first step none changes anything, so that all begin with the same loss.
    assert len({losses(tmp_path / name)[0] for name in CONTROL_VARIANTS}) == 1


def test_each_is_written_and_drawn_with(config: ModelConfig, base: Path, trained: Path) -> None:
    files = {name: variants.exported(trained, name) for name in CONTROL_VARIANTS}
    networks = load_base(config, base, device=torch.device("cpu"), dtype=torch.float32)
    pipe = variants_pipeline(config, networks, files)
    scenes = [(image, "a") for image in pictures(3)]
    found, hints = measure(pipe, scenes, steps=2)
    assert tuple(found) == (NONE, *CONTROL_VARIANTS) and len(hints) == 3
    assert sheet(found, hints).shape[1] == SIDE * (1 + len(CONTROL_VARIANTS))
    for name, measured in found.items():
        modes = MODES if name != NONE else MODES[:1]
        assert [len(measured.f1[mode]) for mode in modes] == [3] * len(modes)
        assert len(measured.seconds) == len(measured.shuffled) == 3
    drawn = {name: measured.pictures["prompt"][0] for name, measured in found.items()}
    assert all(not np.array_equal(drawn[NONE], drawn[name]) for name in CONTROL_VARIANTS)
    assert file_parameters(files["mlp"]) < file_parameters(files["lite"]) < file_parameters(files["full"])


def test_a_second_run_resumes_and_trains_nothing_again(
    config: ModelConfig,
    base: Path,
    data: Path,
    trained: Path,
    seen: list[tuple[ControlBatch, torch.Tensor]],
) -> None:
    path = variants.exported(trained, "lite")
    before = load_file(path)
    loop = LoopConfig(output=trained, steps=2, learning_rate=1e-3, warmup=1)
    variants.train_variants(config, base, data, loop, ("lite",), batch_size=2, crop=32)
    after = load_file(path)
    assert seen == [] and after.keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in after.items())


def test_every_mode_asks_for_what_its_name_says() -> None:
    base = tiny_request(controls=(), size=(SIDE, SIDE), prompt="", cfg_scale=9.0)
    hint = np.zeros((SIDE, SIDE), np.uint8)
    asked = requests(base, "a fox", "lite", hint, 7)
    assert tuple(asked) == MODES and {r.seed for r in asked.values()} == {7}
    assert [r.prompt for r in asked.values()] == ["a fox", "", ""]
    assert [r.guess_mode for r in asked.values()] == [False, False, True]
    assert all(r.controls[0].control == "lite" for r in asked.values())
    alone = requests(base, "a fox", NONE, hint, 7)
    assert list(alone) == ["prompt"] and alone["prompt"].controls == ()


def test_the_table_gives_means_errors_and_the_time_that_is_saved() -> None:
    def made(seconds: float, f1: float) -> Measured:
        values = {mode: [f1 - 0.1, f1 + 0.1] for mode in MODES}
        return Measured(1000, 0.5, [seconds] * 2, values, [0.1, 0.1])

    lines = table({"full": made(2.0, 0.5), "lite": made(1.5, 0.3)}).splitlines()
    assert lines[2].startswith("| full | 1,000 | 0.50 | 2.00 | 0% | 0.500 ± 0.100 |")
    assert lines[3].startswith("| lite | 1,000 | 0.50 | 1.50 | 25% | 0.300 ± 0.100 |")
    mean, error = mean_and_error([1.0, 2.0, 3.0, 4.0])
    assert (mean, error) == pytest.approx((2.5, np.sqrt(5 / 12)))


def test_training_steps_are_timed(config: ModelConfig, base: Path) -> None:
    unet = load_base(config, base, device=torch.device("cpu"), dtype=torch.float32).unet
    seconds = training_seconds(config, unet, ("full", "mlp"), batch=1, side=SIDE, rounds=1)
    assert 0.0 < seconds["mlp"] < seconds["full"]
    assert all(p.grad is None for p in unet.parameters())


def test_a_trunk_of_another_variant_is_refused_before_training(
    config: ModelConfig, base: Path, data: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.training.demo.load_denoiser", lambda *_: Denoiser(config))
    loop = LoopConfig(output=trained / "over", steps=1)
    with pytest.raises(CheckpointMismatch, match="holds a ControlNet of the variant 'lite': give a file of"):
        train_demo_control(
            with_variant(config, "precomputed"),
            data,
            trained,
            loop,
            control="canny",
            batch_size=1,
            output=trained / "out.safetensors",
            over=variants.exported(trained, "lite"),
        )
    assert not (trained / "over").exists()


def test_the_command_line_knows_the_variants() -> None:
    args = parser().parse_args(["control", "--control", "canny", "--variant", "precomputed"])
    assert args.variant == "precomputed"
    args = parser().parse_args(["variants", "--steps", "10", "--variants", "lite", "mlp"])
    assert (args.steps, args.variants) == (10, ["lite", "mlp"])
    with pytest.raises(SystemExit):
        parser().parse_args(["variants", "--variants", "huge"])


def test_a_control_over_a_variant_keeps_its_trunk(config: ModelConfig, data: Path) -> None:
    own = with_variant(config, "precomputed")
    net = training.control_class(own.control)(own.unet, own.control)
    kept = [name for name, _ in net.named_parameters() if not training.trained_over(net, name)]
    assert kept and all(name.startswith(("input_blocks.", "middle_block.", "emb")) for name in kept)
