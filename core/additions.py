"""What may be put onto a base model when it is loaded, beside its ControlNets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from core.request import check_number

MAX_WEIGHT = 10.0
NUMBER = re.compile(r"[-+.\d]+|[-+]?(nan|inf)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Lora:
    """A LoRA file, and how strongly it counts.

    Raises:
        ValueError: the weight is not a number from -10 to 10.
    """

    path: Path
    weight: float = 1.0

    def __post_init__(self) -> None:
        """Check the weight."""
        check_number(f"the weight of {self.path.name}", self.weight, -MAX_WEIGHT, MAX_WEIGHT)

    @staticmethod
    def parse(given: str | Path | Lora) -> Lora:
        """Read "FILE" or "FILE:WEIGHT"; a colon before anything but a number belongs to the name.

        Raises:
            ValueError: as above.
        """
        if isinstance(given, Lora):
            return given
        name, _, weight = str(given).rpartition(":")
        if not name or not NUMBER.fullmatch(weight):
            return Lora(Path(given))
        try:
            return Lora(Path(name), float(weight))
        except ValueError as error:
            if "could not convert" not in str(error):
                raise
            raise ValueError(f"{given}: give FILE or FILE:WEIGHT, such as style.safetensors:0.8.") from None

    def __str__(self) -> str:
        """Return the file's name and the weight, as pictures tell it."""
        return f"{self.path.stem}:{self.weight:g}"


def loras_text(loras: Sequence[Lora]) -> str:
    """Name LoRAs in a line."""
    return ", ".join(map(str, loras))
