"""The drawn maps in tests/golden/pose, what the original finds in them, and networks that give them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

GOLDEN = Path(__file__).parents[1] / "golden" / "pose"
CASES = ("all", "missing", "occluded", "none")
SIZE = (320, 384)  # of the picture
INNER = (184, 221)  # of the network's input, without its padding


def golden(name: str) -> dict[str, NDArray[np.float32]]:
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


BODIES, HANDS = golden("bodies"), golden("hands")


def drawn(name: str) -> NDArray[np.uint8]:
    if name == "pose.none":
        return np.zeros((*SIZE, 3), np.uint8)
    return np.array(Image.open(GOLDEN / f"{name}.png"))


class DrawnBody(nn.Module):
    """Gives the maps of a case, whatever it sees, and remembers what it saw."""

    def __init__(self, case: str) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.maps = tuple(torch.from_numpy(BODIES[f"{case}.{key}"]) for key in ("L1", "L2"))
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        self.seen.append(x)
        return self.maps


class DrawnHands(nn.Module):
    """Gives the maps of two hands by turns, scale by scale."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.from_numpy(HANDS[f"map{self.calls % 8}"])
        self.calls += 1
        assert [8 * side for side in maps.shape[2:]] == list(x.shape[2:])
        return maps
