"""One pipeline, many requests: pictures depend on the request alone, and nothing of it stays behind."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from core.errors import NumericalError, SuiteError, WeightsMissing
from core.models.controlnet import ControlNet
from core.pipeline import ControlNetPipeline
from core.request import MAX_SEED, ControlUnit, Progress, Request, Result
from core.sampling.samplers import SAMPLERS
from tests.tiny_model import hint, tiny_config, tiny_control, tiny_networks, tiny_pipeline


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from threads, and waiting for each other costs much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pipe() -> ControlNetPipeline:
    return tiny_pipeline()


def request(seed: int = 0, **changes: Any) -> Request:
    base = Request(
        "a red car", (ControlUnit("canny", hint(seed)),), "blurry", steps=3, cfg_scale=3.0, seed=seed
    )
    return replace(base, **changes)


def same(a: Result, b: Result) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a.images, b.images, strict=True))


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

    count(pipe.networks.text, "encode")
    count(pipe.networks.unet, "project_context")
    net = pipe._cache.get(["canny"])["canny"]
    count(net, "embed_hint")
    count(net, "project_context")
    pipe(request(steps=5, num_samples=3))
    assert calls == {
        "TextEncoder.encode": 1,
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


# Threads, cancelling, gradient modes


def test_requests_at_once_give_what_they_give_one_by_one(pipe: ControlNetPipeline) -> None:
    asked = [
        request(i, sampler=sampler, guess_mode=bool(i % 2), num_samples=1 + i % 2)
        for i, sampler in enumerate([*SAMPLERS, *SAMPLERS])
    ]
    serial = [pipe(r) for r in asked]
    with ThreadPoolExecutor(len(asked)) as pool:
        parallel = list(pool.map(pipe, asked))
    assert all(same(a, b) for a, b in zip(serial, parallel, strict=True))
    assert [b.request for b in parallel] == asked


def test_a_generator_may_be_resumed_by_other_threads(pipe: ControlNetPipeline) -> None:
    wanted = pipe(request())
    updates = pipe.sample(request())
    received: list[Progress | Result] = []
    for _ in range(4):
        worker = threading.Thread(target=lambda: received.append(next(updates)))
        worker.start()
        worker.join()
    last = received[-1]
    assert isinstance(last, Result) and same(last, wanted)
    assert same(pipe(request()), wanted)  # the lock is free again


def test_closing_cancels_and_frees_the_model(pipe: ControlNetPipeline) -> None:
    wanted = pipe(request())
    updates = pipe.sample(request(steps=1000))
    next(updates)
    assert pipe._lock.locked()
    close = threading.Thread(target=updates.close)  # type: ignore[attr-defined]
    close.start()
    close.join()
    assert not pipe._lock.locked()
    assert same(pipe(request()), wanted)


def test_dropping_a_generator_frees_the_model(pipe: ControlNetPipeline) -> None:
    updates = pipe.sample(request())
    next(updates)
    del updates
    gc.collect()
    assert not pipe._lock.locked()


def test_a_generator_that_was_never_started_holds_nothing(pipe: ControlNetPipeline) -> None:
    waiting = pipe.sample(request())
    assert pipe(request()).images
    del waiting


def test_the_model_is_free_once_the_result_is_there(pipe: ControlNetPipeline) -> None:
    updates = pipe.sample(request())
    while not isinstance(next(updates), Result):
        assert pipe._lock.locked()
    assert not pipe._lock.locked()


@pytest.mark.parametrize("cancel", [False, True])
def test_nothing_of_a_request_stays_in_memory(pipe: ControlNetPipeline, cancel: bool) -> None:
    pipe(request())  # what is kept on purpose, the ControlNet and the preview, is there now
    picture = hint(3)
    traces: list[weakref.ref[object]] = [weakref.ref(picture)]
    updates = pipe.sample(request(controls=(ControlUnit("canny", picture),)))
    handle = pipe.networks.unet.register_forward_hook(
        lambda module, args, out: traces.extend([weakref.ref(out), weakref.ref(args[0])])
    )
    next(updates)
    handle.remove()
    if cancel:
        updates.close()  # type: ignore[attr-defined]
    else:
        assert isinstance(list(updates)[-1], Result)
    del picture, updates
    gc.collect()
    assert len(traces) == 3
    assert all(trace() is None for trace in traces)


@pytest.mark.parametrize("grad", [True, False])
def test_the_callers_gradient_mode_is_never_touched(pipe: ControlNetPipeline, grad: bool) -> None:
    def check() -> None:
        assert torch.is_grad_enabled() is grad
        assert not torch.is_inference_mode_enabled()

    with torch.set_grad_enabled(grad):
        updates = pipe.sample(request())
        check()
        for _ in updates:
            check()
        check()
        cancelled = pipe.sample(request())
        next(cancelled)
        check()
        cancelled.close()  # type: ignore[attr-defined]
        check()
        failing = pipe.sample(request())
        next(failing)
        with pytest.raises(KeyboardInterrupt):
            failing.throw(KeyboardInterrupt())  # type: ignore[attr-defined]
        check()
    assert not pipe._lock.locked()


def test_gradients_can_be_used_while_a_request_is_suspended(pipe: ControlNetPipeline) -> None:
    updates = pipe.sample(request())
    next(updates)
    x = torch.ones(3, requires_grad=True)
    (x * x).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [2.0] * 3
    updates.close()  # type: ignore[attr-defined]


def test_weights_loaded_while_sampling_are_ordinary_tensors() -> None:
    pipe = tiny_pipeline()
    pipe(request())
    net = pipe._cache.get(["canny"])["canny"]
    assert not any(p.is_inference() for p in net.parameters())


# Memory placement


class Recorder:
    """Writes down which network is moved where, and when the networks compute."""

    def __init__(self, pipe: ControlNetPipeline) -> None:
        self.events: list[str] = []
        self.here: set[str] = set()
        self.names = {
            id(n): type(n).__name__ for n in (pipe.networks.unet, pipe.networks.vae, pipe.networks.text)
        }
        self.device = torch.device("meta")  # stands for a device that is not the resting one
        pipe._placement.device = self.device
        pipe._placement._move = self.move

    def move(self, module: torch.nn.Module, device: torch.device) -> None:
        name = type(module).__name__
        (self.here.add if device == self.device else self.here.discard)(name)
        self.events.append(f"{name} {'in' if device == self.device else 'out'}")


@pytest.fixture
def recorded() -> Iterator[tuple[ControlNetPipeline, Recorder]]:
    pipe = tiny_pipeline(low_vram=True)
    recorder = Recorder(pipe)
    yield pipe, recorder


def test_low_vram_keeps_only_the_network_in_use_on_the_device(
    recorded: tuple[ControlNetPipeline, Recorder],
) -> None:
    pipe, recorder = recorded
    used: list[tuple[str, frozenset[str]]] = []
    for module in (pipe.networks.unet, pipe.networks.text):
        module.register_forward_pre_hook(
            lambda m, args: used.append((type(m).__name__, frozenset(recorder.here)))
        )
    pipe.networks.vae.decoder.register_forward_pre_hook(
        lambda m, args: used.append(("VAE", frozenset(recorder.here)))
    )
    wanted = tiny_pipeline()(request())
    assert same(pipe(request()), wanted)
    assert set(used) == {
        ("TextEncoder", frozenset({"TextEncoder"})),
        ("UNet", frozenset({"UNet", "ControlNet"})),
        ("VAE", frozenset({"AutoencoderKL"})),
    }
    assert recorder.here == set()
    assert recorder.events.count("UNet in") == 1  # for the request, not for each step


def test_low_vram_brings_everything_back_after_a_cancel(
    recorded: tuple[ControlNetPipeline, Recorder],
) -> None:
    pipe, recorder = recorded
    updates = pipe.sample(request())
    next(updates)
    assert recorder.here == {"UNet", "ControlNet"}
    updates.close()  # type: ignore[attr-defined]
    assert recorder.here == set()


def test_without_low_vram_nothing_is_moved() -> None:
    pipe = tiny_pipeline()
    moved: list[object] = []
    pipe._placement._move = lambda module, device: moved.append(module)
    pipe(request())
    assert moved == []


def test_pictures_are_decoded_one_at_a_time() -> None:
    pipe = tiny_pipeline()
    rows: list[int] = []
    pipe.networks.vae.decoder.register_forward_pre_hook(lambda m, args: rows.append(len(args[0])))
    pipe(request(num_samples=4))
    assert rows == [1] * 4


def test_control_nets_are_swapped_and_reused() -> None:
    config, loaded = tiny_config(), list[str]()

    def load(name: str) -> ControlNet:
        loaded.append(name)
        return tiny_control(config, name)

    pipe = ControlNetPipeline(config, tiny_networks(config), load, max_controls=2)
    unet = pipe.networks.unet
    for name in ("canny", "depth", "canny", "seg", "canny", "depth"):
        pipe(request(controls=(ControlUnit(name, hint()),)))
    assert loaded == ["canny", "depth", "seg", "depth"]
    assert pipe.networks.unet is unet
