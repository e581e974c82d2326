"""Recorded steps give, bit for bit, what computed ones give, whatever comes before, between and after."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from core.images import hint_to_tensor
from core.models.controlnet import ControlNet
from core.models.unet import UNet
from core.pipeline import ControlNetPipeline
from core.request import ControlUnit, Request, Result
from core.runtime.lanes import Lanes, one_by_one
from core.runtime.recording import Compute
from core.sampling.graphs import StepGraphs, choose_predict
from core.sampling.guidance import GuidedDenoiser, prepare_control, text_rows
from core.sampling.schedule import Schedule
from core.sampling.step import Predict, StepInputs, predict
from tests.tape import Tape
from tests.tiny_model import (
    hint,
    latents,
    same_pictures,
    tiny_config,
    tiny_control,
    tiny_networks,
    tiny_pipeline,
    tiny_request,
)

CONFIG = tiny_config()
CPU = torch.device("cpu")


class Spy:
    """Keeps what the networks gave at every step."""

    def __init__(self, inner: Predict) -> None:
        self.inner, self.seen = inner, list[Tensor]()

    def __call__(self, inputs: StepInputs, x: Tensor, time: Tensor) -> Tensor:
        self.seen.append(self.inner(inputs, x, time))
        return self.seen[-1]


def spied(inner: Predict) -> tuple[ControlNetPipeline, Spy]:
    pipe, spy = tiny_pipeline(), Spy(inner)
    pipe._draw._walk._predict = spy
    return pipe, spy


@pytest.fixture(scope="module")
def plain() -> tuple[ControlNetPipeline, Spy]:
    return spied(predict)


@pytest.fixture(scope="module")
def recorded() -> tuple[ControlNetPipeline, Spy]:
    return spied(StepGraphs(Tape(), one_by_one))


def unit(name: str, seed: int, **changes: Any) -> ControlUnit:
    return ControlUnit(name, hint(seed), **changes)


TWO = (unit("canny", 1), unit("depth", 2, strength=0.4))
REQUESTS: dict[str, Request] = {
    "plain": tiny_request(),
    "another picture and seed": tiny_request(5),
    "strength": tiny_request(controls=(unit("canny", 0, strength=0.6),)),
    "another strength": tiny_request(controls=(unit("canny", 0, strength=1.7),)),
    "guess mode": tiny_request(guess_mode=True),
    "no guidance": tiny_request(cfg_scale=1.0),
    "two pictures": tiny_request(num_samples=2),
    "two pictures in guess mode": tiny_request(num_samples=2, guess_mode=True),
    "two controls": tiny_request(controls=TWO),
    "two controls the other way round": tiny_request(controls=TWO[::-1]),
    "one control twice": tiny_request(controls=(unit("canny", 1), unit("canny", 2))),
    "part of the steps": tiny_request(controls=(unit("canny", 0, start=0.3, end=0.7),), steps=4),
    "no control": tiny_request(controls=(), size=(64, 64)),
    "wide": tiny_request(controls=(ControlUnit("canny", hint(0, 64, 128)),)),
    "long prompt": tiny_request(prompt="a red car " * 40),
    "fresh noise": tiny_request(sampler="euler_a"),
    "merged tokens": tiny_request(token_merging_ratio=0.5),
    "fewer merged tokens": tiny_request(token_merging_ratio=0.25),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_every_step_of_every_request_is_the_same(
    name: str, plain: tuple[ControlNetPipeline, Spy], recorded: tuple[ControlNetPipeline, Spy]
) -> None:
    wanted, made = list[Tensor](), list[Tensor]()
    for (pipe, spy), kept in ((plain, wanted), (recorded, made)):
        spy.seen.clear()
        result = pipe(REQUESTS[name])
        kept += [*spy.seen, *(torch.from_numpy(image) for image in result.images)]
    assert len(made) == len(wanted) > REQUESTS[name].steps
    assert all(torch.equal(a, b) for a, b in zip(made, wanted, strict=True))


def test_a_cancelled_request_leaves_the_next_one_as_it_would_have_been(
    plain: tuple[ControlNetPipeline, Spy], recorded: tuple[ControlNetPipeline, Spy]
) -> None:
    updates = recorded[0].sample(tiny_request(3, prompt="a green house"))
    next(updates), next(updates)
    updates.close()  # type: ignore[attr-defined]
    assert same_pictures(recorded[0](tiny_request()), plain[0](tiny_request()))


def test_requests_drawn_together_are_the_same(
    plain: tuple[ControlNetPipeline, Spy], recorded: tuple[ControlNetPipeline, Spy]
) -> None:
    together = [tiny_request(cfg_scale=2.0), tiny_request(1, controls=(unit("canny", 1, strength=0.3),))]
    made, wanted = (
        [update for _, update in pipe.sample_together(together) if isinstance(update, Result)]
        for pipe, _ in (recorded, plain)
    )
    assert len(made) == 2 and all(same_pictures(a, b) for a, b in zip(made, wanted, strict=True))


@pytest.fixture
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture
def unet() -> UNet:
    return tiny_networks(CONFIG).unet


@pytest.fixture
def net() -> ControlNet:
    return tiny_control(CONFIG, "canny")


def denoiser(
    unet: UNet, net: ControlNet, compute: Predict, seed: int = 0, strength: float = 1.0
) -> GuidedDenoiser:
    context = torch.randn(2, 77, 32, generator=torch.Generator().manual_seed(seed))
    picture = hint(seed)
    control = prepare_control(
        net, ControlUnit("canny", picture, strength), hint_to_tensor(picture), context, 1
    )
    kv = text_rows(unet, context, 1)
    return GuidedDenoiser(unet, Schedule(CONFIG.schedule), kv, [control], 7.0, False, 10, predict=compute)


@pytest.mark.usefixtures("inference")
def test_requests_that_take_turns_share_a_recording_and_nothing_else(unet: UNet, net: ControlNet) -> None:
    tape = Tape()
    replayed = StepGraphs(tape, one_by_one)
    pairs = [
        (denoiser(unet, net, replayed, seed, strength), denoiser(unet, net, predict, seed, strength))
        for seed, strength in ((0, 0.5), (1, 0.5), (2, 1.3))
    ]
    for step in range(3):
        for i, (ours, plain) in enumerate(pairs):
            x, t = latents(1, 10 * step + i), 700.5 - 100 * step - i
            assert torch.equal(ours(x, t, step), plain(x, t, step))
    assert (tape.recorded, tape.replayed) == (1, 9)


@pytest.mark.usefixtures("inference")
def test_a_result_is_not_written_over_by_the_next_step(unet: UNet, net: ControlNet) -> None:
    inputs = denoiser(unet, net, predict).inputs(1, 0)
    replayed, time = StepGraphs(Tape(), one_by_one), torch.full((2,), 400.0)
    first = replayed(inputs, torch.ones(2, 4, 8, 8), time)
    before = first.clone()
    assert not torch.equal(replayed(inputs, torch.zeros(2, 4, 8, 8), time), before)
    assert torch.equal(first, before)


@pytest.mark.usefixtures("inference")
def test_each_shape_has_its_own_recording_and_the_oldest_goes_first(unet: UNet, net: ControlNet) -> None:
    tape = Tape()
    replayed = StepGraphs(tape, one_by_one, capacity=2)
    inputs, time = denoiser(unet, net, predict).inputs(1, 0), torch.full((2,), 400.0)
    bare = StepInputs(inputs.unet, inputs.kv, ())
    made = []
    for side in (4, 8, 4, 12, 4, 8):
        x = torch.randn(2, 4, side, side, generator=torch.Generator().manual_seed(side))
        assert torch.equal(replayed(bare, x, time), predict(bare, x, time))
        made.append(tape.recorded)
    assert made == [1, 2, 2, 3, 3, 4]  # 8 gave way to 12: 4 had been used since
    assert len(replayed) == 2


@pytest.mark.usefixtures("inference")
def test_weights_changed_in_place_count_and_moved_ones_are_recorded_anew(unet: UNet, net: ControlNet) -> None:
    tape = Tape()
    replayed = StepGraphs(tape, one_by_one)
    x, weight = latents(1), unet.get_parameter("out.2.weight")
    before = denoiser(unet, net, replayed)(x, 300, 0)
    weight.mul_(1.5)  # as LoRAs do
    ours, plain = denoiser(unet, net, replayed)(x, 300, 0), denoiser(unet, net, predict)(x, 300, 0)
    assert torch.equal(ours, plain) and not torch.equal(ours, before) and tape.recorded == 1
    weight.data = weight.data.clone().mul_(2.0)
    ours, plain = denoiser(unet, net, replayed)(x, 300, 0), denoiser(unet, net, predict)(x, 300, 0)
    assert torch.equal(ours, plain) and tape.recorded == 2


class Held:
    """A recorder that keeps none of the networks alive, as a CUDA graph does not."""

    def __call__(self, compute: Compute) -> Compute:
        made = compute()
        return lambda: made


@pytest.mark.usefixtures("inference")
def test_neither_requests_nor_networks_are_kept_alive(unet: UNet) -> None:
    replayed = StepGraphs(Held(), one_by_one)
    first = tiny_control(CONFIG, "canny")
    model = denoiser(unet, first, replayed)
    model(latents(1), 300, 0)
    traces: list[weakref.ref[Any]] = [
        weakref.ref(first),
        weakref.ref(model.inputs(1, 0)),
        weakref.ref(model.controls[0].kv[0][0]),
    ]
    del first, model
    gc.collect()
    assert [trace() for trace in traces] == [None] * 3 and len(replayed) == 1
    denoiser(unet, tiny_control(CONFIG, "depth"), replayed)(latents(1), 300, 0)
    assert len(replayed) == 1  # that of the network that is no more has gone


class Refusing:
    """A recorder for which nothing can be recorded."""

    def __init__(self, error: RuntimeError) -> None:
        self.error, self.asked = error, 0

    def __call__(self, compute: Compute) -> Compute:
        self.asked += 1
        raise self.error


def test_what_cannot_be_recorded_is_computed_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    refusing = Refusing(RuntimeError("operation not permitted"))
    pipe, _ = spied(StepGraphs(refusing, one_by_one))
    with caplog.at_level(logging.WARNING):
        made = [pipe(tiny_request(seed)) for seed in (0, 1)]
    assert refusing.asked == 1 and len(caplog.records) == 1
    assert "runs without a CUDA graph: operation not permitted" in caplog.text
    assert all(same_pictures(result, tiny_pipeline()(tiny_request(i))) for i, result in enumerate(made))


@pytest.mark.usefixtures("inference")
def test_a_step_that_reads_a_value_back_cannot_be_recorded(
    unet: UNet, net: ControlNet, caplog: pytest.LogCaptureFixture
) -> None:
    def check(module: Any, args: Any) -> None:
        assert bool(args[0].isfinite().all())

    unet.register_forward_pre_hook(check)
    x, replayed = latents(1), StepGraphs(Tape(), one_by_one)
    assert torch.equal(denoiser(unet, net, replayed)(x, 300, 0), denoiser(unet, net, predict)(x, 300, 0))
    assert len(replayed) == 0 and "not permitted when stream is capturing" in caplog.text


@pytest.mark.usefixtures("inference")
def test_when_memory_runs_out_while_recording_the_others_are_given_up(unet: UNet, net: ControlNet) -> None:
    tape = Tape()
    replayed = StepGraphs(tape, one_by_one)
    denoiser(unet, net, replayed)(latents(1), 300, 0)
    assert len(replayed) == 1
    replayed._record = Refusing(torch.OutOfMemoryError("full"))
    denoiser(unet, net, replayed, strength=0.5)(latents(1), 300, 0)
    assert len(replayed) == 0


def test_when_memory_runs_out_in_a_request_the_recordings_are_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipe = tiny_pipeline()
    replayed = pipe._predict = pipe._draw._walk._predict = StepGraphs(Tape(), one_by_one)
    pipe(tiny_request())
    assert len(replayed) == 1

    def full(latents: Tensor) -> Any:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(pipe._draw._coder, "decode", full)
    with pytest.raises(Exception, match="ran out of memory"):
        pipe(tiny_request())
    assert len(replayed) == 0


def test_cuda_devices_replay_unless_networks_come_and_go() -> None:
    cuda = torch.device("cuda")
    assert isinstance(choose_predict(cuda), StepGraphs)
    assert isinstance(choose_predict(cuda, graphs=True), StepGraphs)
    for device, options in ((CPU, {}), (CPU, {"graphs": False}), (cuda, {"graphs": False})):
        assert choose_predict(device, **options) is predict
    assert choose_predict(cuda, low_vram=True) is predict
    with pytest.raises(ValueError, match="graphs is True, but the device is cpu"):
        choose_predict(CPU, graphs=True)
    with pytest.raises(ValueError, match="graphs is True, but low_vram moves the networks"):
        choose_predict(cuda, graphs=True, low_vram=True)


class Streams:
    """Stands in for torch.cuda's streams and events, and writes down who waits for what."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[str] = []
        self.current = Stream(self, "main")
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream(self, f"lane {len(self.made)}"))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.current)
        monkeypatch.setattr(torch.cuda, "stream", self.on)
        self.made: list[Stream] = []

    @contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before


