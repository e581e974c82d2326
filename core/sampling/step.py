"""What the networks compute in a step: tensors in, one tensor out, and no decision that depends on values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.models.controlnet import add_residuals
from core.models.unet import ContextKV, UNet
from core.models.variants import AnyControlNet
from core.runtime.lanes import Fork, one_by_one


@dataclass(frozen=True, slots=True, eq=False)
class ControlInputs:
    """One ControlNet in a step, with all that does not change over the steps of a batch.

    ``hint_embedding`` (1 or rows, model_channels, h, w); ``kv`` has ``rows`` rows, the first of the batch
    that the UNet is given: the others get zeros. ``scales`` float32 are the factors of the n residuals, (n,)
    or each row's own (n, rows, 1, 1, 1), None where all are 1. ``fixed`` are the residuals where they are the
    same at every step: then the network is not called. Of a ``pooled`` control's residuals the mean over the
    pixels counts. ``merged`` is the share of the tokens that self-attention merges away.
    """

    net: AnyControlNet
    hint_embedding: Tensor
    kv: ContextKV
    rows: int
    scales: Tensor | None = None
    fixed: tuple[Tensor, ...] | None = None
    pooled: bool = False
    merged: float = 0.0

    def residuals(self, x: Tensor, time: Tensor, count: int | None = None) -> list[Tensor]:
        """Return what is added to the UNet, for the whole batch ``x`` (R, C, h, w) at ``time`` (R,).

        With a ``count`` that are the first so many residuals.
        """
        scaled = self._compute(x[: self.rows], time[: self.rows], count)
        if self.scales is not None:
            scaled = [_scaled(r, s) for r, s in zip(scaled, self.scales[:count], strict=True)]
        if self.pooled:
            scaled = [r.mean((2, 3), keepdim=True) for r in scaled]
        missing = len(x) - self.rows
        return [F.pad(r, (0, 0, 0, 0, 0, 0, 0, missing)) for r in scaled] if missing else scaled

    def _compute(self, x: Tensor, time: Tensor, count: int | None) -> list[Tensor]:
        if self.fixed is not None:
            return list(self.fixed[:count])
        made: list[Tensor] = self.net(x, time, self.kv, self.hint_embedding, self.merged, count)
        return made


def _scaled(residual: Tensor, scale: Tensor) -> Tensor:
    # In float32, as with a Python number: a scale rounded to the residual's format would be another one.
    return (residual.float() * scale).to(residual.dtype)


@dataclass(frozen=True, eq=False)  # no slots: it is watched through a weak reference
class StepInputs:
    """The networks of a step and what they are given besides x and the time.

    ``merged`` is the share of the tokens that self-attention merges away.
    """

    unet: UNet
    kv: ContextKV
    controls: tuple[ControlInputs, ...]
    merged: float = 0.0

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """The networks that compute."""
        return (self.unet, *(control.net for control in self.controls if control.fixed is None))

    def map(self, change: Callable[[Tensor], Tensor]) -> StepInputs:
        """Return the same with every tensor changed, in the order of ``tensors``."""
        return replace(
            self,
            kv=_map_pairs(change, self.kv),
            controls=tuple(
                replace(
                    control,
                    hint_embedding=change(control.hint_embedding),
                    kv=_map_pairs(change, control.kv),
                    scales=None if control.scales is None else change(control.scales),
                    fixed=None if control.fixed is None else tuple(change(r) for r in control.fixed),
                )
                for control in self.controls
            ),
        )

    def tensors(self) -> Iterator[Tensor]:
        """Yield every tensor, always in the same order."""
        found: list[Tensor] = []

        def note(tensor: Tensor) -> Tensor:
            found.append(tensor)
            return tensor

        self.map(note)
        yield from found


def _map_pairs(change: Callable[[Tensor], Tensor], kv: ContextKV) -> ContextKV:
    return tuple((change(k), change(v)) for k, v in kv)


Predict = Callable[[StepInputs, Tensor, Tensor], Tensor]


def predict(inputs: StepInputs, x: Tensor, time: Tensor, fork: Fork = one_by_one) -> Tensor:
    """Return what the UNet predicts, eps or v, for ``x`` (R, C, h, w) at the time steps ``time`` (R,).

    With a ``fork`` that can, ControlNets compute beside the UNet's encoder; their residuals are added up in
    the order of the controls all the same.
    """
    if not inputs.controls:
        return inputs.unet(x, time, inputs.kv, None, inputs.merged)
    join = fork([partial(control.residuals, x, time) for control in inputs.controls])

    def total() -> list[Tensor]:
        added: list[Tensor] | None = None
        for residuals in join():
            added = add_residuals(added, residuals)
        assert added is not None
        return added

    return inputs.unet(x, time, inputs.kv, total, inputs.merged)


def make_time(t: float, rows: int, device: torch.device) -> Tensor:
    """Return the time step ``t``, which may be a fraction, for each of the rows: (rows,) float32."""
    return torch.full((rows,), float(t), device=device)
