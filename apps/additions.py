"""The options for what is put onto the base model: the same for the page and for folders."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from core.additions import Lora, loras_text
from core.config import PARAMETERIZATIONS


@dataclass(frozen=True, slots=True)
class Additions:
    """LoRAs, another autoencoder, and the base model that the ControlNets are moved from, where they are.

    ``parameterization`` says what the UNet predicts where its file does not tell.
    """

    loras: tuple[Lora, ...] = ()
    vae: Path | None = None
    transfer_from: str | None = None
    parameterization: str | None = None

    @staticmethod
    def read(args: argparse.Namespace) -> Additions:
        """Read a command line that ``add_options`` has described.

        Raises:
            ValueError: a file is not there, or a LoRA's weight is no number in range.
        """
        loras = tuple(Lora.parse(given) for given in args.lora)
        for lora in loras:
            if not lora.path.is_file():
                raise ValueError(f"--lora {lora.path}: there is no such file.")
        if args.vae is not None and not args.vae.exists():
            raise ValueError(f"--vae {args.vae}: there is no such file.")
        return Additions(loras, args.vae, args.transfer_control, args.parameterization)

    def facts(self) -> Mapping[str, str | None]:
        """Return what pictures depend on, by name; None for what is as usual."""
        return {
            "loras": loras_text(self.loras) or None,
            "vae": None if self.vae is None else self.vae.name,
            "transfer_from": None if self.transfer_from is None else Path(self.transfer_from).name,
            "parameterization": self.parameterization,
        }


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--lora``, ``--vae``, ``--transfer-control`` and ``--parameterization``."""
    parser.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="FILE[:WEIGHT]",
        help="Put a LoRA on the base model, at this weight or else at 1; give it again for another.",
    )
    parser.add_argument(
        "--vae", type=Path, metavar="FILE", help="Decode with the autoencoder in this file instead."
    )
    parser.add_argument(
        "--transfer-control",
        metavar="BASE",
        help="Move the ControlNets from the base model that they were trained on, such as sd15, to --model; "
        "without it they are used as they are.",
    )
    parser.add_argument(
        "--parameterization",
        choices=PARAMETERIZATIONS,
        help="What the UNet predicts, noise (eps) or v, where a checkpoint does not tell: pictures are noise "
        "with the wrong one.",
    )
