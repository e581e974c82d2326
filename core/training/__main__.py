"""Command line of training: each stage is one command, resumes where it stopped, and prints its own help."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from core.config import ModelConfig, load_config, with_variant
from core.errors import SuiteError
from core.training import variants_cli
from core.training.allocator import keep_freed_memory
from core.training.controlnet_cli import add_commands, run_command
from core.training.demo_cli import CKPTS, RUNS, add_stages

if TYPE_CHECKING:
    import torch

    from core.training.loop import LoopConfig


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    top = argparse.ArgumentParser(prog="python -m core.training", description=__doc__)
    top.add_argument("--config", default="demo", help="model config: a name or a YAML path (default demo)")
    commands = top.add_subparsers(dest="command", required=True)
    add_stages(commands)
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
    STAGES[args.command](args, load_config(args.config))
    return 0


def _loop(args: argparse.Namespace, run: str) -> LoopConfig:
    from core.training.loop import LoopConfig

    return LoopConfig(
        output=args.runs / run,
        steps=args.steps,
        minutes=args.minutes,
        learning_rate=args.rate,
        warmup=args.warmup,
        decay=args.decay,
        muon=args.optimizer == "muon",
        fall=args.fall,
        seed=args.seed,
    )


def _device(args: argparse.Namespace) -> torch.device:
    from core.runtime.device import resolve_device

    return resolve_device(args.device)


def _render(args: argparse.Namespace, config: ModelConfig) -> None:
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
        framed=args.framed,
        workers=args.workers,
    )


def _hints(args: argparse.Namespace, config: ModelConfig) -> None:
    from core.training.hints import cache_hints
    from core.training.toyworld.sprites import default_cache_dir

    cache_hints(args.data, args.control, default_cache_dir(), count=args.count, workers=args.workers)


def _encoder(args: argparse.Namespace, config: ModelConfig) -> None:
    from core.training.vae import fit_autoencoder

    fit_autoencoder(config, args.data, args.runs / "vae")


def _latents(args: argparse.Namespace, config: ModelConfig) -> None:
    from core.training.demo import make_latents

    make_latents(config, args.data, args.runs / "vae", args.count, _device(args))


def _decoder(args: argparse.Namespace, config: ModelConfig) -> None:
    from core.training.data import Redrawn
    from core.training.vae import train_decoder

    train_decoder(
        config,
        args.data,
        _loop(args, "vae"),
        batch_size=args.batch,
        detectors=args.detectors,
        adversary=args.adversary,
        redrawn=Redrawn.open(args.data) if args.redrawn else None,
        device=_device(args),
    )


def _redraw(args: argparse.Namespace, config: ModelConfig) -> None:
    from core.training.redraw import redraw

    redraw(config, args.data, args.ckpts, args.count, device=_device(args))


def _words(args: argparse.Namespace, config: ModelConfig) -> None:
    from core.training.toyworld.sprites import SpriteLibrary
    from core.training.words import fit_words

    count = fit_words(config, SpriteLibrary.load(), args.runs / "vae", args.runs / "base")
    print(f"{count} words")


def _base(args: argparse.Namespace, config: ModelConfig) -> None:
    from core.training.base import train_base

    train_base(
        config,
        args.data,
        _loop(args, "base"),
        batch_size=args.batch,
        crop=args.crop,
        late=args.late,
        framed=args.framed,
        device=_device(args),
    )


def _control(args: argparse.Namespace, config: ModelConfig) -> None:
    from core.training.demo import train_demo_control

    name = args.control if args.variant == "full" else f"{args.control}-{args.variant}"
    train_demo_control(
        with_variant(config, args.variant),
        args.data,
        args.runs / "base",
        _loop(args, f"control_{name}"),
        control=args.control,
        batch_size=args.batch,
        output=args.ckpts / f"{name}.safetensors",
        crop=args.crop,
        over=args.over,
        device=_device(args),
    )


def _controls(args: argparse.Namespace, config: ModelConfig) -> None:
    from core.training.demo import train_demo_controls

    train_demo_controls(
        config,
        args.data,
        args.runs / "base",
        _loop(args, "controls"),
        turns=args.turns,
        batch_size=args.batch,
        ckpts=args.ckpts,
        crop=args.crop,
        framed=args.framed,
        close=args.close,
        device=_device(args),
    )


def _feedback(args: argparse.Namespace, config: ModelConfig) -> None:
    from core.training.feedback import train_feedback

    train_feedback(
        config,
        args.data,
        args.ckpts,
        args.control,
        _loop(args, f"feedback_{args.control}"),
        batch_size=args.batch,
        device=_device(args),
    )


def _naming(args: argparse.Namespace, config: ModelConfig) -> None:
    from core.training.namer import load_or_train_namers
    from core.training.naming import train_control_naming, train_naming
    from core.training.toyworld.sprites import SpriteLibrary

    device, batch = _device(args), args.batch
    namers = load_or_train_namers(SpriteLibrary.load(), args.runs, device)
    if args.control is None:
        loop = _loop(args, "naming")
        train_naming(
            config, args.data, args.framed, args.ckpts, namers, loop, batch_size=batch, device=device
        )
    else:
        loop = _loop(args, f"naming_{args.control}")
        train_control_naming(
            config, args.data, args.ckpts, args.control, namers, loop, batch_size=batch, device=device
        )


def _stream(args: argparse.Namespace, config: ModelConfig) -> None:
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
        framed=args.framed,
        close=args.close,
        workers=args.workers,
        compiled=args.compile,
        export_every=args.export_every,
    )
    # Minutes on a GPU are few: it saves at the end alone.
    loop = replace(_loop(args, "stream"), save_every=1_000_000)
    train_streamed(config, SpriteLibrary.load(), run, loop, _device(args))


def _detector(args: argparse.Namespace, config: ModelConfig) -> None:
    from core.training.detectors.train import TASKS, train_detector
    from core.training.toyworld.sprites import SpriteLibrary, default_cache_dir

    device = _device(args)
    SpriteLibrary.load()  # fetched once, before other processes ask for them
    train_detector(
        args.detector,
        default_cache_dir(),
        _loop(args, f"detector_{args.detector}"),
        batch_size=args.batch,
        device=device,
        workers=args.workers,
        output=args.ckpts / TASKS[args.detector].file,
        start=args.start,
        side=args.side,
    )


def _unpack(args: argparse.Namespace, config: ModelConfig) -> None:
    from core.training.start import unpack

    unpack(config, args.base, args.runs / "vae", args.runs / "base")


def _export(args: argparse.Namespace, config: ModelConfig) -> None:
    from core.training.demo import export_demo_base

    export_demo_base(config, args.runs / "vae", args.runs / "base", args.ckpts / "base.safetensors")


def _carry(args: argparse.Namespace, config: ModelConfig) -> None:
    from core.training.demo import carry_controls

    print(", ".join(carry_controls(config, args.ckpts, args.runs / "base", args.runs)))


def _average(args: argparse.Namespace, config: ModelConfig) -> None:
    from core.training.average import average

    print(", ".join(average(args.folders, args.ckpts, args.weights)))


def _split(args: argparse.Namespace, config: ModelConfig) -> None:
    from core.training.parts import split

    print(f"{len(split(args.file, args.folder))} parts in {args.folder}")


def _join(args: argparse.Namespace, config: ModelConfig) -> None:
    from core.training.parts import join

    join(args.folder, args.file)


def _classifier(args: argparse.Namespace, config: ModelConfig) -> None:
    from core.training.demo import train_judge

    print(train_judge(args.runs, args.minutes, _device(args)))


def _evaluate(args: argparse.Namespace, config: ModelConfig) -> None:
    from core.training.demo import evaluate_control, evaluate_demo, evaluate_detector

    if args.detector is not None:
        print(evaluate_detector(args.detector, args.count, args.sheet))
    elif args.control is not None:
        print(evaluate_control(args.control, args.count, args.steps, args.sheet, args.batch))
    else:
        print(evaluate_demo(args.count, args.steps, args.runs, args.sheet, args.batch))


STAGES: dict[str, Callable[[argparse.Namespace, ModelConfig], None]] = {
    "render": _render,
    "hints": _hints,
    "encoder": _encoder,
    "latents": _latents,
    "decoder": _decoder,
    "redraw": _redraw,
    "words": _words,
    "base": _base,
    "control": _control,
    "controls": _controls,
    "feedback": _feedback,
    "naming": _naming,
    "stream": _stream,
    "detector": _detector,
    "unpack": _unpack,
    "export": _export,
    "carry": _carry,
    "average": _average,
    "split": _split,
    "join": _join,
    "classifier": _classifier,
    "evaluate": _evaluate,
    "variants": variants_cli.run_command,
}


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
