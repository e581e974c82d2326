"""A real pipeline whose batches a test can see and hold."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Hashable, Sequence

from core.pipeline import ControlNetPipeline, Update
from core.request import Progress, Request, Result
from core.runtime.batcher import Batcher

PATIENCE = 60  # seconds; only a failure takes so long


class Gated:
    """A pipeline that writes down its batches and lets a test say when a step may be walked."""

    def __init__(self, pipe: ControlNetPipeline) -> None:
        self.pipe = pipe
        self.batches: list[list[int]] = []  # the seeds of each
        self.finished: list[int] = []  # the seeds of those that got their pictures
        self.steps = threading.Semaphore(0)
        self.started = threading.Semaphore(0)
        self.name, self.title, self.resolution = pipe.name, pipe.title, pipe.resolution

    def explain_missing(self, control: str) -> str | None:
        return self.pipe.explain_missing(control)

    def check(self, request: Request) -> None:
        self.pipe.check(request)

    def batch_key(self, request: Request) -> Hashable:
        return self.pipe.batch_key(request)

    def sample_together(
        self, requests: Sequence[Request], wanted: Callable[[int], bool] | None = None
    ) -> Generator[tuple[int, Update]]:
        self.batches.append([r.seed for r in requests])
        self.started.release()
        step = 0
        for i, update in self.pipe.sample_together(requests, wanted):
            if isinstance(update, Progress) and update.step > step:
                step = update.step
                assert self.steps.acquire(timeout=PATIENCE)
            if isinstance(update, Result):
                self.finished.append(update.request.seed)
            yield i, update

    def open(self) -> None:
        self.steps.release(10_000)


def wait_for(batcher: Batcher, waiting: int) -> None:
    """Wait until so many requests wait."""
    with batcher._changed:
        while len(batcher._waiting) != waiting:
            batcher._changed.wait(0.005)
