"""A network that tells decoded pictures from true ones by their patches, and that the decoder learns to fool.

It looks at the pixels and at what HED's first blocks make of them: eyes that know photographs tell more apart
than it could learn to see in an hour. Sources: patches, Isola et al. 2017 (arXiv 1611.07004); the hinge loss,
Lim and Ye 2017 (1705.02894); features that stay as they are, Sauer et al. 2021 (2111.01007).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.runtime.device import autocast
from core.training.detectors.critics import HED_WIDTHS

ADVERSARY = "adversary."  # before the names of its parameters in a decoder's checkpoints
WIDTHS = ((3, 48, 96, 192), *((width, 64, 96) for width in HED_WIDTHS))


class Adversary(nn.Module):
    """Says of each patch whether it is of a true picture (above 0) or of a decoded one."""

    def __init__(self) -> None:
        """Make it with random weights."""
        super().__init__()
        self.heads = nn.ModuleList(_head(widths) for widths in WIDTHS)

    def forward(self, views: Sequence[Tensor]) -> list[Tensor]:
        """Judge pictures (B, 3, H, W) in [-1, 1] and their features: a map (B, 1, h, w) of each view."""
        with autocast(views[0].device.type):
            return [head(view).float() for head, view in zip(self.heads, views, strict=True)]

    def losses(self, made: Sequence[Tensor], true: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return what the decoder minimises, to be taken for true, and what the adversary does.

        Both may be added: neither's gradients reach the other's parameters.
        """
        sizes = [view.abs().mean().clamp(min=1e-6) for view in true]
        made = [view / size for view, size in zip(made, sizes, strict=True)]
        true = [view / size for view, size in zip(true, sizes, strict=True)]
        parameters = list(self.parameters())
        learns = parameters[0].requires_grad
        for p in parameters:
            p.requires_grad_(False)
        fooled = _mean([-said for said in self(made)])
        for p in parameters:
            p.requires_grad_(learns)
        of_true, of_made = self(true), self([view.detach() for view in made])
        seen = _mean([F.relu(1.0 - said) for said in of_true]) + _mean(
            [F.relu(1.0 + said) for said in of_made]
        )
        return fooled, seen

    def named_for_training(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the parameters as they are named in a decoder's checkpoints."""
        for name, parameter in self.named_parameters():
            yield f"{ADVERSARY}{name}", parameter


def _head(widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, width in zip(widths, widths[1:], strict=False):
        layers += [nn.Conv2d(before, width, 4, 2, 1), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 3, padding=1))


def _mean(said: Sequence[Tensor]) -> Tensor:
    return torch.stack([part.mean() for part in said]).mean()
