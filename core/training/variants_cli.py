"""The command line of ``python -m core.training variants``."""

from __future__ import annotations

import argparse
from pathlib import Path

from core.config import CONTROL_VARIANTS, ModelConfig

DECAY_SHARE = 4  # the rate falls to zero over the last quarter of the steps


def add_command(commands: argparse._SubParsersAction, runs: Path, base: Path) -> None:
    """Add the command; ``runs`` is the folder of the demo model's runs, ``base`` its file."""
    words = "train the variants of a Canny control side by side on the demo base, and compare them"
    sub = commands.add_parser("variants", help=words, description=words)
    sub.add_argument("--data", type=Path, default=runs / "scenes", help="folder of the rendered scenes")
    sub.add_argument("--output", type=Path, default=runs / "variants", help="where runs and results go")
    sub.add_argument("--base", type=Path, default=base, help="file of the base model")
    names = CONTROL_VARIANTS
    sub.add_argument("--variants", nargs="+", choices=names, default=names, help="which (default all)")
    sub.add_argument("--steps", type=int, default=1500, help="optimiser steps of each (default 1500)")
    sub.add_argument("--rate", type=float, default=8e-4, help="learning rate (default 8e-4)")
    sub.add_argument("--warmup", type=int, default=30, help="first steps, over which the rate rises")
    sub.add_argument("--decay", type=int, help="last steps, over which it falls to zero (default a quarter)")
    sub.add_argument("--batch", type=int, default=8, help="samples a step (default 8)")
    sub.add_argument("--crop", type=int, default=128, help="train on squares of so many pixels (default 128)")
    sub.add_argument("--seed", type=int, default=0, help="of data order, noise and new weights (default 0)")
    sub.add_argument("--count", type=int, default=24, help="held-out scenes to measure on (default 24)")


def run_command(args: argparse.Namespace, config: ModelConfig) -> None:
    """Train what is not trained yet, measure, print the table, and write it and the sheet to ``--output``."""
    from core.training.loop import LoopConfig
    from core.training.variants import compare_variants, train_variants

    loop = LoopConfig(
        output=args.output,
        steps=args.steps,
        learning_rate=args.rate,
        warmup=args.warmup,
        decay=args.steps // DECAY_SHARE if args.decay is None else args.decay,
        seed=args.seed,
    )
    names = tuple(args.variants)
    train_variants(config, args.base, args.data, loop, names, batch_size=args.batch, crop=args.crop)
    picture = args.output / "sheet.jpg"
    made = compare_variants(
        config,
        args.base,
        args.output,
        names,
        count=args.count,
        batch_size=args.batch,
        crop=args.crop,
        picture=picture,
    )
    (args.output / "table.md").write_text(made + "\n")
    print(f"{made}\n\nPictures: {picture}")
