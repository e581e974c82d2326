"""Checkpoints that hold one network under its own names, such as those of the detectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from core.errors import CheckpointMismatch
from core.weights.checkpoint import Plan, describe_misfit, plan_sources
from core.weights.convert import Sources
from core.weights.filling import fill
from core.weights.formats import open_tensors
from core.weights.parts import Part

if TYPE_CHECKING:
    from typing import TypeVar

    from torch import nn

    NetworkT = TypeVar("NetworkT", bound=nn.Module)

# Written by torch where a batch normalisation trains; nothing computes with it. Older files lack it.
COUNTERS = "num_batches_tracked"


def load_plain(
    build: Callable[[Mapping[str, str]], NetworkT],
    path: Path,
    *,
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    key_of: Callable[[str], str] | None = None,
    ignored: Callable[[str], bool] | None = None,
) -> NetworkT:
    """Load a network for inference; nothing of it may be missing from the file, nothing left over.

    ``build`` makes it, on the meta device, from the file's metadata. ``key_of`` turns its names into the
    file's; ``ignored`` tells which of the file's keys it does not need; ``name`` in the registry would fit.
    A "module." before every key, which data-parallel training leaves, is taken off.

    Raises:
        CheckpointMismatch: the file is unreadable or holds something else; names it and the keys.
    """
    file = open_tensors(path)
    with torch.device("meta"):
        net = build(file.metadata)
    wanted = {key: value for key, value in net.state_dict().items() if not key.endswith(COUNTERS)}
    prefix = "module." if file.tensors and all(key.startswith("module.") for key in file.tensors) else ""
    sources: Sources = {ours: (prefix + (key_of(ours) if key_of else ours),) for ours in wanted}
    plan: Plan = plan_sources(wanted, sources, file.tensors)
    used = {keys[0] for keys in sources.values()}
    plan.unexpected = [
        key
        for key in file.tensors
        if not (key in used or key.endswith(COUNTERS) or (ignored and ignored(key.removeprefix(prefix))))
    ]
    if not plan.fits:
        purpose = f"{path} does not hold the weights called {name}."
        raise CheckpointMismatch("\n".join([purpose, *describe_misfit(plan, [name])]))
    for key, value in net.state_dict().items():
        if key.endswith(COUNTERS):
            _materialise(net, key, value)
    fill(net, Part(file, plan.sources, net.state_dict()), device, dtype)
    return net


def _materialise(net: nn.Module, key: str, value: torch.Tensor) -> None:
    owner, _, buffer = key.rpartition(".")
    net.get_submodule(owner).register_buffer(buffer, torch.zeros_like(value, device="cpu"))
