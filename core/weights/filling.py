"""Networks on the meta device get their weights from a file: read, converted and packed in one go."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import cycle

import torch
from torch import Tensor, nn

from core.models.packing import pack_weights
from core.weights.numbers import convert
from core.weights.parts import Offset, Part


def fill(
    module: nn.Module,
    part: Part,
    device: torch.device,
    dtype: torch.dtype,
    offset: Offset | None = None,
    *,
    pack: bool = False,
) -> None:
    """Give a network on the meta device its weights, tensor by tensor, in the order of the file.

    With ``pack`` those that can be packed are, while the next is read; two of these, at two places in memory
    that all use in turn, are what is held beside the network. The other convolutions' weights are brought
    into the layout in which they compute, channels last, meanwhile.
    """
    wanted = module.state_dict()
    waiting = pack_weights(module.to(dtype)) if pack else {}
    most = max((layer.shape.numel() for layer in waiting.values()), default=0)
    places = cycle((torch.empty(most, dtype=dtype), torch.empty(most, dtype=dtype)))
    room = sum(empty.numel() for empty in wanted.values()) * dtype.itemsize  # that will be taken in the end

    def read(name: str) -> Tensor:
        nonlocal room
        empty = wanted[name]
        room -= empty.numel() * dtype.itemsize
        if name not in part and (offset is None or name not in offset.target):
            return empty.to(device)  # not in the file, and none the worse for it
        if name in waiting:
            out = next(places)[: empty.numel()].view(empty.shape)
        else:
            kind = dtype if empty.is_floating_point() else empty.dtype
            out = torch.empty(empty.shape, dtype=kind, device=device)
        _read(part, name, out, room, offset)
        return out

    state, names = {}, in_file_order(part)
    for name, value in zip(names, _ahead(read, names), strict=True):
        if name in waiting:
            waiting[name].pack(value)
        else:
            last = pack and value.ndim == 4
            state[name] = value.contiguous(memory_format=torch.channels_last) if last else value
    module.load_state_dict(state, strict=True, assign=True)
    module.eval().requires_grad_(False)


def _ahead(read: Callable[[str], Tensor], names: Iterable[str]) -> Iterator[Tensor]:
    """Yield ``read(name)`` for each name; another thread reads the next one meanwhile."""
    inference = torch.is_inference_mode_enabled()

    def work(name: str) -> Tensor:
        with torch.inference_mode(inference):
            return read(name)

    with ThreadPoolExecutor(1) as pool:
        following: Future[Tensor] | None = None
        for name in names:
            now, following = following, pool.submit(work, name)
            if now is not None:
                yield now.result()
        if following is not None:
            yield following.result()


def in_file_order(part: Part) -> list[str]:
    """Return the network's names in the order in which the file holds them; first those that it does not."""
    places = {key: n for n, key in enumerate(part.file.tensors)}
    return sorted(part.wanted, key=lambda name: places[part.sources[name][0]] if name in part else -1)


def _read(part: Part, name: str, out: Tensor, room: int, offset: Offset | None) -> None:
    """Put a tensor into ``out``; with ``offset`` moved to another base model."""
    if offset is None:
        part.read_into(name, out, room)
        return
    value = offset.apply(name, part.read(name, room) if name in part else None)
    if value is not None:
        convert(value, out)
