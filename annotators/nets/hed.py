"""HED, holistically-nested edge detection: VGG-16 whose five blocks each say where they see an edge."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from annotators.nets.quick import use_winograd, when_loaded

SMALLEST = 16  # pixels a side: below, the fourth pooling would leave nothing
CHANNELS = ((3, 64, 2), (64, 128, 2), (128, 256, 3), (256, 512, 3), (512, 512, 3))  # in, out, convolutions


class Block(nn.Module):
    """A block of VGG-16 and its side output."""

    def __init__(self, channels_in: int, channels_out: int, count: int) -> None:
        """Make ``count`` convolutions."""
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(channels_in if i == 0 else channels_out, channels_out, 3, padding=1)
            for i in range(count)
        )
        self.projection = nn.Conv2d(channels_out, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Turn (B, in, h, w) into features (B, out, h, w)."""
        for conv in self.convs:
            x = functional.relu_(conv(x))
        return x


class HED(nn.Module):
    """RGB in [0, 255] to five maps of edge logits. Keys as in the published ControlNetHED.pth.

    Source: Xie and Tu 2015 (arXiv 1504.06375); the sizes are those of ControlNet 1.0's Apache-2.0 retraining.
    """

    def __init__(self) -> None:
        """Make the network."""
        super().__init__()
        self.norm = nn.Parameter(torch.zeros(1, 3, 1, 1))  # the mean colour, learned
        for number, (channels_in, channels_out, count) in enumerate(CHANNELS, 1):
            self.add_module(f"block{number}", Block(channels_in, channels_out, count))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Turn (B, 3, h, w), at least 16 a side, into (B, 1, h / 2**i, w / 2**i) for i from 0 to 4."""
        x = x - self.norm
        sides = []
        for number in range(1, len(CHANNELS) + 1):
            block = self.get_submodule(f"block{number}")
            if number > 1:
                x = functional.max_pool2d(x, 2)
            x = block(x)
            sides.append(block.projection(x))  # type: ignore[operator]  # Block's own
        return sides


def build(metadata: Mapping[str, str]) -> HED:
    """Make the network for a file; there is one size. It is made quicker when it has its weights."""
    net = HED()
    when_loaded(net, _quicken)
    return net


def _quicken(net: nn.Module) -> None:
    use_winograd(net)
    net.to(memory_format=torch.channels_last)
