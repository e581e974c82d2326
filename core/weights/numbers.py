"""Numbers copied from one format to another, piece by piece."""

from __future__ import annotations

import torch
from torch import Tensor

PIECE = 2**18  # numbers: a piece and what it is made of stay in the processor's cache
SERIAL = 2**15  # numbers, up to which torch copies without threads


def convert(value: Tensor, out: Tensor) -> None:
    """Copy ``value`` into ``out``, contiguous and of as many numbers, in its format and on its device.

    On one thread: on a busy machine, where threads wait for each other at every piece, a model took a minute.
    Between float16 and bfloat16 by way of float32, which holds both exactly: torch's direct way takes four
    times as long.
    """
    given, made = value.reshape(-1), out.view(-1)
    if not (given.device.type == made.device.type == "cpu"):
        made.copy_(given)
        return
    halves = value.dtype.is_floating_point and value.dtype.itemsize == out.dtype.itemsize == 2
    between = torch.float32 if halves and value.dtype != out.dtype else None
    for a, b in zip(given.split(PIECE), made.split(PIECE), strict=True):
        _copy(a if between is None else _copy(a, torch.empty(len(a), dtype=between)), b)


def _copy(value: Tensor, out: Tensor) -> Tensor:
    if torch.get_num_threads() == 1:
        return out.copy_(value)
    torch._foreach_copy_(out.split(SERIAL), value.split(SERIAL))
    return out
