"""Time a step with each option that trades exactness for speed, on random weights."""

from __future__ import annotations

import argparse
import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from core.config import load_config
from core.models.unet import SHALLOW
from core.request import Request
from tests.bench import step

EXACT = "all off"
INTERVALS = (2, 3, 5)
RATIOS = (0.25, 0.5, 0.75)


@dataclass(frozen=True, slots=True)
class Case:
    """One way to draw: what is changed in the request and in its control, and whom the picture should equal.

    ``like`` names another case; ``shown`` is whether it has a row of its own.
    """

    name: str
    like: str
    request: Mapping[str, Any] = field(default_factory=dict)
    unit: Mapping[str, Any] = field(default_factory=dict)
    shown: bool = True

    def of(self, base: Request) -> Request:
        """Return ``base`` drawn in this way."""
        units = tuple(replace(unit, **self.unit) for unit in base.controls)
        return replace(base, controls=units, **self.request)


def option_cases(intervals: Sequence[int] = INTERVALS, ratios: Sequence[float] = RATIOS) -> list[Case]:
    """Return each option alone, after none."""
    return [
        Case(EXACT, EXACT),
        *(Case(f"control until {end:.0%} of the steps", EXACT, {}, {"end": end}) for end in (0.75, 0.5)),
        *(Case(f"control interval {n}", EXACT, {"control_interval": n}) for n in intervals),
        *(Case(f"cache interval {n}", EXACT, {"cache_interval": n}) for n in intervals),
        *(Case(f"token merging {r:g}", EXACT, {"token_merging_ratio": r}) for r in ratios),
    ]


def step_kinds(case: step.Case, ratios: Sequence[float] = RATIOS) -> dict[str, step.Step]:
    """Return the kinds of steps that there are, exact ones first; networks and weights are shared."""
    unet, control = step.networks(case)
    x, t, context, hint = case.tensors("cpu")
    embedded = control.embed_hint(hint)
    kv, control_kv = unet.project_context(context), control.project_context(context)
    kept = control(x, t, control_kv, embedded)
    _, deep = unet.whole(x, t, kv, kept)

    def merged(ratio: float) -> Tensor:
        return unet(x, t, kv, control(x, t, control_kv, embedded, ratio), ratio)

    def shallow() -> Tensor:
        residuals = control(x, t, control_kv, embedded, count=SHALLOW)
        return unet.shallow(x, t, kv, residuals, deep)

    return {
        EXACT: partial(merged, 0.0),
        "control taken over": lambda: unet(x, t, kv, kept),
        "deep part taken over": shallow,
        **{f"token merging {ratio:g}": partial(merged, ratio) for ratio in ratios},
    }


def of_interval(share: float, interval: int) -> float:
    """Return the share of the time where all but every ``interval``-th step take ``share`` of it."""
    return (1.0 + (interval - 1) * share) / interval


@torch.inference_mode()
def run(args: argparse.Namespace) -> None:
    """Print a line for each kind of step, and what intervals make of them."""
    if args.threads:
        torch.set_num_threads(args.threads)
    for pixels in args.pixels:
        case = step.Case(load_config(args.model), getattr(torch, args.dtype), pixels)
        times = step.compare(step_kinds(case), args.rounds, step.CLOCKS[args.clock])
        print(f"{args.model}, {pixels} px, {args.dtype}, {args.clock} time, ", end="")
        print(f"{torch.get_num_threads()} threads, least of {args.rounds} rounds")
        exact = min(times[EXACT])
        for name, values in times.items():
            share = min(values) / exact
            print(f"  {name:20} {min(values):7.3f} s a step, {share:4.0%}", end="")
            taken = name.endswith("taken over")
            every = [f"interval {n}: {of_interval(share, n):.0%}" for n in INTERVALS if taken]
            print(f" ({', '.join(every)})" if every else "")
        gc.collect()


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add = parser.add_argument
    add("--model", default="sd15", choices=("demo", "sd15", "sd21"), help="Sizes of the networks.")
    add("--pixels", type=int, nargs="+", default=[256, 512], help="Sides of the picture.")
    add("--dtype", default="bfloat16", help="Number type.")
    add("--rounds", type=int, default=3, help="How often each step is timed, in turn.")
    add("--threads", type=int, help="Threads; by default as many as torch chooses.")
    add("--clock", choices=tuple(step.CLOCKS), default="wall", help="Wall or processor time.")
    parser.set_defaults(run=run)
