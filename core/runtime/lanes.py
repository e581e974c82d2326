"""Computing several things at the same time, where the device can: on streams of a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import torch

T = TypeVar("T")


class Fork(Protocol):
    """Starts tasks that do not depend on each other."""

    def __call__(self, tasks: Sequence[Callable[[], T]]) -> Callable[[], list[T]]:
        """Start ``tasks``; return a function that waits for them and gives their results, in order."""
        ...


def one_by_one(tasks: Sequence[Callable[[], T]]) -> Callable[[], list[T]]:
    """Compute ``tasks`` at once, one after the other."""
    results = [task() for task in tasks]
    return lambda: results


class Lanes:
    """Starts each task on a stream of its own, beside what the caller then computes on the current one.

    For tasks whose results are joined before the next fork: until then a lane's memory is not used again, so
    that the allocator, which keeps memory by stream, needs no further care.
    """

    def __init__(self, device: torch.device) -> None:
        """Compute on a CUDA ``device``; streams are made when first needed and kept."""
        self._device = device
        self._streams: list[torch.cuda.Stream] = []

    def __call__(self, tasks: Sequence[Callable[[], T]]) -> Callable[[], list[T]]:
        """Start ``tasks``; the function that is returned has the current stream wait for them."""
        while len(self._streams) < len(tasks):
            self._streams.append(torch.cuda.Stream(self._device))
        lanes = self._streams[: len(tasks)]
        here = torch.cuda.current_stream(self._device)
        begin = here.record_event()
        results = []
        for lane, task in zip(lanes, tasks, strict=True):
            lane.wait_event(begin)
            with torch.cuda.stream(lane):
                results.append(task())
        ends = [lane.record_event() for lane in lanes]

        def join() -> list[T]:
            for end in ends:
                here.wait_event(end)
            return results

        return join