class Stream:
    def __init__(self, streams: Streams, name: str) -> None:
        self.streams, self.name = streams, name
        if name != "main":
            streams.made.append(self)

    def record_event(self) -> str:
        self.streams.events.append(f"{self.name} marks")
        return self.name

    def wait_event(self, event: str) -> None:
        self.streams.events.append(f"{self.name} waits for {event}")


def test_lanes_begin_after_the_current_stream_and_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams(monkeypatch)

    def task(name: str) -> Any:
        def compute() -> str:
            streams.events.append(f"{name} on {streams.current.name}")
            return name

        return compute

    fork = Lanes(torch.device("cuda"))
    join = fork([task("a"), task("b")])
    streams.events.append("encoder")
    assert join() == ["a", "b"]
    assert streams.events == [
        *("main marks", "lane 0 waits for main", "a on lane 0", "lane 1 waits for main", "b on lane 1"),
        *("lane 0 marks", "lane 1 marks", "encoder", "main waits for lane 0", "main waits for lane 1"),
    ]
    fork([task("c")])()
    assert len(streams.made) == 2  # kept


@pytest.mark.usefixtures("inference")
def test_the_encoder_computes_between_fork_and_join_and_sums_keep_their_order(
    unet: UNet, net: ControlNet
) -> None:
    events: list[str] = []

    def fork(tasks: Any) -> Any:
        events.append("fork")
        results = [task() for task in reversed(tasks)][::-1]  # whoever is done first

        def join() -> Any:
            events.append("join")
            return results

        return join

    encode = unet.encode
    unet.encode = lambda *args, **kwargs: events.append("encode") or encode(*args, **kwargs)  # type: ignore
    model = denoiser(unet, net, predict)
    other = prepare_control(
        net, unit("canny", 4, strength=0.3), hint_to_tensor(hint(4)), torch.ones(2, 77, 32), 1
    )
    inputs = GuidedDenoiser(
        unet, model.schedule, model.context_kv, [*model.controls, other, *model.controls], 7.0, False, 10
    ).inputs(1, 0)
    x, time = torch.randn(2, 4, 8, 8), torch.full((2,), 400.0)
    made = predict(inputs, x, time, fork)
    assert events == ["fork", "encode", "join"]
    assert torch.equal(made, predict(inputs, x, time))
