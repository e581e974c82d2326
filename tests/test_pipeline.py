"""A picture depends on its request, on every field of it, and on nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from core.errors import NumericalError, SuiteError, WeightsMissing
from core.models.controlnet import ControlNet
from core.pipeline import ControlNetPipeline
from core.request import MAX_SEED, ControlUnit, Progress, Result
from core.sampling.samplers import SAMPLERS
from tests.tiny_model import hint, tiny_config, tiny_control, tiny_networks, tiny_pipeline
from tests.tiny_model import same_pictures as same
from tests.tiny_model import tiny_request as request

# What comes out


def test_a_request_gives_a_progress_a_step_and_then_the_result(pipe: ControlNetPipeline) -> None:
    asked = request(num_samples=2, seed=11)
    *progress, result = pipe.sample(asked)
    assert [(p.step, p.total) for p in progress if isinstance(p, Progress)] == [(1, 3), (2, 3), (3, 3)]
    assert all(isinstance(p, Progress) and p.seconds_per_step > 0 for p in progress)
    assert isinstance(result, Result)
    assert [image.shape for image in result.images] == [(64, 64, 3)] * 2
    assert all(image.dtype == np.uint8 and image.std() > 1 for image in result.images)
    assert result.request is asked and result.seeds == (11, 12) and result.model == "tiny"
    assert result.extra == {"device": "cpu", "dtype": "float32"}
    assert result.seconds > 0


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("parameterization", ["eps", "v"])
def test_every_sampler_draws_with_every_parameterization(sampler: str, parameterization: str) -> None:
    *progress, result = tiny_pipeline(parameterization).sample(request(sampler=sampler, steps=4))
    assert len(progress) == 4
    assert isinstance(result, Result) and result.images[0].std() > 1


def test_the_shape_is_the_hints(pipe: ControlNetPipeline) -> None:
    unit = ControlUnit("canny", hint(0, 64, 192))
    assert pipe(request(controls=(unit,))).images[0].shape == (64, 192, 3)


def test_no_control_draws_at_the_size_asked_for(pipe: ControlNetPipeline) -> None:
    assert pipe(request(controls=(), size=(128, 64))).images[0].shape == (128, 64, 3)


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "a blue tree"},
        {"negative_prompt": "sharp"},
        {"seed": 1},
        {"cfg_scale": 6.0},
        {"steps": 4},
        {"sampler": "unipc"},
        {"guess_mode": True},
        {"eta": 1.0},
        {"controls": (ControlUnit("canny", hint(5)),)},
        {"controls": (ControlUnit("depth", hint(0)),)},
        {"controls": (ControlUnit("canny", hint(0), strength=0.5),)},
        {"controls": (ControlUnit("canny", hint(0), end=0.5),)},
        {"controls": (ControlUnit("canny", hint(0)), ControlUnit("depth", hint(1)))},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_field_changes_the_picture(pipe: ControlNetPipeline, change: dict[str, Any]) -> None:
    assert not same(pipe(request()), pipe(request(**change)))


def test_the_same_request_gives_the_same_picture(pipe: ControlNetPipeline) -> None:
    assert same(pipe(request(sampler="euler_a")), pipe(request(sampler="euler_a")))


# Seeds


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_batch_of_three_equals_three_single_runs(pipe: ControlNetPipeline, sampler: str) -> None:
    """Noise exactly (see the tests of noise); pictures up to the order of sums: a level here and there."""
    asked = request(
        seed=MAX_SEED - 1, num_samples=3, sampler=sampler, eta=1.0, controls=(ControlUnit("canny", hint()),)
    )
    together = pipe(asked)
    assert together.seeds == (MAX_SEED - 1, MAX_SEED, 0)
    for image, seed in zip(together.images, together.seeds, strict=True):
        alone = pipe(replace(asked, seed=seed, num_samples=1)).images[0]
        off = np.abs(image.astype(int) - alone.astype(int))
        assert off.max() <= 1 and (off > 0).mean() < 0.01
    assert not np.array_equal(together.images[0], together.images[1])


# Controls that do nothing


@pytest.mark.parametrize(
    "unit",
    [
        ControlUnit("canny", hint(), strength=0.0),
        ControlUnit("canny", hint(), start=0.5, end=0.5),
        ControlUnit("canny", hint(), start=0.9),  # of three steps none begins so late
    ],
)
def test_a_control_that_never_acts_is_not_even_loaded(unit: ControlUnit) -> None:
    config = tiny_config()
    pipe = ControlNetPipeline(config, tiny_networks(config), _missing)
    assert same(pipe(request(controls=(unit,))), pipe(request(controls=(), size=(64, 64))))


def _missing(name: str) -> ControlNet:
    raise WeightsMissing(f"{name} is not here. Get it: python -m core.weights get {name}")


def test_what_does_not_change_over_the_steps_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tiny_pipeline()
    calls: dict[str, int] = {}

    def count(owner: object, name: str) -> None:
        original = getattr(owner, name)

        def counted(*args: object) -> object:
            calls[f"{type(owner).__name__}.{name}"] = calls.get(f"{type(owner).__name__}.{name}", 0) + 1
            return original(*args)

        monkeypatch.setattr(owner, name, counted)

    count(pipe.networks.text, "read")
    count(pipe.networks.unet, "project_context")
    net = pipe._cache.get(["canny"])["canny"]
    count(net, "embed_hint")
    count(net, "project_context")
    pipe(request(steps=5, num_samples=3))
    assert calls == {
        "TextEncoder.read": 1,
        "UNet.project_context": 1,
        "ControlNet.embed_hint": 1,
        "ControlNet.project_context": 1,
    }


# Missing and unknown


def test_an_unknown_control_is_refused_at_once_with_the_choices(pipe: ControlNetPipeline) -> None:
    with pytest.raises(ValueError, match="control is 'cany': Tiny test model has canny, depth, seg"):
        pipe.sample(request(controls=(ControlUnit("cany", hint()),)))


def test_a_missing_control_says_how_to_get_it_and_leaves_the_pipeline_usable() -> None:
    config = tiny_config()

    def load(name: str) -> ControlNet:
        return tiny_control(config, name) if name == "canny" else _missing(name)

    def locate(name: str) -> None:
        if name != "canny":
            _missing(name)

    pipe = ControlNetPipeline(config, tiny_networks(config), load, locate_control=locate)
    assert pipe.available_controls() == ("canny",)
    assert pipe.explain_missing("canny") is None
    text = pipe.explain_missing("depth")
    assert text is not None and text.endswith("python -m core.weights get depth")
    with pytest.raises(ValueError, match="control is 'pose'"):
        pipe.explain_missing("pose")
    with pytest.raises(WeightsMissing, match="get depth"):
        pipe(request(controls=(ControlUnit("depth", hint()),)))
    assert pipe(request()).images


def test_the_models_facts_are_attributes(pipe: ControlNetPipeline) -> None:
    assert (pipe.name, pipe.title, pipe.resolution) == ("tiny", "Tiny test model", 64)
    assert pipe.controls == ("canny", "depth", "seg") == pipe.available_controls()
    assert pipe.device == torch.device("cpu") and pipe.dtype == torch.float32


# Errors in the middle


def test_latents_that_turn_nan_are_reported_with_the_step() -> None:
    pipe = tiny_pipeline()
    calls = 0

    def spoil(module: torch.nn.Module, args: object, out: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return out * float("nan") if calls == 2 else out

    handle = pipe.networks.unet.register_forward_hook(spoil)
    with pytest.raises(NumericalError, match="after step 2 of 3, computed in float32: .*verify"):
        pipe(request())
    handle.remove()
    assert pipe(request()).images


def test_running_out_of_memory_says_what_to_do() -> None:
    pipe = tiny_pipeline()

    def exhaust(module: torch.nn.Module, args: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    handle = pipe.networks.unet.register_forward_pre_hook(exhaust)
    with pytest.raises(SuiteError, match="fewer or smaller pictures, or start with --low-vram"):
        pipe(request())
    handle.remove()
    assert pipe(request()).images


def test_a_long_prompt_and_a_weighted_one_draw_other_pictures(pipe: ControlNetPipeline) -> None:
    plain = pipe(request())
    for prompt in ("a (red:1.6) car", "a red car" + ", by the sea" * 30, "a red BREAK car"):
        assert not same(pipe(request(prompt=prompt)), plain)
    long_negative = pipe(request(negative_prompt="blurry, " * 60))
    assert not same(long_negative, plain)
