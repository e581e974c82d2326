"""The guided denoiser: ControlNets, the UNet and classifier-free guidance behind one call that gives eps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from core.errors import NumericalError
from core.models.unet import ContextKV, UNet
from core.models.variants import AnyControlNet
from core.request import ControlUnit
from core.sampling.schedule import Schedule
from core.sampling.step import ControlInputs, Predict, StepInputs, make_time, predict

GUESS_DECAY = 0.825  # from each residual to the one before it, in guess mode
# A share such as 0.3 and a step's share such as 3 / 10 may differ in the last bit.
SHARE_TOLERANCE = 1e-6


def residual_scales(strength: float, count: int, guess_mode: bool, depth: int = 12) -> list[float]:
    """Return the factor of each of ``count`` residuals; in guess mode those before ``depth`` count less."""
    decay = GUESS_DECAY if guess_mode else 1.0
    return [strength * decay ** (depth - i) for i in range(count)]


def is_active(start: float, end: float, step_index: int, steps: int) -> bool:
    """Say whether a control from ``start`` to ``end``, shares of the steps, acts in a step (from 0)."""
    share = step_index / steps
    return start - SHARE_TOLERANCE <= share < end - SHARE_TOLERANCE


def text_rows(net: UNet | AnyControlNet, context: Tensor, batch: int) -> ContextKV:
    """Project ``context`` (1 or 2 rows, tokens, d) once and repeat each row for ``batch`` pictures.

    One row is repeated without copying. With two (conditional, unconditional) each picture's keys and values
    are copied, about 4 MB a row for SD 1.5 at 16 bits.
    """
    pairs = net.project_context(context)
    if batch == 1:
        return pairs
    if len(context) == 1:
        return tuple((k.expand(batch, -1, -1, -1), v.expand(batch, -1, -1, -1)) for k, v in pairs)
    return tuple((k.repeat_interleave(batch, 0), v.repeat_interleave(batch, 0)) for k, v in pairs)


@dataclass(frozen=True, slots=True, eq=False)
class ActiveControl:
    """One ControlNet of a request, with all that does not change over the steps.

    ``hint_embedding`` (1, model_channels, h, w); ``kv`` has as many rows as this network is given: in guess
    mode, and where the control is ``pooled``, the conditional ones only. ``fixed`` are the residuals, of as
    many rows, where they are the same at every step: then the network is not called again. Of a pooled
    control's residuals the mean over the pixels counts.
    """

    net: AnyControlNet
    hint_embedding: Tensor
    kv: ContextKV
    strength: float
    start: float
    end: float
    fixed: list[Tensor] | None = None
    pooled: bool = False


def fixed_residuals(net: AnyControlNet, context: Tensor, embedding: Tensor, batch: int) -> list[Tensor]:
    """Compute the residuals of a network that looks at neither x_t nor t, for ``batch`` pictures.

    It is given one row for each of ``context``; what it returns is repeated for the pictures, without copying
    where all rows are the same.
    """
    rows = len(context) * batch
    made: list[Tensor] = net(None, None, context, embedding)
    return [
        r.expand(rows, -1, -1, -1) if len(r) == 1 else r.repeat_interleave(rows // len(r), 0) for r in made
    ]


def prepare_control(
    net: AnyControlNet, unit: ControlUnit, hint: Tensor, context: Tensor, batch: int, pooled: bool = False
) -> ActiveControl:
    """Compute once what ``unit`` needs at every step.

    ``hint`` is (1, 3, H, W) in [0, 1]; ``context`` has the rows that this ControlNet shall see: conditional
    first and, outside guess mode and where guidance asks for it, unconditional second.
    """
    if pooled:
        context = context[:1]
    picture = hint.to(context.device, context.dtype, memory_format=torch.channels_last)
    embedding = net.embed_hint(picture)
    fixed = fixed_residuals(net, context, embedding, batch) if net.static else None
    kv = text_rows(net, context, batch) if fixed is None else ()
    return ActiveControl(net, embedding, kv, unit.strength, unit.start, unit.end, fixed, pooled)


@dataclass(frozen=True, slots=True, eq=False)
class GuidedDenoiser:
    """A ``Denoiser`` for one request: (x_t, t, step index) -> eps, all float32.

    The conditional rows come first in the batch, the unconditional ones second; at ``cfg_scale`` 1 there are
    none. ``context_kv`` are the UNet's keys and values for exactly these rows. ``predict`` computes the
    networks' part of a step.
    """

    unet: UNet
    schedule: Schedule
    context_kv: ContextKV
    controls: Sequence[ActiveControl]
    cfg_scale: float
    guess_mode: bool
    steps: int
    guess_depth: int = 12
    predict: Predict = predict
    # What the networks are given in a step, by which controls act in it.
    _inputs: dict[tuple[bool, ...], StepInputs] = field(default_factory=dict, init=False)

    @property
    def guided(self) -> bool:
        """Whether there is an unconditional half."""
        return self.cfg_scale != 1.0

    def __call__(self, x_t: Tensor, t: float, step_index: int) -> Tensor:
        """Predict the noise in ``x_t`` (B, C, h, w) at time step ``t``, which may be a fraction."""
        x = x_t.to(self.context_kv[0][0].dtype, memory_format=torch.channels_last)
        if self.guided:
            x = torch.cat([x, x])  # (2B, C, h, w)
        time = make_time(t, len(x), x.device)
        out = self.predict(self.inputs(len(x_t), step_index), x, time).float()
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
            self._inputs[acting] = StepInputs(self.unet, self.context_kv, given)
        return self._inputs[acting]

    def _given(self, control: ActiveControl, batch: int) -> ControlInputs:
        alone = self.guess_mode or control.pooled or not self.guided
        count = len(control.fixed) if control.fixed is not None else control.net.num_residuals
        scales = residual_scales(control.strength, count, self.guess_mode, self.guess_depth)
        return ControlInputs(
            control.net,
            control.hint_embedding,
            control.kv,
            batch if alone else 2 * batch,
            None if set(scales) == {1.0} else torch.tensor(scales, device=control.hint_embedding.device),
            None if control.fixed is None else tuple(control.fixed),
            control.pooled,
        )


def check_finite(values: Tensor, when: str, dtype: torch.dtype) -> None:
    """Raise where ``values``, computed in ``dtype``, hold NaN or infinity; ``when`` names the moment.

    Raises:
        NumericalError: says when, and what to do.
    """
    if bool(torch.isfinite(values).all()):
        return
    damaged = "the weights may be damaged: run python -m core.weights verify"
    remedy = damaged if dtype == torch.float32 else "use --dtype float32"
    name = str(dtype).removeprefix("torch.")
    raise NumericalError(f"NaN or infinity in the latents {when}, computed in {name}: {remedy}.")
