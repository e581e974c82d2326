"""A stand-in for CUDA graphs on any device: kernels are written down, and done again without Python's code.

Like them it forgets how an argument came about: what is not read from a tensor that stays in place has the
value that it had while recording. Like them it refuses to read a value back meanwhile.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from core.runtime.recording import Compute

READS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)


class _Writer(TorchDispatchMode):
    """Writes down every operation with its arguments and results."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READS:
            raise RuntimeError("operation not permitted when stream is capturing")
        made = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, made))
        return made


class Tape:
    """A ``Recorder`` that counts its recordings and what is replayed."""

    def __init__(self) -> None:
        self.recorded = 0
        self.replayed = 0

    def __call__(self, compute: Compute) -> Compute:
        with _Writer() as writer:
            result = compute()
        self.recorded += 1

        def replay() -> Tensor:
            self.replayed += 1
            return result.copy_(_repeat(writer.calls)[id(result)])

        return replay


def _repeat(calls: list[tuple[Any, Any, Any, Any]]) -> dict[int, Tensor]:
    """Do the operations again; return the new result of each by the identity of the old one."""
    made: dict[int, Tensor] = {}

    def current(tensor: Tensor) -> Tensor:
        return made.get(id(tensor), tensor)

    for func, args, kwargs, before in calls:
        after = func(*tree_map_only(Tensor, current, args), **tree_map_only(Tensor, current, kwargs))
        for old, new in zip(tree_leaves(before), tree_leaves(after), strict=True):
            if isinstance(old, Tensor):
                made[id(old)] = new
    return made
