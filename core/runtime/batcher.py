"""Many callers, one model: requests that wait and can be drawn together become one batch."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch

from core.errors import SuiteError
from core.pipeline import NO_RESULT, OUT_OF_MEMORY, Update
from core.request import MAX_BATCH, Progress, Request, Result, check_number

log = logging.getLogger(__name__)

CPU_BATCH, GPU_BATCH = 4, 8  # beyond these a batch gains little more, and all of it waits for its last
WAITING_SECONDS = 0.5  # between two words to who waits; a generator can be closed only in between


class BatchPipeline(Protocol):
    """What a ``Batcher`` needs of ``core.pipeline.ControlNetPipeline``."""

    @property
    def name(self) -> str:
        """The model's short name."""

    @property
    def title(self) -> str:
        """The model's name for people."""

    @property
    def resolution(self) -> int:
        """The short side, in pixels, that the model was trained at."""

    def explain_missing(self, control: str) -> str | None:
        """Return why this ControlNet cannot be used, or None."""

    def check(self, request: Request) -> None:
        """Raise ``ValueError`` where the model has no ControlNet that ``request`` names."""

    def batch_key(self, request: Request) -> Hashable:
        """Return what is equal for requests that can be drawn as one batch."""

    def sample_together(
        self, requests: Sequence[Request], wanted: Callable[[int], bool] | None = None
    ) -> Generator[tuple[int, Update]]:
        """Return a generator of (index of a request, update)."""


def default_max_batch(device: torch.device) -> int:
    """Return how many pictures to draw at once on a device with enough memory."""
    return CPU_BATCH if device.type == "cpu" else GPU_BATCH


@dataclass(slots=True, eq=False)
class _Ticket:
    """A request that was handed in, and what there is to tell of it."""

    request: Request
    key: Hashable
    updates: deque[Update] = field(default_factory=deque)
    running: bool = False
    over: bool = False  # nobody waits for it, or its last update is there
    alone: bool = False  # it did not fit into memory with others

    def put(self, update: Update) -> None:
        """Add an update; of the unread ones only the newest keeps its preview, so that they stay small."""
        if self.updates and isinstance(self.updates[-1], Progress):
            self.updates[-1] = replace(self.updates[-1], preview=None)
        self.updates.append(update)
        self.over = not isinstance(update, Progress)


class Batcher:
    """Stands before a pipeline and draws what its callers ask for, several requests at a time.

    As soon as the model is free it takes the request that has waited longest and, in their order, all others
    that can be drawn with it, up to a number of pictures; it never waits for more to come. So nobody is
    overtaken by a request that could not be in the same batch. Safe for threads.
    """

    def __init__(self, pipeline: BatchPipeline, max_batch: int) -> None:
        """Draw at most ``max_batch`` pictures at once; a request for more is drawn by itself.

        Raises:
            ValueError: ``max_batch`` is out of range.
        """
        check_number("max_batch", max_batch, 1, MAX_BATCH, integer=True)
        self.pipeline, self.max_batch = pipeline, max_batch
        self._fitting: dict[tuple[int, int], int] = {}  # pictures of a size, where memory is known to end
        self._waiting: list[_Ticket] = []
        self._running: list[_Ticket] = []
        self._changed = threading.Condition()
        self._worker: threading.Thread | None = None

    @property
    def name(self) -> str:
        """The model's short name."""
        return self.pipeline.name

    @property
    def title(self) -> str:
        """The model's name for people."""
        return self.pipeline.title

    @property
    def resolution(self) -> int:
        """The short side, in pixels, that the model was trained at."""
        return self.pipeline.resolution

    def explain_missing(self, control: str) -> str | None:
        """Return why this ControlNet cannot be used, or None."""
        return self.pipeline.explain_missing(control)

    def sample(self, request: Request) -> Iterator[Progress | Result]:
        """Return a generator like the pipeline's own ``sample``; closing it cancels this request alone.

        The request waits from the generator's first item on. While others come first, a ``Progress`` of step
        0 now and then says how many. A generator that is not read on holds up nobody.

        Raises:
            ValueError: this model has no such ControlNet; raised at once.
            ValueError, WeightsMissing, CheckpointMismatch, NumericalError: from the generator.
        """
        self.pipeline.check(request)
        return self._sample(request)

    def _sample(self, request: Request) -> Iterator[Progress | Result]:
        ticket = _Ticket(request, self.pipeline.batch_key(request))
        with self._changed:
            self._waiting.append(ticket)
            if self._worker is None:
                self._worker = threading.Thread(target=self._work, name="batcher", daemon=True)
                self._worker.start()
        try:
            while True:
                update = self._next(ticket)
                if isinstance(update, Exception):
                    raise update
                yield update
                if isinstance(update, Result):
                    return
        finally:
            self._leave(ticket)

    def _next(self, ticket: _Ticket) -> Update:
        """Wait for an update; after a while without one, say how many come first."""
        with self._changed:
            while not self._changed.wait_for(lambda: ticket.updates, WAITING_SECONDS):
                if not ticket.running:
                    ahead = self._waiting.index(ticket) + sum(not other.over for other in self._running)
                    return Progress(0, ticket.request.walked_steps, ahead=ahead)
            return ticket.updates.popleft()

    def _leave(self, ticket: _Ticket) -> None:
        with self._changed:
            ticket.over = True
            if ticket in self._waiting:
                self._waiting.remove(ticket)

    # What the worker does

    def _work(self) -> None:
        """Draw until nobody waits."""
        while True:
            with self._changed:
                self._running = self._take()
                if not self._running:
                    self._worker = None
                    return
            self._draw(self._running)

    def _take(self) -> list[_Ticket]:
        """Return the next batch, no longer waiting; the caller has the lock."""
        if not self._waiting:
            return []
        first = self._waiting[0]
        room = self._fitting.get(first.request.height_width, self.max_batch) - first.request.num_samples
        batch = [first]
        for ticket in self._waiting[1:]:
            fits = ticket.request.num_samples <= room and ticket.key == first.key
            if fits and not (first.alone or ticket.alone):
                batch.append(ticket)
                room -= ticket.request.num_samples
        self._waiting = [ticket for ticket in self._waiting if ticket not in batch]
        for ticket in batch:
            ticket.running = True
        return batch

    def _draw(self, batch: list[_Ticket]) -> None:
        try:
            requests = [ticket.request for ticket in batch]
            with closing(self.pipeline.sample_together(requests, lambda i: not batch[i].over)) as updates:
                for i, update in updates:
                    self._tell([batch[i]], update)
                    if all(ticket.over for ticket in batch):
                        return
            raise SuiteError(NO_RESULT)
        except torch.OutOfMemoryError:
            self._make_room(batch)
        except Exception as error:
            self._tell(batch, error)

    def _tell(self, tickets: Sequence[_Ticket], update: Update) -> None:
        with self._changed:
            for ticket in tickets:
                if not ticket.over:
                    ticket.put(update)
            self._changed.notify_all()

    def _make_room(self, batch: list[_Ticket]) -> None:
        """Let the requests of a batch that did not fit into memory wait again, each for itself."""
        if len(batch) == 1:
            self._tell(batch, SuiteError(OUT_OF_MEMORY))
            return
        with self._changed:
            size = batch[0].request.height_width
            pictures = sum(ticket.request.num_samples for ticket in batch)
            self._fitting[size] = max(1, pictures // 2)
            log.warning("%d pictures at once did not fit into memory; drawing them by themselves.", pictures)
            left = [ticket for ticket in batch if not ticket.over]
            for ticket in left:
                ticket.running, ticket.alone = False, True
            self._waiting[:0] = left
