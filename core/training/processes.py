"""Several processes that train one network together: what ``torchrun`` starts, or just this one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from core.runtime.device import resolve_device


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among those that train together: number ``rank`` of ``count``, computing on ``device``."""

    device: torch.device
    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files and talks."""
        return self.rank == 0

    def share(self, module: nn.Module, *, some_unused: bool = False) -> nn.Module:
        """Let the gradients of ``module`` be averaged over all processes; alone it is returned as it is.

        ``some_unused`` says that not every trainable parameter takes part in every step.
        """
        if self.count == 1:
            return module
        return DistributedDataParallel(module, find_unused_parameters=some_unused)

    def mean(self, value: Tensor) -> float:
        """Return the mean of a scalar over all processes."""
        if self.count == 1:
            return float(value)
        total = value.detach().float().clone()
        dist.all_reduce(total)
        return float(total) / self.count

    def any(self, flag: bool) -> bool:
        """Tell whether the flag is up in any process: all stop after the same step, or none."""
        if self.count == 1:
            return flag
        raised = torch.tensor(int(flag), device=self.device)
        dist.all_reduce(raised, op=dist.ReduceOp.MAX)
        return bool(raised)

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.count > 1:
            dist.barrier()


def without_averaging(module: nn.Module | None) -> AbstractContextManager[None]:
    """Return the context in which gradients add up and are not averaged yet."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


@contextmanager
def processes(device: str) -> Iterator[Processes]:
    """Join the processes that ``torchrun`` started; without it there is just this one.

    Raises:
        ValueError: there is no such device.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes(resolve_device(device))
        return
    place = resolve_device(device)
    if place.type == "cuda":
        place = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(place)
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield Processes(place, dist.get_rank(), count)
    finally:
        dist.destroy_process_group()
