"""Requests that wait become one batch; nobody waits longer, and nobody is touched by another's fate."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from core.errors import NumericalError, SuiteError, WeightsMissing
from core.pipeline import ControlNetPipeline
from core.request import ControlUnit, Progress, Request, Result
from core.runtime.batcher import Batcher, default_max_batch
from tests.gated import PATIENCE, Gated, wait_for
from tests.tiny_model import hint, tiny_pipeline
from tests.tiny_model import tiny_request as request


class Caller:
    """Somebody who asks for a picture in a thread of their own."""

    def __init__(self, batcher: Batcher, asked: Request) -> None:
        self.updates: list[Progress | Result] = []
        self.error: Exception | None = None
        self.generator = batcher.sample(asked)
        self.first = threading.Event()
        self.gone = threading.Event()
        self.thread = threading.Thread(target=self._read)
        self.thread.start()

    def _read(self) -> None:
        try:
            for update in self.generator:
                self.updates.append(update)
                self.first.set()
                if self.gone.is_set():
                    self.generator.close()  # type: ignore[attr-defined]
        except Exception as error:
            self.error = error

    def result(self) -> Result:
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()
        if self.error is not None:
            raise self.error
        last = self.updates[-1]
        assert isinstance(last, Result)
        return last


def busy(batcher: Batcher, pipe: Gated) -> Caller:
    """Have the model busy with a request of its own kind."""
    first = Caller(batcher, request(99, controls=(), size=(64, 64)))
    assert pipe.started.acquire(timeout=PATIENCE)
    return first


def same(a: Result, b: Result) -> bool:
    off = [np.abs(x.astype(int) - y.astype(int)) for x, y in zip(a.images, b.images, strict=True)]
    return all(o.max() <= 1 and (o > 0).mean() < 0.01 for o in off)


@pytest.fixture
def gated(pipe: ControlNetPipeline) -> Gated:
    return Gated(pipe)


def ask(batcher: Batcher, requests: Sequence[Request]) -> list[Caller]:
    """Hand in requests in this order, while the model is busy."""
    callers = []
    for i, asked in enumerate(requests):
        callers.append(Caller(batcher, asked))
        wait_for(batcher, i + 1)
    return callers


# Who is drawn with whom


def test_those_who_wait_are_drawn_as_one_batch_and_each_gets_its_own_pictures(
    pipe: ControlNetPipeline, gated: Gated
) -> None:
    batcher = Batcher(gated, 4)
    asked = [
        request(1, prompt="a tree"),
        request(2, negative_prompt="", cfg_scale=7.0),
        request(3, num_samples=2),
        request(4),
    ]
    alone = [pipe(r) for r in asked]
    first = busy(batcher, gated)
    callers = ask(batcher, asked)
    gated.open()
    first.result()
    results = [caller.result() for caller in callers]
    assert gated.batches == [[99], [1, 2, 3], [4]]  # 1 + 1 + 2 pictures are four
    for result, wanted, r in zip(results, alone, asked, strict=True):
        assert same(result, wanted) and result.request is r
        assert (result.seeds, result.extra) == (wanted.seeds, wanted.extra)


def test_one_alone_begins_at_once_and_hears_nothing_of_waiting(pipe: ControlNetPipeline) -> None:
    updates = list(Batcher(pipe, 4).sample(request(5)))
    steps = [u.step for u in updates if isinstance(u, Progress)]
    assert steps == [1, 2, 3] and isinstance(updates[-1], Result)
    assert np.array_equal(updates[-1].images[0], pipe(request(5)).images[0])  # to the bit


def test_the_oldest_goes_first_and_takes_along_what_fits(gated: Gated) -> None:
    batcher = Batcher(gated, 3)
    other = {"sampler": "unipc"}
    first = busy(batcher, gated)
    kinds: list[dict[str, Any]] = [other, {}, {"num_samples": 3}, other, {}, {}]
    callers = ask(batcher, [request(i, **kind) for i, kind in enumerate(kinds)])
    gated.open()
    for caller in (first, *callers):
        caller.result()
    assert gated.batches == [[99], [0, 3], [1, 4, 5], [2]]


def test_a_request_for_more_than_fits_is_drawn_by_itself(gated: Gated) -> None:
    batcher = Batcher(gated, 2)
    first = busy(batcher, gated)
    callers = ask(batcher, [request(1, num_samples=3), request(2)])
    gated.open()
    for caller in (first, *callers):
        caller.result()
    assert gated.batches == [[99], [1], [2]]


def test_whatever_many_threads_ask_at_once_comes_out_right(pipe: ControlNetPipeline) -> None:
    batcher = Batcher(pipe, 4)
    asked = [request(i, sampler=("ddim", "euler_a")[i % 2], prompt=f"{i} cars") for i in range(12)]

    def last(r: Request) -> Result:
        *_, result = batcher.sample(r)
        assert isinstance(result, Result)
        return result

    with ThreadPoolExecutor(12) as pool:
        results = list(pool.map(last, asked))
    for result, r in zip(results, asked, strict=True):
        assert result.request is r and same(result, pipe(r))


def test_who_waits_hears_how_many_come_first(gated: Gated, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.runtime.batcher.WAITING_SECONDS", 0.02)
    batcher = Batcher(gated, 4)
    first = busy(batcher, gated)
    callers = ask(batcher, [request(1), request(2)])
    assert all(caller.first.wait(PATIENCE) for caller in callers)
    gated.open()
    first.result()
    for ahead, caller in enumerate(callers, 1):
        caller.result()
        told = caller.updates[0]
        assert isinstance(told, Progress) and (told.step, told.total, told.ahead) == (0, 3, ahead)
        steps = [u.step for u in caller.updates if isinstance(u, Progress) and u.step]
        assert steps == [1, 2, 3]


# Cancelling


def test_who_cancels_while_others_are_drawn_takes_nothing_from_them(
    pipe: ControlNetPipeline, gated: Gated
) -> None:
    batcher = Batcher(gated, 4)
    first = busy(batcher, gated)
    callers = ask(batcher, [request(i) for i in range(3)])
    gated.steps.release(4)  # the first's three steps, and one of the batch
    first.result()
    assert callers[1].first.wait(PATIENCE)
    callers[1].gone.set()
    gated.open()
    assert same(callers[0].result(), pipe(request(0))) and same(callers[2].result(), pipe(request(2)))
    callers[1].thread.join(PATIENCE)
    assert not any(isinstance(update, Result) for update in callers[1].updates)


def test_when_all_of_a_batch_are_gone_it_is_given_up(gated: Gated) -> None:
    batcher = Batcher(gated, 4)
    updates = batcher.sample(request(1, steps=1000))
    gated.open()
    next(updates)
    updates.close()  # type: ignore[attr-defined]
    *_, result = batcher.sample(request(2))
    assert isinstance(result, Result) and gated.batches == [[1], [2]]
    assert not gated.pipe._lock.locked()


def test_who_goes_while_waiting_is_not_drawn(gated: Gated, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.runtime.batcher.WAITING_SECONDS", 0.02)
    batcher = Batcher(gated, 4)
    first = busy(batcher, gated)
    callers = ask(batcher, [request(1), request(2)])
    callers[0].gone.set()
    wait_for(batcher, 1)
    gated.open()
    first.result()
    callers[1].result()
    assert gated.batches == [[99], [2]]


def test_a_generator_that_is_not_read_on_holds_up_nobody_and_stays_small(pipe: ControlNetPipeline) -> None:
    batcher = Batcher(pipe, 4)
    lazy = batcher.sample(request(1, steps=6))
    next(lazy)
    *_, result = batcher.sample(request(2))
    assert isinstance(result, Result)
    rest = list(lazy)
    assert [u.step for u in rest if isinstance(u, Progress)] == [2, 3, 4, 5, 6]
    assert sum(isinstance(u, Progress) and u.preview is not None for u in rest) <= 1
    assert isinstance(rest[-1], Result) and same(rest[-1], pipe(request(1, steps=6)))


def test_a_generator_that_was_never_started_asks_for_nothing(gated: Gated) -> None:
    batcher = Batcher(gated, 4)
    waiting = batcher.sample(request())
    assert batcher._waiting == [] and batcher._worker is None
    del waiting


def test_nothing_of_a_request_stays_in_memory(pipe: ControlNetPipeline) -> None:
    batcher = Batcher(pipe, 4)
    picture = hint(3)
    trace = weakref.ref(picture)
    *_, result = batcher.sample(request(controls=(ControlUnit("canny", picture),)))
    worker = batcher._worker
    if worker is not None:
        worker.join(PATIENCE)
    del picture, result, _
    gc.collect()
    assert trace() is None and batcher._worker is None


# Errors


def test_an_error_of_one_request_is_its_own(pipe: ControlNetPipeline, gated: Gated) -> None:
    batcher = Batcher(gated, 4)
    first = busy(batcher, gated)
    callers = ask(batcher, [request(1), request(2)])
    too_long = Caller(batcher, request(3, prompt="a BREAK " * 20))
    too_long.thread.join(PATIENCE)
    with pytest.raises(ValueError, match="shorten it"):
        too_long.result()
    with pytest.raises(ValueError, match="control is 'cany'"):
        batcher.sample(request(controls=(ControlUnit("cany", hint()),)))

    def spoil(module: torch.nn.Module, args: tuple[torch.Tensor], out: torch.Tensor) -> torch.Tensor:
        if len(out) == 4:
            out[0] = float("nan")
        return out

    handle = pipe.networks.unet.register_forward_hook(spoil)
    gated.open()
    first.result()
    with pytest.raises(NumericalError, match="after step 1"):
        callers[0].result()
    assert same(callers[1].result(), pipe(request(2)))
    handle.remove()
    assert gated.batches == [[99], [1, 2]]


def test_weights_that_are_missing_are_told_to_all_who_want_them() -> None:
    pipe = tiny_pipeline()

    def missing(name: str) -> Any:
        raise WeightsMissing(f"{name} is not here. Get it: python -m core.weights get {name}")

    pipe._cache._load = missing
    gated = Gated(pipe)
    batcher = Batcher(gated, 4)
    first = busy(batcher, gated)
    callers = ask(batcher, [request(1), request(2)])
    gated.open()
    first.result()
    for caller in callers:
        with pytest.raises(WeightsMissing, match="get canny"):
            caller.result()
    *_, result = batcher.sample(request(controls=(), size=(64, 64)))
    assert isinstance(result, Result)


def test_a_batch_that_does_not_fit_into_memory_is_drawn_one_by_one(pipe: ControlNetPipeline) -> None:
    gated = Gated(pipe)
    batcher = Batcher(gated, 4)

    def exhaust(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        if len(args[0]) > 4:
            raise torch.OutOfMemoryError("out of memory")

    handle = pipe.networks.unet.register_forward_pre_hook(exhaust)
    first = busy(batcher, gated)
    callers = ask(batcher, [request(i) for i in range(4)])
    gated.open()
    for caller in (first, *callers):
        caller.result()
    assert gated.batches == [[99], [0, 1, 2, 3], [0], [1], [2], [3]]
    with pytest.raises(SuiteError, match="ran out of memory"):
        list(batcher.sample(request(num_samples=4)))
    gated.batches.clear()
    gated.steps, gated.started = threading.Semaphore(0), threading.Semaphore(0)
    first = busy(batcher, gated)
    callers = ask(batcher, [request(i) for i in range(4)])
    gated.open()
    for caller in (first, *callers):
        caller.result()
    assert gated.batches == [[99], [0, 1], [2, 3]]  # it is known now how many fit
    handle.remove()


@pytest.mark.parametrize("wrong", [0, 33, 2.5, True])
def test_a_size_of_batch_that_makes_no_sense_is_refused(pipe: ControlNetPipeline, wrong: Any) -> None:
    with pytest.raises(ValueError, match="max_batch is .* from 1 to 32"):
        Batcher(pipe, wrong)


def test_a_gpu_draws_more_at_once_than_a_cpu() -> None:
    assert default_max_batch(torch.device("cuda")) > default_max_batch(torch.device("cpu")) > 1
