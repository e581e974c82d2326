"""What a faster picture costs: seconds beside the control's F1, on held-out scenes with the demo model."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from core.pipeline import ControlNetPipeline
from core.request import ControlUnit, Request
from core.sampling.samplers import SAMPLERS
from core.training.evaluate_variants import lines, mean_and_error
from core.training.figures import edge_f1
from tests.bench.options import Case, option_cases
from tests.bench.step import CLOCKS, Clock

Image = NDArray[np.uint8]
STEPS = (4, 6, 8, 10, 15, 20, 30)
LONG = 100  # steps of the picture that a sampler's others are compared with
USUAL = "ddim", 20  # what a request has that says nothing
SAME_DB = 99.0  # stands for no difference at all


@dataclass
class Measured:
    """What one case gave, scene by scene: seconds, F1 against the edges, PSNR to the picture it is like."""

    seconds: list[float] = field(default_factory=list)
    f1: list[float] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)


def sampler_name(sampler: str, steps: int) -> str:
    """Return the name of the case of a sampler with so many steps."""
    return f"{sampler}, {steps} steps"


def sampler_cases(samplers: Sequence[str], steps: Sequence[int]) -> list[Case]:
    """Return every sampler with every number of steps, compared with itself at LONG steps.

    First comes what a request has that says nothing: F1 is compared with that.
    """
    pairs = [USUAL, *((s, n) for s in samplers for n in steps if (s, n) != USUAL)]
    pairs += [(s, LONG) for s in {s: None for s, _ in pairs} if LONG not in steps]
    return [
        Case(sampler_name(s, n), sampler_name(s, LONG), {"sampler": s, "steps": n}, shown=n in (*steps, 20))
        for s, n in pairs
    ]


def psnr(a: Image, b: Image) -> float:
    """Return the peak signal-to-noise ratio of two pictures in dB, at most SAME_DB."""
    error = float(np.square(a.astype(np.float64) - b).mean())
    return min(SAME_DB, 10 * float(np.log10(255.0**2 / error))) if error else SAME_DB


def measure(
    pipe: ControlNetPipeline,
    scenes: Sequence[tuple[Image, str]],
    cases: Sequence[Case],
    clock: Clock,
    control: str = "canny",
) -> dict[str, Measured]:
    """Draw scenes, pictures with captions, from their edges, in every case.

    The cases take turns, so that what else the machine does meets all alike.
    """
    found = {case.name: Measured() for case in cases}
    for i, (image, caption) in enumerate(tqdm(scenes, desc="scenes", mininterval=10)):
        edges = lines(image)
        unit = ControlUnit(control, np.repeat(edges[:, :, None], 3, axis=2))
        base = Request(caption, (unit,), cfg_scale=pipe.config.cfg_scale, seed=i)
        if i == 0:
            pipe(replace(base, steps=2))  # loads the networks, and warms up
        pictures: dict[str, Image] = {}
        for case in cases:
            asked = case.of(base)
            began = clock()
            pictures[case.name] = pipe(asked).images[0]
            found[case.name].seconds.append(clock() - began)
        for case in cases:
            found[case.name].f1.append(edge_f1(lines(pictures[case.name]), edges))
            found[case.name].psnr.append(psnr(pictures[case.name], pictures[case.like]))
    return found


@dataclass(frozen=True, slots=True)
class Row:
    """A case's figures: medians of seconds, means of the rest, with standard errors over the scenes.

    ``difference`` is to the first case's F1, scene by scene; ``psnr`` is None where a case is like itself.
    """

    name: str
    seconds: float
    f1: float
    f1_error: float
    difference: float
    difference_error: float
    psnr: float | None


def rows(cases: Sequence[Case], found: Mapping[str, Measured]) -> list[Row]:
    """Return the figures of the cases that are shown; the first is what F1 is compared with."""
    first = found[cases[0].name].f1
    made = []
    for case in (case for case in cases if case.shown):
        m = found[case.name]
        differences = [a - b for a, b in zip(m.f1, first, strict=True)]
        near = None if case.like == case.name else float(np.mean(m.psnr))
        made.append(
            Row(case.name, statistics.median(m.seconds), *mean_and_error(m.f1),
                *mean_and_error(differences), near)
        )  # fmt: skip
    return made


def table(made: Sequence[Row], like: str) -> str:
    """Return the figures as a Markdown table; ``like`` says what the pictures are compared with."""
    lines_ = [
        f"| | seconds | share of the first | edge F1 | to the first | PSNR to {like} |",
        "|---|---|---|---|---|---|",
    ]
    for row in made:
        differs = "" if row is made[0] else f"{row.difference:+.3f} ± {row.difference_error:.3f}"
        near = "" if row.psnr is None else f"{row.psnr:.1f} dB"
        lines_.append(
            f"| {row.name} | {row.seconds:.2f} | {row.seconds / made[0].seconds:.0%} "
            f"| {row.f1:.3f} ± {row.f1_error:.3f} | {differs} | {near} |"
        )
    return "\n".join(lines_)


def held_out(count: int, side: int) -> list[tuple[Image, str]]:
    """Return held-out scenes of the things that the demo model knows, with their captions."""
    from core.training.toyworld.scene import held_out_scenes
    from core.training.toyworld.sprites import SpriteLibrary

    return [(s.image, s.caption) for s in held_out_scenes(SpriteLibrary.load(), count, side, people=False)]


def run(args: argparse.Namespace) -> None:
    """Print a table; write it where asked."""
    from core.loading import load_pipeline

    if args.threads:
        torch.set_num_threads(args.threads)
    pipe = load_pipeline("demo")
    cases, like = sampler_cases(args.samplers, args.steps), f"the same sampler's at {LONG} steps"
    if args.options:
        one = len(args.samplers) == len(args.steps) == 1
        sampler, steps = (args.samplers[0], args.steps[0]) if one else USUAL
        base = {"sampler": sampler, "steps": steps}
        cases = [replace(case, request={**base, **case.request}) for case in option_cases()]
        like = f"the exact one, {sampler_name(sampler, steps)}"
    found = measure(pipe, held_out(args.scenes, pipe.resolution), cases, CLOCKS[args.clock])
    made = rows(cases, found)
    facts = {
        "model": pipe.title, "control": "canny", "scenes": args.scenes, "clock": args.clock,
        "dtype": str(pipe.dtype).removeprefix("torch."), "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }  # fmt: skip
    text = table(made, like)
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    print(text)
    if args.json is not None:
        document = {**facts, "rows": [asdict(row) for row in made]}
        Path(args.json).write_text(json.dumps(document, indent=1) + "\n")
    if args.markdown is not None:
        Path(args.markdown).write_text(text + "\n")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add = parser.add_argument
    add("--samplers", nargs="+", choices=tuple(SAMPLERS), default=tuple(SAMPLERS), help="Which samplers.")
    add("--steps", type=int, nargs="+", default=STEPS, help="With how many steps.")
    add("--options", action="store_true", help="The options for speed, at one sampler and number of steps.")
    add("--scenes", type=int, default=16, help="How many held-out scenes.")
    add("--threads", type=int, help="Threads; by default as many as torch chooses.")
    add("--clock", choices=tuple(CLOCKS), default="cpu", help="Wall or processor time.")
    add("--json", type=Path, help="A file for the figures.")
    add("--markdown", type=Path, help="A file for the table.")
    parser.set_defaults(run=run)
