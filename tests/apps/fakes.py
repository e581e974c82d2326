"""A pipeline that draws without weights: what the page needs of the real one, and no more."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np

from core.request import Progress, Request, Result


class FakePipeline:
    """Paints the hint in a colour that depends on the seed.

    With ``gate`` set every step takes 50 ms; ``hold`` keeps it before the first step until the test sets it.
    """

    name = "demo"
    title = "Toy-world demo model"
    resolution = 256

    def __init__(self, missing: str | None = None, failure: Exception | None = None) -> None:
        self.missing, self.failure = missing, failure
        self.lock = threading.Lock()
        self.requests: list[Request] = []
        self.closed_early = threading.Event()
        self.stepping = threading.Event()
        self.gate: threading.Event | None = None
        self.hold: threading.Event | None = None

    def explain_missing(self, control: str) -> str | None:
        return self.missing

    def sample(self, request: Request) -> Iterator[Progress | Result]:
        self.requests.append(request)
        if not self.lock.acquire(timeout=5):
            raise RuntimeError("Another request still holds the pipeline.")
        finished = False
        try:
            if self.hold is not None:
                self.hold.wait(40)
            for step in range(1, request.steps + 1):
                if self.failure is not None and step == 2:
                    raise self.failure
                preview = np.full((32, 32, 3), 255 * step // request.steps, np.uint8)
                yield Progress(step, request.steps, preview, 0.01)
                self.stepping.set()
                if self.gate is not None:
                    self.gate.wait(0.05)
            seeds = tuple(request.seed + i for i in range(request.num_samples))
            yield Result(tuple(paint(request, seed) for seed in seeds), request, seeds, self.name, 0.2)
            finished = True
        finally:
            if not finished:
                self.closed_early.set()
            self.lock.release()


def paint(request: Request, seed: int) -> np.ndarray:
    """Return the hint's lines on a ground whose colour is the seed's."""
    ground = np.random.default_rng(seed).integers(60, 255, 3, dtype=np.uint8)
    return np.where(request.controls[0].hint > 0, np.uint8(20), ground)
