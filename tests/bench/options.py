"""Time a step with each option that trades exactness for speed, on random weights."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from core.pipeline import ControlNetPipeline
from core.request import Progress, Request
from tests.bench.step import CLOCKS, Clock
from tests.bench.variants import random_pipeline, request

EXACT = "all off"


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


def option_cases(intervals: tuple[int, ...] = (2, 3, 5)) -> list[Case]:
    """Return each option alone, after none."""
    return [
        Case(EXACT, EXACT),
        *(Case(f"control until {end:.0%} of the steps", EXACT, {}, {"end": end}) for end in (0.75, 0.5)),
        *(Case(f"control interval {n}", EXACT, {"control_interval": n}) for n in intervals),
        *(Case(f"cache interval {n}", EXACT, {"cache_interval": n}) for n in intervals),
        *(Case(f"token merging {r:g}", EXACT, {"token_merging_ratio": r}) for r in (0.25, 0.5, 0.75)),
    ]


def step_seconds(pipe: ControlNetPipeline, asked: Request, clock: Clock) -> float:
    """Return the mean seconds of a step of ``asked``, without text, hint and decoding."""
    updates = pipe.sample(asked)
    first = began = 0.0
    for update in updates:
        if isinstance(update, Progress) and update.step == 1:
            first = clock()
        if isinstance(update, Progress) and update.step == update.total:
            began = clock() - first
    return began / (asked.steps - 1)


def run(args: argparse.Namespace) -> None:
    """Print a line for each option: seconds a step, and its share of an exact one's."""
    if args.threads:
        torch.set_num_threads(args.threads)
    pipe = random_pipeline(args.model, getattr(torch, args.dtype))
    base = request("full", args.pixels, args.steps + 1)
    cases = [case for case in option_cases((2, 3)) if not case.unit]
    pipe(replace(base, steps=1))
    least = dict.fromkeys((case.name for case in cases), float("inf"))
    for _ in range(args.rounds):  # in turn, so that what else the machine does meets all alike
        for case in cases:
            seconds = step_seconds(pipe, case.of(base), CLOCKS[args.clock])
            least[case.name] = min(least[case.name], seconds)
    print(f"{args.model}, {args.pixels} px, {args.dtype}, {args.clock} time, ", end="")
    print(f"{torch.get_num_threads()} threads, mean of {args.steps} steps, least of {args.rounds} rounds")
    for name, value in least.items():
        print(f"  {name:22} {value:7.3f} s a step, {value / least[EXACT]:4.0%}")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add = parser.add_argument
    add("--model", default="sd15", choices=("demo", "sd15", "sd21"), help="Sizes of the networks.")
    add("--pixels", type=int, default=512, help="Side of the picture.")
    add("--steps", type=int, default=6, help="Steps that count; best a multiple of 6.")
    add("--dtype", default="bfloat16", help="Number type.")
    add("--rounds", type=int, default=1, help="How often each is drawn, in turn.")
    add("--threads", type=int, help="Threads; by default as many as torch chooses.")
    add("--clock", choices=tuple(CLOCKS), default="wall", help="Wall or processor time.")
    parser.set_defaults(run=run)
