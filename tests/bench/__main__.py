"""Command line of the measurements: ``python -m tests.bench compare|step|memory|...``, see --help."""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

from core.config import CONTROL_VARIANTS
from tests.bench import (
    compare,
    detectors,
    grid,
    load,
    memory,
    options,
    quality,
    serve,
    step,
    variants,
    visitors,
    vram,
)

PHOTO = Path(__file__).resolve().parents[2] / "test_imgs" / "photo_cat.jpg"


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    p = argparse.ArgumentParser(prog="python -m tests.bench", description="Measure speed and memory.")
    commands = p.add_subparsers(required=True)

    c = commands.add_parser("compare", help="Ours beside diffusers, in one run; what no command means too.")
    c.add_argument("--model", default="sd15", choices=("demo", "sd15"), help="Sizes of the networks.")
    c.add_argument("--pixels", type=int, nargs="+", default=[256, 512], help="Sides of the pictures.")
    c.add_argument("--batch", type=int, nargs="+", default=[1, 4], help="Pictures at once.")
    c.add_argument(
        "--dtype",
        nargs="+",
        default=["auto", "float32"],
        help="Ours, and diffusers' best; auto as launch.py.",
    )
    c.add_argument("--device", default="auto", help="Where: auto, cpu, cuda.")
    c.add_argument(
        "--steps", type=int, default=4, help="Sampling steps of a picture; the first is not timed."
    )
    c.add_argument("--rounds", type=int, default=3, help="How often each peer draws, in turn.")
    c.add_argument("--threads", type=int, help="Threads; by default as many as torch chooses.")
    c.add_argument("--compile", action="store_true", help="Ours and diffusers compiled, too.")
    c.add_argument("--low-vram", action="store_true", help="Ours with --low-vram, too.")
    c.add_argument("--no-alone", action="store_true", help="No loading times, first pictures and memory.")
    c.add_argument("--profile", action="store_true", help="Instead: where the time goes, of the first case.")
    c.add_argument("--output", type=Path, help="Write the table here, as .md and .json.")
    c.set_defaults(run=compare.run)

    s = commands.add_parser("step", help="Seconds a step of SD 1.5 with one ControlNet, random weights.")
    s.add_argument("--pixels", type=int, nargs="+", default=[256, 512], help="Sides of the picture.")
    s.add_argument("--dtype", nargs="+", default=["bfloat16", "float32"], help="Number types.")
    s.add_argument("--rounds", type=int, default=5, help="How often each step is timed, in turn.")
    s.add_argument("--threads", type=int, help="Threads; by default as many as torch chooses.")
    s.add_argument("--clock", choices=tuple(step.CLOCKS), default="wall", help="Wall or processor time.")
    s.add_argument("--plain", action="store_true", help="Do not pack the weights.")
    s.add_argument(
        "--against",
        choices=("diffusers", "plain", "nothing"),
        default="diffusers" if find_spec("diffusers") else "nothing",
        help="What to time in turn with ours: diffusers (when installed), or ours without packed weights.",
    )
    s.set_defaults(run=step.run)

    v = commands.add_parser("variants", help="Seconds a picture with each variant of a ControlNet.")
    v.add_argument("--model", default="sd15", choices=("demo", "sd15", "sd21"), help="Sizes of the networks.")
    v.add_argument("--variants", nargs="+", choices=CONTROL_VARIANTS, default=CONTROL_VARIANTS, help="Which.")
    v.add_argument("--pixels", type=int, default=256, help="Side of the picture.")
    v.add_argument("--steps", type=int, default=20, help="Sampling steps.")
    v.add_argument("--dtype", default="bfloat16", help="Number type.")
    v.add_argument("--rounds", type=int, default=3, help="How often each is drawn, in turn.")
    v.add_argument("--threads", type=int, help="Threads; by default as many as torch chooses.")
    v.add_argument("--clock", choices=tuple(step.CLOCKS), default="wall", help="Wall or processor time.")
    v.set_defaults(run=variants.run)

    o = commands.add_parser("options", help="Seconds a step with each option for speed.")
    options.add_options(o)

    q = commands.add_parser("quality", help="What faster pictures cost: control F1 of the demo model.")
    quality.add_options(q)

    m = commands.add_parser("memory", help="Peak resident memory of a whole process that draws two pictures.")
    m.add_argument("--dtype", default="bfloat16", help="Number type.")
    m.set_defaults(run=memory.run)

    v = commands.add_parser("vram", help="Megabytes on the device in each phase with --low-vram, added up.")
    v.add_argument("--model", default="sd15", help="Which model; its weights are not needed.")
    v.add_argument("--pixels", type=int, default=512, help="Side of the picture.")
    v.add_argument("--samples", type=int, default=4, help="Pictures at once.")
    v.add_argument("--controls", type=int, default=1, help="Controls that act in the step.")
    v.add_argument("--vae-dtype", default="float32", help="What to measure the autoencoder in.")
    v.add_argument("--only", choices=tuple(vram.PHASES), help="One phase; by default all.")
    v.add_argument("--no-plain", action="store_true", help="Do not decode plainly, which takes most memory.")
    v.set_defaults(run=vram.run)

    page = commands.add_parser("page", help="Seconds from launch.py to the page's answer.")
    page.set_defaults(run=serve.run_page)
    picture = commands.add_parser("picture", help="Seconds of the first and later pictures, through the API.")
    picture.add_argument("--image", type=Path, default=PHOTO, help="The picture to start from.")
    picture.set_defaults(run=serve.run_picture)

    o = commands.add_parser("load", help="Seconds to load a model beside those to read its files once.")
    o.add_argument("--model", default="sd15", choices=("demo", "sd15", "sd21"), help="Sizes of the networks.")
    o.add_argument("--dtype", nargs="+", default=["auto", "float16"], help="Number formats.")
    o.add_argument("--rounds", type=int, default=3, help="How often; the least counts.")
    o.add_argument("--threads", type=int, help="Threads; by default as many as torch chooses.")
    o.add_argument("--cold", action="store_true", help="From the disk, not from the system's cache.")
    o.set_defaults(run=load.run)

    g = commands.add_parser("grid", help="A picture of what every app makes of held-out toy scenes.")
    g.add_argument("output", type=Path, help="The file to write.")
    g.add_argument("--apps", nargs="+", default=grid.APPS, help="Which; by default the nine of 1.0.")
    g.add_argument("--model", default="demo", help="Which model.")
    g.add_argument("--count", type=int, default=16, help="How many scenes.")
    g.add_argument("--steps", type=int, default=20, help="Sampling steps.")
    g.set_defaults(run=grid.run)

    q = commands.add_parser("visitors", help="Pictures a minute with several visitors at once.")
    q.add_argument("--visitors", type=int, default=4, help="How many.")
    q.add_argument("--max-batch", type=int, nargs="+", default=[1, 4], help="Limits of a batch to compare.")
    q.add_argument("--image", type=Path, default=PHOTO, help="The picture to start from.")
    q.set_defaults(run=visitors.run)

    d = commands.add_parser("detectors", help="Milliseconds a picture of every detector.")
    d.add_argument("--only", nargs="+", help="Names of detectors; by default all.")
    d.add_argument("--image", type=Path, default=PHOTO, help="The picture to look at.")
    d.add_argument("--pixels", type=int, default=512, help="Side of the picture.")
    d.add_argument("--resolution", type=int, help="Side at which to detect; by default the picture's.")
    d.add_argument("--rounds", type=int, default=3, help="How often each is timed, in turn.")
    d.add_argument("--threads", type=int, help="Threads; by default as many as torch chooses.")
    d.add_argument("--clock", choices=tuple(step.CLOCKS), default="wall", help="Wall or processor time.")
    d.set_defaults(run=detectors.run)

    for command in (m, page, picture, q):
        command.add_argument("--model", default="demo", choices=("demo", "sd15", "sd21"), help="Which model.")
        command.add_argument(
            "--weights",
            choices=("bundled", "random"),
            default="bundled",
            help="bundled: those in ckpts/; random: written to a temporary folder first (SD 1.5: 2.8 GB).",
        )
    for command in (m, picture, q):
        command.add_argument("--pixels", type=int, default=256, help="Side of the picture.")
        command.add_argument("--steps", type=int, default=20, help="Sampling steps.")
    for command in (page, picture, q):
        command.add_argument("--rounds", type=int, default=3, help="How often; of pictures, the later ones.")
    return p


if __name__ == "__main__":
    arguments = parser().parse_args(sys.argv[1:] or ["compare"])
    arguments.run(arguments)
