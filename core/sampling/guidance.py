"""The guided denoiser: ControlNets, the UNet and classifier-free guidance behind one call that gives eps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from core.errors import NumericalError
from core.models.unet import ContextKV, UNet
from core.models.variants import AnyControlNet
from core.request import ControlUnit
from core.runtime.transfer import to_device
from core.sampling.rows import Counts, as_counts, per_picture
from core.sampling.schedule import Schedule
from core.sampling.step import ControlInputs, Predict, StepInputs, make_time, predict

if TYPE_CHECKING:
    from core.sampling.reuse import Reuse

GUESS_DECAY = 0.825  # from each residual to the one before it, in guess mode
# A share such as 0.3 and a step's share such as 3 / 10 may differ in the last bit.
SHARE_TOLERANCE = 1e-6

Scale = float | Tensor  # one for all rows, or one for each: (rows, 1, 1, 1) float32


def residual_scales(strength: float, count: int, guess_mode: bool, depth: int = 12) -> list[float]:
    """Return the factor of each of ``count`` residuals; in guess mode those before ``depth`` count less."""
    decay = GUESS_DECAY if guess_mode else 1.0
    return [strength * decay ** (depth - i) for i in range(count)]


def is_active(start: float, end: float, step_index: int, steps: int) -> bool:
    """Say whether a control from ``start`` to ``end``, shares of the steps, acts in a step (from 0)."""
    share = step_index / steps
    return start - SHARE_TOLERANCE <= share < end - SHARE_TOLERANCE


def text_rows(net: UNet | AnyControlNet, context: Tensor, counts: Counts) -> ContextKV:
    """Project ``context`` (rows, tokens, d) once and repeat each row for the pictures of its request.

    There are one or two rows a request, all conditional ones first. A single row is repeated without copying.
    With two each picture's keys and values are copied, about 4 MB a row for SD 1.5 at 16 bits.
    """
    counts = as_counts(counts)
    halves = len(context) // len(counts)
    pairs = net.project_context(context)
    return tuple((per_picture(k, counts, halves), per_picture(v, counts, halves)) for k, v in pairs)


@dataclass(frozen=True, slots=True, eq=False)
class ActiveControl:
    """One ControlNet of a batch, with all that does not change over the steps.

    ``kv`` has as many rows as this network is given: in guess mode, and where the control is ``pooled``, the
    conditional ones only. ``hint_embedding`` (rows, model_channels, h, w) has as many, or one where all
    pictures have one hint. ``fixed`` are the residuals, of as many rows, where they are the same at every
    step: then the network is not called again. Of a pooled control's residuals the mean over the pixels
    counts. ``strength`` may be each row's own.
    """

    net: AnyControlNet
    hint_embedding: Tensor
    kv: ContextKV
    strength: Scale
    start: float
    end: float
    fixed: list[Tensor] | None = None
    pooled: bool = False


def fixed_residuals(net: AnyControlNet, context: Tensor, embedding: Tensor, counts: Counts) -> list[Tensor]:
    """Compute the residuals of a network that looks at neither x_t nor t, for all pictures.

    It is given one row for each of ``context``, and of ``embedding`` one a request or one for all; what it
    returns is repeated for the pictures, without copying where all rows are the same.
    """
    counts = as_counts(counts)
    halves = len(context) // len(counts)
    if len(embedding) > 1:
        embedding = torch.cat([embedding] * halves)
    made: list[Tensor] = net(None, None, context, embedding)
    return [per_picture(r, counts, halves) for r in made]


def prepare_control(
    net: AnyControlNet, unit: ControlUnit, hint: Tensor, context: Tensor, counts: Counts, pooled: bool = False
) -> ActiveControl:
    """Compute once what ``unit`` needs at every step.

    ``hint`` is (1, 3, H, W) in [0, 1], or has one row a request; ``context`` has the rows that this
    ControlNet shall see: conditional first and, outside guess mode and where guidance asks for it,
    unconditional second.
    """
    counts = as_counts(counts)
    if pooled:
        context = context[: len(counts)]
    picture = to_device(hint, context.device).to(context.dtype, memory_format=torch.channels_last)
    embedding = net.embed_hint(picture)
    fixed = fixed_residuals(net, context, embedding, counts) if net.static else None
    kv = text_rows(net, context, counts) if fixed is None else ()
    if len(embedding) > 1 and fixed is None:
        embedding = per_picture(embedding, counts, len(context) // len(counts))
    return ActiveControl(net, embedding, kv, unit.strength, unit.start, unit.end, fixed, pooled)


@dataclass(frozen=True, slots=True, eq=False)
class GuidedDenoiser:
    """A ``Denoiser`` for one batch: (x_t, t, step index) -> eps, all float32.

    The conditional rows come first in the batch, the unconditional ones second; at ``cfg_scale`` 1 there are
    none. ``context_kv`` are the UNet's keys and values for exactly these rows. ``cfg_scale`` may be each
    picture's own, none of them 1. ``predict`` computes the networks' part of a step, unless ``reuse`` does,
    in which a step takes over what earlier ones computed. ``merged`` is the share of the tokens that
    self-attention merges away.
    """

    unet: UNet
    schedule: Schedule
    context_kv: ContextKV
    controls: Sequence[ActiveControl]
    cfg_scale: Scale
    guess_mode: bool
    steps: int
    guess_depth: int = 12
    predict: Predict = predict
    reuse: Reuse | None = None
    merged: float = 0.0
    # What the networks are given in a step, by which controls act in it.
    _inputs: dict[tuple[bool, ...], StepInputs] = field(default_factory=dict, init=False)

    @property
    def guided(self) -> bool:
        """Whether there is an unconditional half."""
        return isinstance(self.cfg_scale, Tensor) or self.cfg_scale != 1.0

    def __call__(self, x_t: Tensor, t: float, step_index: int) -> Tensor:
        """Predict the noise in ``x_t`` (B, C, h, w) at time step ``t``, which may be a fraction."""
        x = x_t.to(self.context_kv[0][0].dtype, memory_format=torch.channels_last)
        if self.guided:
            x = torch.cat([x, x])  # (2B, C, h, w)
        time = make_time(t, len(x), x.device)
        predict = self.predict if self.reuse is None else self.reuse.at(step_index)
        out = predict(self.inputs(len(x_t), step_index), x, time).float()
        if self.guided:
            conditional, unconditional = out.chunk(2)
            out = unconditional + self.cfg_scale * (conditional - unconditional)
        # Linear in the prediction, so that it may come after guidance.
        return self.schedule.eps_from_v(out, x_t, t) if self.schedule.parameterization == "v" else out

    def inputs(self, batch: int, step_index: int) -> StepInputs:
        """Return what the networks are given in a step besides x and the time, for ``batch`` pictures."""
        acting = tuple(is_active(c.start, c.end, step_index, self.steps) for c in self.controls)
        if acting not in self._inputs:
            controls = [c for c, acts in zip(self.controls, acting, strict=True) if acts]
            given = tuple(self._given(control, batch) for control in controls)
            self._inputs[acting] = StepInputs(self.unet, self.context_kv, given, self.merged)
        return self._inputs[acting]

    def _given(self, control: ActiveControl, batch: int) -> ControlInputs:
        alone = self.guess_mode or control.pooled or not self.guided
        rows = batch if alone else 2 * batch
        return ControlInputs(
            control.net,
            control.hint_embedding,
            control.kv,
            rows,
            self._scales(control, rows),
            None if control.fixed is None else tuple(control.fixed),
            control.pooled,
            self.merged,
        )

    def _scales(self, control: ActiveControl, rows: int) -> Tensor | None:
        """Return the factors of the residuals, (n,) or each row's own; None where all are 1."""
        count = len(control.fixed) if control.fixed is not None else control.net.num_residuals
        strength, device = control.strength, control.hint_embedding.device
        if isinstance(strength, Tensor):
            factors = torch.tensor(residual_scales(1.0, count, self.guess_mode, self.guess_depth))
            return factors.to(device)[:, None, None, None, None] * strength[:rows]  # (n, rows, 1, 1, 1)
        scales = residual_scales(strength, count, self.guess_mode, self.guess_depth)
        return None if set(scales) == {1.0} else torch.tensor(scales, device=device)


def check_finite(values: Tensor, when: str, dtype: torch.dtype) -> None:
    """Raise where ``values``, computed in ``dtype``, hold NaN or infinity; ``when`` names the moment.

    Raises:
        NumericalError: says when, and what to do.
    """
    if not bool(torch.isfinite(values).all()):
        raise not_finite(when, dtype)


def not_finite(when: str, dtype: torch.dtype) -> NumericalError:
    """Return what to raise where latents hold NaN or infinity; the arguments are as above."""
    damaged = "the weights may be damaged: run python -m core.weights verify"
    remedy = damaged if dtype == torch.float32 else "use --dtype float32"
    name = str(dtype).removeprefix("torch.")
    return NumericalError(f"NaN or infinity in the latents {when}, computed in {name}: {remedy}.")
