"""Requests never mix, cancelling frees the model, and gradient modes stay the caller's."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from core.pipeline import ControlNetPipeline
from core.request import Progress, Result
from core.sampling.samplers import SAMPLERS
from tests.tiny_model import same_pictures as same
from tests.tiny_model import tiny_pipeline
from tests.tiny_model import tiny_request as request


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
