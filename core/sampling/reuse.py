"""What a step takes over from earlier ones: residuals of the ControlNets, deep features of the UNet.

Exact it is only where every interval is 1: then nothing is taken over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor

from core.models.controlnet import add_residuals
from core.models.unet import SHALLOW
from core.request import ControlUnit, Request
from core.sampling.guidance import is_active
from core.sampling.step import Predict, StepInputs


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What is computed in a step: the whole UNet or the shallow part, and of each control how many residuals.

    ``acting`` says which controls act; of one whose last residuals are taken again none are computed.
    """

    whole: bool
    acting: tuple[bool, ...]
    residuals: tuple[int, ...]


def plan_steps(
    acting: Sequence[tuple[bool, ...]], count: int, control_interval: int, cache_interval: int
) -> tuple[StepPlan, ...]:
    """Plan all steps, of each of which ``acting`` says which controls act; ``count`` is of residuals.

    The whole UNet computes in every ``cache_interval``-th step since it last did, and where a control sets in
    or ends: deep features know nothing of what came later. A control computes what the step needs where it is
    not there yet or ``control_interval`` steps old; in a shallow step that is little.
    """
    plans: list[StepPlan] = []
    last_whole = 0
    kept = [(0, 0)] * len(acting[0])  # of each control: how many residuals, from which step
    for i, acts in enumerate(acting):
        whole = i == 0 or i - last_whole >= cache_interval or acts != acting[i - 1]
        last_whole = i if whole else last_whole
        needed = count if whole else SHALLOW
        lacking = [has < needed or i - at >= control_interval for has, at in kept]
        due = [a and b for a, b in zip(acts, lacking, strict=True)]
        kept = [(needed, i) if d else before for d, before in zip(due, kept, strict=True)]
        plans.append(StepPlan(whole, acts, tuple(needed if d else 0 for d in due)))
    return tuple(plans)


def plan_reuse(request: Request, units: Sequence[ControlUnit], count: int) -> Reuse | None:
    """Return what takes over from step to step what ``request`` allows; None where that is nothing.

    ``units`` are its controls that act, ``count`` is how many residuals the UNet takes.
    """
    if request.control_interval == request.cache_interval == 1:
        return None
    steps = request.walked_steps
    acting = [tuple(is_active(u.start, u.end, i, steps) for u in units) for i in range(steps)]
    return Reuse(plan_steps(acting, count, request.control_interval, request.cache_interval))


@dataclass(slots=True, eq=False)
class Reuse:
    """The plan of a walk, and what its later steps take over. It is the walk's own and ends with it."""

    plans: tuple[StepPlan, ...]
    _deep: Tensor | None = None
    _residuals: dict[int, list[Tensor]] = field(default_factory=dict)

    def at(self, step_index: int) -> Predict:
        """Return what computes the networks' part of a step (from 0); the steps must come in their order."""
        return partial(self._predict, self.plans[step_index])

    def _predict(self, plan: StepPlan, inputs: StepInputs, x: Tensor, time: Tensor) -> Tensor:
        total: list[Tensor] | None = None
        acting = [index for index, acts in enumerate(plan.acting) if acts]
        for index, control in zip(acting, inputs.controls, strict=True):
            due = plan.residuals[index]
            if due:
                self._residuals[index] = control.residuals(x, time, due)
            total = add_residuals(total, self._residuals[index][: None if plan.whole else SHALLOW])
        if plan.whole:
            out, self._deep = inputs.unet.whole(x, time, inputs.kv, total, inputs.merged)
            return out
        assert self._deep is not None
        return inputs.unet.shallow(x, time, inputs.kv, total, self._deep, inputs.merged)
