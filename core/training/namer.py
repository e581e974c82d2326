"""Networks that name the thing in a picture, with gradients: the base learns from them, see ``naming``.

They are others than the judge of words, which measures what came of it: plain ones, of smaller pictures,
which learned from other sprites.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from core.training.classifier import BATCH, SOFTNESS, sprite_loop, train_on_sprites
from core.training.toyworld.sprites import SpriteLibrary

SIDE = 96  # px: of the pictures that they learn from
WIDTHS = (32, 64, 128, 256)
STEPS = 4000


class Namer(nn.Module):
    """Names the one thing in a picture, among the things of ``names``."""

    def __init__(self, names: Sequence[str]) -> None:
        """Make the network with random weights."""
        super().__init__()
        self.names = tuple(names)
        layers: list[nn.Module] = []
        channels = 3
        for width in WIDTHS:
            stride = 2 if channels == 3 else 1
            layers += [nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)]
            layers += [nn.ReLU(inplace=True), nn.MaxPool2d(2)]
            channels = width
        self.features = nn.Sequential(*layers[:-1])
        self.head = nn.Linear(channels, len(self.names))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, names) of pictures (B, 3, H, W) in [-1, 1], sides of about SIDE."""
        features: Tensor = self.features(x)
        logits: Tensor = self.head(features.amax((2, 3)))
        return logits


def load_or_train_namers(
    library: SpriteLibrary, runs: Path, device: torch.device, *, minutes: float | None = None
) -> list[Namer]:
    """Return a network for each ``Softness``; do what their training in ``runs`` still lacks.

    It ends after so many ``minutes``, if given, shared by the networks.
    """
    each = None if minutes is None else minutes / len(SOFTNESS)
    return [train_namer(library, number, runs, device, minutes=each) for number in range(len(SOFTNESS))]


def train_namer(
    library: SpriteLibrary, number: int, runs: Path, device: torch.device, *, minutes: float | None = None
) -> Namer:
    """Return the network for the ``Softness`` with this number, as ``load_or_train_namers`` does for all."""
    output = runs / f"namer_{len(library.specs)}_{SIDE}_{number}"
    loop = sprite_loop(output, STEPS, minutes, seed=1 + number)
    return train_on_sprites(
        Namer, library, SOFTNESS[number], loop, side=SIDE, batch_size=BATCH, device=device
    )
