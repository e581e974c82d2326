"""The command line of ``python -m core.training controlnet`` and ``circles``."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import torch

from core.config import CONTROL_VARIANTS
from core.runtime.device import resolve_device
from core.training.circles import PALETTES, write_circles
from core.training.controlnet import ADAM_EPSILON, PRECISIONS, ControlRun, resolve_precision, train_controlnet
from core.training.cost import measure
from core.training.loop import LoopConfig

SD_RATE, DEMO_RATE = 1e-5, 5e-4
DECODER_SHARE = 0.2  # the original advises 2e-6 for an unlocked decoder where 1e-5 is the rate
FLOAT16_SCALE = 2.0**14
STOPPED = 130  # the exit status after Ctrl-C


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add both commands."""
    words = "draw a small data set in the format of fill50k: circles to fill with a colour"
    sub = commands.add_parser("circles", help=words, description=words)
    sub.add_argument("--output", type=Path, required=True, metavar="DIR", help="where to write")
    sub.add_argument("--count", type=int, default=5000, metavar="N", help="pairs (default 5000)")
    sub.add_argument("--size", type=int, default=512, metavar="PX", help="side of a picture (default 512)")
    sub.add_argument(
        "--palette",
        default="css",
        choices=tuple(PALETTES),
        help="colour names: CSS's, or those the demo model knows",
    )
    sub.add_argument("--seed", type=int, default=0, help="of the first circle; each next one is 1 more")
    words = "train a ControlNet on your own pictures; the same command goes on after a stop"
    sub = commands.add_parser("controlnet", help=words, description=words)
    _add_what(sub.add_argument_group("what to train"))
    _add_how(sub.add_argument_group("how to train"))
    _add_memory(sub.add_argument_group("memory and speed"))
    _add_records(sub.add_argument_group("what is written"))


def _add_what(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--base", required=True, metavar="sd15|sd21|demo|PATH", help="the model to control")
    group.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="DIR",
        help="prompt.json, source/ and target/, as of fill50k",
    )
    group.add_argument("--output", type=Path, required=True, metavar="DIR", help="the run's folder")
    group.add_argument("--name", help="of the control, such as canny (default: that of --output)")
    group.add_argument(
        "--variant", choices=CONTROL_VARIANTS, default="full", help="kind of network (default full)"
    )
    group.add_argument(
        "--start", type=Path, metavar="FILE", help="go on from this ControlNet instead of a fresh copy"
    )
    group.add_argument("--size", type=_size, metavar="PX|HxW", help="to train at (default: the base's own)")
    group.add_argument(
        "--sd-locked", action=argparse.BooleanOptionalAction, default=True,
        help="leave the base's decoder as it is (default); unlocked it learns too, at --decoder-rate",
    )  # fmt: skip
    group.add_argument("--only-mid-control", action="store_true", help="control the middle block alone")


def _add_how(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--steps", type=_count, default=4000, metavar="N", help="in all runs together (default 4000)"
    )
    group.add_argument("--minutes", type=float, metavar="M", help="end this run after so long")
    group.add_argument(
        "--batch", type=_count, metavar="N", help="pairs computed at once in a process (default 4)"
    )
    group.add_argument(
        "--accumulate", type=_count, metavar="N", help="batches whose gradients make one step (default 1)"
    )
    group.add_argument(
        "--rate", type=_positive, help=f"learning rate (default {SD_RATE:g}, demo {DEMO_RATE:g})"
    )
    group.add_argument(
        "--decoder-rate", type=_positive, help="with --no-sd-locked (default: a fifth of --rate)"
    )
    group.add_argument(
        "--warmup", type=int, default=0, metavar="N", help="first steps, over which the rate rises"
    )
    group.add_argument(
        "--decay", type=int, default=0, metavar="N", help="last steps, over which it falls to zero"
    )
    group.add_argument(
        "--clip", type=float, default=1.0, help="largest norm of a gradient; 0 clips nothing (default 1)"
    )
    group.add_argument(
        "--ema", type=_share, default=0.0, metavar="D", help="moving average, such as 0.999 (default none)"
    )
    group.add_argument(
        "--drop-prompts",
        type=_share,
        default=0.5,
        metavar="P",
        help="share trained without prompt (default 0.5)",
    )
    group.add_argument("--seed", type=int, default=0, help="of data order, noise and prompt dropping")


