"""A network that tells decoded pictures from true ones by their patches, and that the decoder learns to fool.

Sources: Isola et al. 2017 (arXiv 1611.07004); its hinge loss, Lim and Ye 2017 (1705.02894).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor, nn

from core.runtime.device import autocast

ADVERSARY = "adversary."  # before the names of its parameters in a decoder's checkpoints
WIDTHS = (48, 96, 192)


class Adversary(nn.Module):
    """Says of each patch whether it is of a true picture (above 0) or of a decoded one."""

    def __init__(self) -> None:
        """Make it with random weights; it sees patches of 38 px."""
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in WIDTHS:
            layers += [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
            channels = width
        layers.append(nn.Conv2d(channels, 1, 3, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Judge pictures (B, 3, H, W) in [-1, 1]: (B, 1, H / 8, W / 8)."""
        with autocast(x.device.type):
            return self.layers(x).float()

    def losses(self, made: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the decoder minimises, to be taken for true, and what the adversary does.

        Both may be added: neither's gradients reach the other's parameters.
        """
        parameters = list(self.parameters())
        learns = parameters[0].requires_grad
        for p in parameters:
            p.requires_grad_(False)
        fooled = -self(made).mean()
        for p in parameters:
            p.requires_grad_(learns)
        seen = F.relu(1.0 - self(true)).mean() + F.relu(1.0 + self(made.detach())).mean()
        return fooled, seen

    def named_for_training(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the parameters as they are named in a decoder's checkpoints."""
        for name, parameter in self.named_parameters():
            yield f"{ADVERSARY}{name}", parameter
