"""The networks' part of a step recorded once and replayed: a GPU then waits for no Python between kernels."""

from __future__ import annotations

import logging
import weakref
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from core.runtime.lanes import Fork, Lanes
from core.runtime.recording import Compute, CudaRecorder, Recorder
from core.sampling.step import Predict, StepInputs, predict

log = logging.getLogger(__name__)

CAPACITY = 8  # recordings; they share the memory of their activations
Signature = tuple[object, ...]


@dataclass(eq=False, slots=True)
class Recorded:
    """A recording and the tensors that it reads. The networks are not kept alive by it."""

    x: Tensor
    time: Tensor
    constants: tuple[Tensor, ...]
    networks: tuple[weakref.ref[nn.Module], ...]
    replay: Compute
    filled: weakref.ref[StepInputs] | None = None  # what ``constants`` hold the values of

    def holds(self, inputs: StepInputs, x: Tensor) -> bool:
        """Say whether the constants are those of ``inputs``, and the batch is of this shape."""
        return self.filled is not None and self.filled() is inputs and self.x.shape == x.shape

    def run(self, inputs: StepInputs, x: Tensor, time: Tensor) -> Tensor:
        """Return a new tensor with what the networks make of the arguments."""
        if not self.holds(inputs, x):
            self.filled = None
            for buffer, value in zip(self.constants, inputs.tensors(), strict=True):
                buffer.copy_(value)
            self.filled = weakref.ref(inputs)
        self.x.copy_(x)
        self.time.copy_(time)
        return self.replay().clone()


class StepGraphs:
    """A ``Predict`` that records each structure of a step when it first comes, and from then on replays it.

    A structure is which networks act, in which order, on tensors of which shapes, with weights at which
    place, and which share of the tokens is merged: values may differ, as weights may that are changed in
    place. The least recently used recording is dropped. What cannot be recorded is computed as if there were
    no recordings.
    """

    def __init__(self, record: Recorder, fork: Fork, capacity: int = CAPACITY) -> None:
        """Record with ``record``, the ControlNets on the lanes of ``fork``."""
        self._record, self._fork, self._capacity = record, fork, capacity
        self._recorded: OrderedDict[Signature, Recorded | None] = OrderedDict()  # None: cannot be recorded
        self._latest: Recorded | None = None

    @torch.inference_mode()
    def __call__(self, inputs: StepInputs, x: Tensor, time: Tensor) -> Tensor:
        """Return what ``predict`` does."""
        recorded = self._latest
        if recorded is None or not recorded.holds(inputs, x):
            recorded = self._latest = self._find(inputs, x, time)
        return predict(inputs, x, time) if recorded is None else recorded.run(inputs, x, time)

    def clear(self) -> None:
        """Drop all recordings and, with them, their memory."""
        self._recorded.clear()
        self._latest = None

    def __len__(self) -> int:
        """Return how many recordings there are."""
        return sum(recorded is not None for recorded in self._recorded.values())

    def _find(self, inputs: StepInputs, x: Tensor, time: Tensor) -> Recorded | None:
        self._forget_the_dead()
        signature = _signature(inputs, x)
        if signature not in self._recorded:
            while len(self._recorded) >= self._capacity:
                self._recorded.popitem(last=False)
            self._recorded[signature] = self._try_to_record(inputs, x, time)
        self._recorded.move_to_end(signature)
        return self._recorded[signature]

    def _try_to_record(self, inputs: StepInputs, x: Tensor, time: Tensor) -> Recorded | None:
        try:
            return self._new(inputs, x, time)
        except RuntimeError as error:  # of CUDA, the allocator or whatever an operation forbids meanwhile
            log.warning("A step of this kind cannot be recorded and runs without a CUDA graph: %s", error)
            if isinstance(error, torch.OutOfMemoryError):
                self.clear()
            return None

    def _new(self, inputs: StepInputs, x: Tensor, time: Tensor) -> Recorded:
        constants: list[Tensor] = []

        def keep(value: Tensor) -> Tensor:
            constants.append(torch.empty_like(value).copy_(value))
            return constants[-1]

        own, own_x, own_time = inputs.map(keep), x.clone(), time.clone()
        replay = self._record(partial(predict, own, own_x, own_time, self._fork))
        networks = tuple(weakref.ref(network) for network in inputs.networks)
        return Recorded(own_x, own_time, tuple(constants), networks, replay, weakref.ref(inputs))

    def _forget_the_dead(self) -> None:
        """Drop the recordings whose networks are no more: their memory may hold something else by now."""
        for signature, recorded in list(self._recorded.items()):
            if recorded is not None and any(network() is None for network in recorded.networks):
                del self._recorded[signature]


def _signature(inputs: StepInputs, x: Tensor) -> Signature:
    return (
        x.shape,
        inputs.merged,
        tuple((tensor.shape, tensor.dtype) for tensor in inputs.tensors()),
        tuple((control.rows, control.scales is None, control.pooled) for control in inputs.controls),
        tuple((id(network), _place(network)) for network in inputs.networks),
        tuple(control.fixed is None for control in inputs.controls),
    )


def _place(network: nn.Module) -> tuple[int, ...]:
    """Return where the weights are: other numbers once they have moved."""
    return tuple(weight.data_ptr() for weight in network.parameters())


def choose_predict(device: torch.device, *, graphs: bool | None = None, low_vram: bool = False) -> Predict:
    """Return how to compute steps: by default recorded on a CUDA device, unless networks come and go there.

    Raises:
        ValueError: ``graphs`` are asked for where there can be none.
    """
    possible = device.type == "cuda" and not low_vram
    if graphs and not possible:
        why = "low_vram moves the networks" if device.type == "cuda" else f"the device is {device}"
        raise ValueError(f"graphs is True, but {why}: CUDA graphs need networks that stay on an NVIDIA GPU.")
    if graphs is False or not possible:
        return predict
    return StepGraphs(CudaRecorder(device), Lanes(device))
