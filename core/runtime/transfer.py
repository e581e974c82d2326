"""Copies between main memory and the device for which nobody waits longer than needed."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Return ``values`` on ``device``.

    From main memory to a GPU they go by pinned memory: the copy takes its turn there while Python goes on.
    """
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


class Reading:
    """A tensor on its way to main memory. It may be written over once ``value`` was taken."""

    def __init__(self, values: Tensor) -> None:
        """Begin the copy; on a GPU it waits its turn there, and nobody for it."""
        self._arrived: torch.cuda.Event | None = None
        if values.device.type == "cuda":
            self._host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._host.copy_(values, non_blocking=True)
            self._arrived = torch.cuda.current_stream(values.device).record_event()
        else:
            self._host = values.cpu()

    def value(self) -> Tensor:
        """Wait for the copy and return it."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._host
