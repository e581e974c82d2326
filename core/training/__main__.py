"""Command line of training: each stage is one command, resumes where it stopped, and prints its own help."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from core.config import CONTROL_VARIANTS, ModelConfig, load_config, with_variant
from core.errors import SuiteError
from core.training import variants_cli
from core.training.allocator import keep_freed_memory
from core.training.controlnet_cli import add_commands, run_command

if TYPE_CHECKING:
    from core.training.loop import LoopConfig

RUNS = Path("runs/demo")
CKPTS = Path(__file__).parents[2] / "ckpts" / "demo"
DETECTORS = ("depth", "pose", "segmentation")
TURNS = ("canny", "openpose", "seg", "mlsd", "depth", "normal", "hed", "scribble")


def _stage(commands: argparse._SubParsersAction, name: str, words: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=words, description=words)
    parser.add_argument("--data", type=Path, default=RUNS / "scenes", help="folder of the rendered scenes")
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder that holds the runs' checkpoints")
    return parser


def _training(parser: argparse.ArgumentParser, *, steps: int, rate: float, batch: int) -> None:
    parser.add_argument("--steps", type=int, default=steps, help=f"optimiser steps in all (default {steps})")
    parser.add_argument("--minutes", type=float, help="end this run after so long; the next one resumes")
    words = "share of --minutes, at their end, in which the rate falls to zero, for a run ended by the clock"
    parser.add_argument("--fall", type=float, default=0.0, help=words)
    parser.add_argument("--rate", type=float, default=rate, help=f"learning rate (default {rate:g})")
    parser.add_argument("--warmup", type=int, default=100, help="first steps, over which the rate rises")
    parser.add_argument("--decay", type=int, default=0, help="last steps over which the rate falls to zero")
    parser.add_argument("--batch", type=int, default=batch, help=f"samples a step (default {batch})")
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="adamw", help="default adamw")
    _device(parser)


def _device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default auto)")


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    top = argparse.ArgumentParser(prog="python -m core.training", description=__doc__)
    top.add_argument("--config", default="demo", help="model config: a name or a YAML path (default demo)")
    commands = top.add_subparsers(dest="command", required=True)
    sub = _stage(commands, "render", "compose toy-world scenes into --data")
    sub.add_argument("--count", type=int, default=16384, help="scenes (default 16384)")
    sub.add_argument("--first", type=int, default=0, help="seed of the first scene (default 0)")
    sub.add_argument("--size", type=int, default=256, help="side in pixels (default 256)")
    sub.add_argument("--things", type=int, help="only the first so many things (default all)")
    sub.add_argument("--workers", type=int, default=2, help="processes (default 2)")
    sub = _stage(commands, "hints", "make a control's hints of the scenes, with the apps' detectors")
    sub.add_argument("--control", required=True, help="which control")
    sub.add_argument("--count", type=int, default=2048, help="scenes (default 2048)")
    sub.add_argument("--workers", type=int, default=2, help="processes (default 2)")
    _stage(commands, "encoder", "fit the autoencoder in closed form")
    sub = _stage(commands, "latents", "encode the scenes with the fitted encoder")
    sub.add_argument("--count", type=int, help="how many of the scenes (default all)")
    _device(sub)
    sub = _stage(commands, "decoder", "train the decoder on the latents")
    _training(sub, steps=3000, rate=2e-4, batch=8)
    sub.add_argument("--detectors", action="store_true", help="learn what the apps' detectors look at, too")
    sub.add_argument("--adversary", action="store_true", help="learn to be taken for true, too")
    sub.add_argument("--redrawn", action="store_true", help="learn from what redraw drew, too")
    sub = _stage(commands, "redraw", "draw scenes anew with the exported model, for the decoder")
    sub.add_argument("--count", type=int, default=512, help="how many of the scenes (default 512)")
    sub.add_argument("--ckpts", type=Path, default=CKPTS, help="folder of the exported files")
    _device(sub)
    _stage(commands, "words", "give the things' words a code of what they look like")
    sub = _stage(commands, "base", "train the UNet on latents and captions")
    _training(sub, steps=6000, rate=6e-4, batch=16)
    sub.add_argument("--crop", type=int, help="train on squares of so many pixels (default the whole)")
    sub.add_argument("--late", action="store_true", help="more of the noisy time steps, where words decide")
    sub = _stage(commands, "control", "train a ControlNet on the locked base and export it")
    _training(sub, steps=2000, rate=5e-4, batch=16)
    sub.add_argument("--control", default="canny", help="which control (default canny)")
    sub.add_argument("--crop", type=int, help="train on squares of so many pixels (default the whole)")
    sub.add_argument("--over", type=Path, help="exported ControlNet whose trunk to take over")
    sub.add_argument("--variant", default="full", choices=CONTROL_VARIANTS, help="network (default full)")
    sub.add_argument("--ckpts", type=Path, default=CKPTS, help="folder of the exported files")
    sub = _stage(commands, "controls", "train ControlNets that share one trunk and export them")
    _training(sub, steps=3200, rate=1e-3, batch=24)
    words = (
        "whose step it is, again and again in this order; the first control's file carries the trunk; "
        "base: a step without control, and the base learns in all steps, otherwise it is locked"
    )
    choices = (*TURNS, "base")
    sub.add_argument("--turns", nargs="+", choices=choices, default=TURNS, metavar="CONTROL", help=words)
    sub.add_argument("--crop", type=int, help="train on squares of so many pixels (default the whole)")
    sub.add_argument("--ckpts", type=Path, default=CKPTS, help="folder of the exported files")
    sub = _stage(commands, "feedback", "train a ControlNet by what a detector finds in its drawings")
    _training(sub, steps=600, rate=3e-4, batch=4)
    sub.add_argument("--control", required=True, choices=("mlsd", "openpose", "seg"), help="which control")
    sub.add_argument("--ckpts", type=Path, default=CKPTS, help="folder of the exported files")
    sub = _stage(commands, "stream", "train base and ControlNets on a GPU, on scenes made meanwhile")
    _training(sub, steps=1_000_000, rate=1e-3, batch=768)  # smaller ones wait for Python, not for the GPU
    sub.add_argument("--scenes", type=int, default=65536, help="scenes in all (default 65536)")
    sub.add_argument("--truth", type=int, default=16384, help="scenes with all maps (default 16384)")
    sub.add_argument("--workers", type=int, default=14, help="processes that make scenes (default 14)")
    sub.add_argument("--turns", nargs="+", choices=choices, default=choices, metavar="CONTROL", help=words)
    sub.add_argument("--compile", action="store_true", help="faster steps, after a minute or two")
    sub.add_argument("--export-every", type=float, help="minutes after which to write the files meanwhile")
    sub.add_argument("--start", type=Path, default=CKPTS, help="folder of exported files to go on from")
    sub.add_argument("--ckpts", type=Path, default=CKPTS, help="folder of the exported files")
    sub = commands.add_parser("detector", help="train a small detector on the toy world and export it")
    _training(sub, steps=2400, rate=1e-3, batch=8)
    sub.add_argument("--detector", required=True, choices=DETECTORS, help="which detector")
    sub.add_argument("--start", type=Path, help="exported detector that a new run goes on from")
    sub.add_argument("--side", type=int, help="side of all scenes in pixels (default: small ones first)")
    sub.add_argument("--runs", type=Path, default=RUNS, help="folder that holds the runs' checkpoints")
    sub.add_argument("--ckpts", type=Path, default=CKPTS, help="folder of the exported files")
    sub.add_argument("--workers", type=int, default=0, help="more processes, to draw scenes (default 0)")
    sub = _stage(commands, "unpack", "let encoder, latents and base go on from an exported base file")
    sub.add_argument("--base", type=Path, default=CKPTS / "base.safetensors", help="the file")
    sub = _stage(commands, "export", "write the trained base to --ckpts")
    sub.add_argument("--ckpts", type=Path, default=CKPTS, help="folder of the exported files")
    sub = _stage(commands, "carry", "let the controls in --ckpts go on under a base that was trained further")
    sub.add_argument("--ckpts", type=Path, default=CKPTS, help="folder of the controls and their old base")
    sub = commands.add_parser("split", help="write a file in parts of at most 15 MiB, to carry it elsewhere")
    sub.add_argument("file", type=Path, help="such as a run's checkpoint.pt")
    sub.add_argument("folder", type=Path, help="where the parts go")
    sub = commands.add_parser("join", help="put the parts together again")
    sub.add_argument("folder", type=Path, help="where the parts are")
    sub.add_argument("file", type=Path, help="what they become; its name is the parts'")
    sub = commands.add_parser("classifier", help="train the judge of words, which evaluate asks")
    sub.add_argument("--runs", type=Path, default=RUNS, help="folder that holds the runs' checkpoints")
    sub.add_argument("--minutes", type=float, help="end this run after so long; the next one resumes")
    _device(sub)
    sub = commands.add_parser("evaluate", help="measure the bundled demo model on held-out scenes")
    sub.add_argument("--count", type=int, default=256, help="scenes (default 256)")
    sub.add_argument("--steps", type=int, default=20, help="sampling steps (default 20)")
    sub.add_argument(
        "--batch", type=int, default=1, help="pictures drawn at once: 32 suits a GPU (default 1)"
    )
    sub.add_argument("--sheet", type=Path, help="PNG of the first scenes: scene, hint, result")
    sub.add_argument("--runs", type=Path, default=RUNS, help="folder that holds the judge of words")
    sub.add_argument("--control", help="measure only how well this control is obeyed")
    sub.add_argument("--detector", help="measure only this detector: depth, normal, pose or segmentation")
    add_commands(commands)
    variants_cli.add_command(commands, RUNS, CKPTS / "base.safetensors")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status: 1 after an error that was told, 130 after Ctrl-C."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = parser().parse_args(arguments)
    try:
        return _run(args)
    except (ValueError, SuiteError, FileNotFoundError, FloatingPointError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped. The same command goes on from the last checkpoint, if there is one.", file=sys.stderr)
        return 130


def _run(args: argparse.Namespace) -> int:
    if args.command in ("controlnet", "circles"):
        return run_command(args)
    _run_demo(args)
    return 0


def _run_demo(args: argparse.Namespace) -> None:
    if args.command in ("split", "join"):
        from core.training.parts import join, split

        if args.command == "join":
            return join(args.folder, args.file)
        parts = split(args.file, args.folder)
        print(f"{len(parts)} parts in {args.folder}")
        return
    config = load_config(args.config)
    if args.command == "evaluate":
        from core.training.demo import evaluate_control, evaluate_demo, evaluate_detector

        if args.detector is not None:
            print(evaluate_detector(args.detector, args.count, args.sheet))
            return
        if args.control is not None:
            print(evaluate_control(args.control, args.count, args.steps, args.sheet, args.batch))
            return
        print(evaluate_demo(args.count, args.steps, args.runs, args.sheet, args.batch))
        return
    if args.command == "classifier":
        from core.runtime.device import resolve_device
        from core.training.demo import train_judge

        print(train_judge(args.runs, args.minutes, resolve_device(args.device)))
        return
    if args.command == "render":
        from core.training.data import render
        from core.training.toyworld.sprites import default_cache_dir, fetch_sprites

        fetch_sprites(default_cache_dir())
        render(
            args.data,
            default_cache_dir(),
            args.count,
            first_seed=args.first,
            size=args.size,
            things=args.things,
            workers=args.workers,
        )
        return
    if args.command == "detector":
        return run_detector(args)
    if args.command == "stream":
        return run_stream(args, config)
    if args.command == "variants":
        return variants_cli.run_command(args, config)
    if args.command == "hints":
        from core.training.hints import cache_hints
        from core.training.toyworld.sprites import default_cache_dir

        cache_hints(args.data, args.control, default_cache_dir(), count=args.count, workers=args.workers)
        return
    run_stage(args, config)


def run_detector(args: argparse.Namespace) -> None:
    """Train and export a detector."""
    from core.runtime.device import resolve_device
    from core.training.detectors.train import TASKS, train_detector
    from core.training.toyworld.sprites import SpriteLibrary, default_cache_dir

    device = resolve_device(args.device)
    SpriteLibrary.load()  # fetched once, before other processes ask for them
    train_detector(
        args.detector,
        default_cache_dir(),
        _loop(args, args.runs / f"detector_{args.detector}"),
        batch_size=args.batch,
        device=device,
        workers=args.workers,
        output=args.ckpts / TASKS[args.detector].file,
        start=args.start,
        side=args.side,
    )


def run_stream(args: argparse.Namespace, config: ModelConfig) -> None:
    """Train base and ControlNets on scenes that are made meanwhile."""
    from core.runtime.device import resolve_device
    from core.training.streaming import StreamedRun, train_streamed
    from core.training.toyworld.sprites import SpriteLibrary

    run = StreamedRun(
        start=args.start,
        ckpts=args.ckpts,
        data=args.data,
        turns=args.turns,
        batch_size=args.batch,
        scenes=args.scenes,
        with_truth=args.truth,
        workers=args.workers,
        compiled=args.compile,
        export_every=args.export_every,
    )
    # Minutes on a GPU are few: it saves at the end alone.
    loop = replace(_loop(args, args.runs / "stream"), save_every=1_000_000)
    train_streamed(config, SpriteLibrary.load(), run, loop, resolve_device(args.device))


def _loop(args: argparse.Namespace, output: Path) -> LoopConfig:
    from core.training.loop import LoopConfig

    return LoopConfig(
        output=output,
        steps=args.steps,
        minutes=args.minutes,
        learning_rate=args.rate,
        warmup=args.warmup,
        decay=args.decay,
        muon=args.optimizer == "muon",
        fall=args.fall,
    )


def run_stage(args: argparse.Namespace, config: ModelConfig) -> None:
    """Run one training stage."""
    from core.runtime.device import resolve_device
    from core.training import demo
    from core.training.base import train_base
    from core.training.data import Redrawn
    from core.training.start import unpack
    from core.training.vae import fit_autoencoder, train_decoder

    vae_run, base_run = args.runs / "vae", args.runs / "base"
    if args.command == "latents":
        return demo.make_latents(config, args.data, vae_run, args.count, resolve_device(args.device))
    if args.command == "redraw":
        from core.training.redraw import redraw

        return redraw(config, args.data, args.ckpts, args.count, device=resolve_device(args.device))
    if args.command == "encoder":
        return fit_autoencoder(config, args.data, vae_run)
    if args.command == "words":
        from core.training.toyworld.sprites import SpriteLibrary
        from core.training.words import fit_words

        print(f"{fit_words(config, SpriteLibrary.load(), vae_run, base_run)} words")
        return None
    if args.command == "carry":
        print(", ".join(demo.carry_controls(config, args.ckpts, base_run, args.runs)))
        return None
    if args.command == "unpack":
        return unpack(config, args.base, vae_run, base_run)
    if args.command == "export":
        return demo.export_demo_base(config, vae_run, base_run, args.ckpts / "base.safetensors")
    device = resolve_device(args.device)
    if args.command == "feedback":
        from core.training.feedback import train_feedback

        loop = _loop(args, args.runs / f"feedback_{args.control}")
        return train_feedback(
            config, args.data, args.ckpts, args.control, loop, batch_size=args.batch, device=device
        )
    if args.command == "decoder":
        loop = _loop(args, vae_run)
        return train_decoder(
            config,
            args.data,
            loop,
            batch_size=args.batch,
            detectors=args.detectors,
            adversary=args.adversary,
            redrawn=Redrawn.open(args.data) if args.redrawn else None,
            device=device,
        )
    if args.command == "base":
        loop = _loop(args, base_run)
        return train_base(
            config, args.data, loop, batch_size=args.batch, crop=args.crop, late=args.late, device=device
        )
    if args.command == "controls":
        return demo.train_demo_controls(
            config,
            args.data,
            base_run,
            _loop(args, args.runs / "controls"),
            turns=args.turns,
            batch_size=args.batch,
            ckpts=args.ckpts,
            crop=args.crop,
            device=device,
        )
    name = args.control if args.variant == "full" else f"{args.control}-{args.variant}"
    output = args.ckpts / f"{name}.safetensors"
    demo.train_demo_control(
        with_variant(config, args.variant),
        args.data,
        base_run,
        _loop(args, args.runs / f"control_{name}"),
        control=args.control,
        batch_size=args.batch,
        output=output,
        crop=args.crop,
        over=args.over,
        device=device,
    )


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
