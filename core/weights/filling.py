"""Networks on the meta device get their weights from a file: read, converted and packed in one go."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event, Lock

import torch
from torch import Tensor, nn

from core.models.packing import pack_weights
from core.weights.numbers import convert
from core.weights.parts import Offset, Part

WORKERS = 2  # threads that read: one can wait for the system's memory while another computes


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

    Where the file can be read by several threads at once, two do it. With ``pack`` they pack those that can
    be packed; a plain weight for each thread, at a place in memory that it uses again and again, is what is
    held beside the network. The other convolutions' weights are brought into the layout in which they
    compute, channels last, meanwhile.
    """
    wanted = module.state_dict()
    waiting = pack_weights(module.to(dtype)) if pack else {}
    most = max((layer.shape.numel() for layer in waiting.values()), default=0)
    room = sum(empty.numel() for empty in wanted.values()) * dtype.itemsize  # that will be taken in the end
    state: dict[str, Tensor] = {}

    def take(name: str, place: Tensor) -> None:
        nonlocal room
        empty = wanted[name]
        room -= empty.numel() * dtype.itemsize
        if name not in part and (offset is None or name not in offset.target):
            state[name] = empty.to(device)  # not in the file, and none the worse for it
            return
        if name in waiting:
            value = place[: empty.numel()].view(empty.shape)
            _read(part, name, value, room, offset)
            waiting[name].pack(value)
            return
        kind = dtype if empty.is_floating_point() else empty.dtype
        value = torch.empty(empty.shape, dtype=kind, device=device)
        _read(part, name, value, room, offset)
        last = pack and value.ndim == 4
        state[name] = value.contiguous(memory_format=torch.channels_last) if last else value

    names = in_file_order(part)
    if offset is None and part.file.by_threads:
        _share_out(take, names, most, dtype)
    else:
        place = torch.empty(most, dtype=dtype)
        for name in names:
            take(name, place)
    module.load_state_dict(state, strict=True, assign=True)
    module.eval().requires_grad_(False)


def _share_out(
    take: Callable[[str, Tensor], None], names: Iterable[str], most: int, dtype: torch.dtype
) -> None:
    """Call ``take`` for each name, in threads that compute alone, each with a place for ``most`` numbers."""
    inference, count = torch.is_inference_mode_enabled(), torch.get_num_threads()
    todo, lock, begun = iter(list(names)), Lock(), Barrier(WORKERS + 1)
    failed = Event()

    def work() -> None:
        torch.get_num_threads()  # what a thread asks first sets its number to that of all
        torch.set_num_threads(1)  # of this thread; and of all that are yet to start, until it is set again
        begun.wait()
        place = torch.empty(most, dtype=dtype)
        with torch.inference_mode(inference):
            while not failed.is_set():
                with lock:
                    name = next(todo, None)
                if name is None:
                    return
                try:
                    take(name, place)
                except BaseException:
                    failed.set()
                    raise

    with ThreadPoolExecutor(WORKERS) as pool:
        futures = [pool.submit(work) for _ in range(WORKERS)]
        begun.wait()
        torch.set_num_threads(count)
        for future in futures:
            future.result()


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
