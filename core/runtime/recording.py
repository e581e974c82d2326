"""Recording what a computation does on a GPU, to have it done again without Python: CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

Compute = Callable[[], Tensor]
WARM_UPS = 2  # libraries choose kernels and take workspaces at first use, which cannot be recorded


class Recorder(Protocol):
    """Turns a computation into one that is done again on the same memory."""

    def __call__(self, compute: Compute) -> Compute:
        """Record ``compute``, whose inputs stay in place; return what repeats it.

        Each repetition writes its result over the one before. ``compute`` itself is not kept.

        Raises:
            RuntimeError: it cannot be recorded.
        """
        ...


class CudaRecorder:
    """Records as CUDA graphs, which share their memory: one replays at a time, and little outlasts that.

    One stream for warming up and recording: the allocator keeps memory by stream, and so do the libraries
    their workspaces. Other threads may use the GPU meanwhile.
    """

    def __init__(self, device: torch.device) -> None:
        """Record on a CUDA ``device``; nothing is started yet."""
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        self._pool: Any = None  # torch's handle of it

    def __call__(self, compute: Compute) -> Compute:
        """Warm ``compute`` up, record it, and return what replays it."""
        with torch.cuda.device(self._device):
            if self._stream is None:
                self._stream, self._pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
            here = torch.cuda.current_stream()
            self._stream.wait_stream(here)
            with torch.cuda.stream(self._stream):
                for _ in range(WARM_UPS):
                    compute()
            here.wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                result = compute()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay
