"""One network's tensors in a file, under the network's own names; and ControlNets moved to another base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.weights.convert import Sources
from core.weights.formats import TensorFile, TensorInfo


@dataclass(frozen=True, slots=True)
class Part:
    """A network in a file.

    ``sources`` tells for each of the network's names the tensors that make it, put end to end along the first
    axis; ``wanted`` tells the shapes. Names that the file does without are not in ``sources``.
    """

    file: TensorFile
    sources: Sources
    wanted: Mapping[str, Tensor]

    def __contains__(self, name: str) -> bool:
        """Tell whether the file holds the tensor ``name``."""
        return name in self.sources

    def __iter__(self) -> Iterator[str]:
        """Go over the names that the file holds, in the network's order."""
        return (name for name in self.wanted if name in self.sources)

    def info(self, name: str) -> TensorInfo:
        """Return the shape in the network and the number format in the file."""
        dtype = self.file.tensors[self.sources[name][0]].dtype
        return TensorInfo(tuple(self.wanted[name].shape), dtype)

    def read(self, name: str, room_bytes: int = 0) -> Tensor:
        """Return a tensor in the network's shape and the file's number format; see ``TensorFile.read``."""
        return read_joined(self.file, self.sources[name], self.wanted[name].shape, room_bytes)

    def read_into(self, name: str, out: Tensor, room_bytes: int = 0) -> None:
        """Put a tensor's numbers into ``out``; see ``TensorFile.read_into``."""
        begin = 0
        for key in self.sources[name]:
            end = begin + self.file.tensors[key].count
            self.file.read_into(key, out.view(-1)[begin:end], room_bytes)
            begin = end


def read_joined(file: TensorFile, keys: Sequence[str], shape: Sequence[int], room_bytes: int = 0) -> Tensor:
    """Return tensors of a file put end to end, in ``shape``."""
    parts = [file.read(key, room_bytes) for key in keys]
    value = torch.cat(parts) if len(parts) > 1 else parts[0]
    return value.reshape(tuple(shape))


@dataclass(frozen=True, slots=True)
class Offset:
    """Moves a ControlNet's weights p to another base model: p + target - source, in float32.

    ``target`` and ``source`` are the UNets of the base models. Without ``source``, p is the difference to a
    base already. Parts that no UNet has, the hint block and the zero convolutions, stay as they are.

    Source: tool_transfer_control.py of the original, which adds and subtracts in this order.
    """

    target: Part
    source: Part | None = None

    def apply(self, name: str, value: Tensor | None) -> Tensor | None:
        """Return the moved tensor; None stands for a difference of nothing, which a file may leave out."""
        if name not in self.target:
            return value
        source = None if self.source is None else self.source.read(name)
        return moved(value, self.target.read(name), source)


def moved(value: Tensor | None, target: Tensor, source: Tensor | None) -> Tensor:
    """Return value + target - source in float32; see ``Offset``."""
    total = target.float() if value is None else value.float() + target.float()
    return total if source is None else total - source.float()
