"""The options for how pictures are computed: the same for the page and for folders."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

VAE_DTYPES = ("auto", "float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class Computing:
    """What ``load_pipeline`` is told: see there."""

    vae_dtype: str = "auto"
    compile: bool = False
    graphs: bool | None = None

    @staticmethod
    def read(args: argparse.Namespace) -> Computing:
        """Read a command line that ``add_options`` has described."""
        return Computing(args.vae_dtype, args.compile, False if args.no_graphs else None)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--vae-dtype``, ``--compile`` and ``--no-graphs``."""
    parser.add_argument(
        "--vae-dtype",
        default="auto",
        choices=VAE_DTYPES,
        help="The numbers to decode pictures with: auto takes those of --dtype, on a GPU float16 and, for "
        "pictures that leave its range, float32.",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="Compile the networks: the first picture of every size takes minutes, later ones on a GPU less "
        "time. Without a compiler all runs as usual.",
    )
    parser.add_argument(
        "--no-graphs",
        action="store_true",
        help="On an NVIDIA GPU, do not record steps and replay them (CUDA graphs): slower, in less memory.",
    )