def _add_memory(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="to compute in, and to store what is locked in; auto (default) is bfloat16 where the device has "
        "it, else float32; half is float16 instead of the latter",
    )
    switch = argparse.BooleanOptionalAction
    group.add_argument(
        "--gradient-checkpointing", action=switch, help="compute activations twice instead of keeping them"
    )
    group.add_argument("--cache", action=switch, help="encode pictures and prompts once, to the disk")
    group.add_argument("--offload", action=switch, help="keep the optimiser in main memory")
    group.add_argument(
        "--low-vram", action="store_true",
        help="for GPUs of 8 GB: 16 bits, --gradient-checkpointing, --cache, --offload, --batch 1 and "
        "--accumulate 4, but for what is given otherwise",
    )  # fmt: skip
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps")
    group.add_argument(
        "--measure", action="store_true", help="only measure time and memory of a step, and end"
    )


def _add_records(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--save-every", type=_count, default=500, metavar="N", help="steps (default 500)")
    group.add_argument(
        "--keep", type=_count, default=3, metavar="N", help="checkpoints that stay (default 3)"
    )
    group.add_argument(
        "--validate-every", type=int, default=0, metavar="N", help="steps; 0 is never (default)"
    )
    group.add_argument(
        "--validation", type=Path, metavar="DIR", help="pairs to draw (default: the first of --data)"
    )
    group.add_argument("--validate-count", type=_count, default=4, metavar="N", help="how many (default 4)")
    group.add_argument(
        "--cfg-scale", type=float, metavar="S", help="guidance when drawing (default: the base's)"
    )
    group.add_argument("--tensorboard", action="store_true", help="write to OUTPUT/tensorboard too")


def _size(text: str) -> tuple[int, int]:
    sides = (
        [int(side) for side in text.lower().split("x")] if re.fullmatch(r"\d+(x\d+)?", text.lower()) else []
    )
    if not sides or any(side < 64 or side % 64 for side in sides):
        raise argparse.ArgumentTypeError(
            f"{text!r}: give multiples of 64, such as 512 or 512x768 (height x width)."
        )
    return sides[0], sides[-1]


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number from 1.")
    return int(text)


def _positive(text: str) -> float:
    value = _number(text)
    if not 0.0 < value < 1.0:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number above 0 and below 1, such as 1e-5.")
    return value


def _share(text: str) -> float:
    value = _number(text)
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number from 0 to 1.")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def control_run(args: argparse.Namespace) -> ControlRun:
    """Turn a parsed command line into a run.

    Raises:
        ValueError: a value is not allowed; says what is.
    """
    low = args.low_vram
    name = args.name or args.output.resolve().name
    if not re.fullmatch(r"[\w-]+", name):
        raise ValueError(f"name is {name!r}: give one of letters, digits, _ and -, by --name.")
    rate = args.rate or (DEMO_RATE if args.base == "demo" else SD_RATE)
    precision = resolve_precision(args.precision or ("half" if low else "auto"), resolve_device(args.device))
    loop = LoopConfig(
        output=args.output,
        steps=args.steps,
        minutes=args.minutes,
        learning_rate=rate,
        warmup=args.warmup,
        decay=args.decay,
        ema_decay=args.ema,
        clip_norm=args.clip,
        save_every=args.save_every,
        seed=args.seed,
        accumulate=args.accumulate or (4 if low else 1),
        keep=args.keep,
        offload=low if args.offload is None else args.offload,
        loss_scale=FLOAT16_SCALE if precision == torch.float16 else 1.0,
        epsilon=ADAM_EPSILON,
    )
    return ControlRun(
        base=args.base,
        data=args.data,
        name=name,
        loop=loop,
        variant=args.variant,
        batch=args.batch or (1 if low else 4),
        size=args.size,
        sd_locked=args.sd_locked,
        decoder_rate=args.decoder_rate or DECODER_SHARE * rate,
        only_mid_control=args.only_mid_control,
        drop_prompts=args.drop_prompts,
        precision=precision,
        recompute=low if args.gradient_checkpointing is None else args.gradient_checkpointing,
        cache=low if args.cache is None else args.cache,
        start=args.start,
        validation=args.validation,
        validate_every=args.validate_every,
        validate_count=args.validate_count,
        cfg_scale=args.cfg_scale,
        tensorboard=args.tensorboard,
        device=args.device,
    )


def run_command(args: argparse.Namespace) -> int:
    """Run one of both commands; return the exit status.

    Raises:
        ValueError, SuiteError: as ``train_controlnet`` and ``write_circles``.
    """
    if args.command == "circles":
        write_circles(args.output, args.count, side=args.size, palette=args.palette, seed=args.seed)
        print(f"{args.count:,} pairs in {args.output}. Train on them: --data {args.output}")
        return 0
    run = control_run(args)
    if args.measure:
        print(measure(run))
        return 0
    return STOPPED if train_controlnet(run) else 0
