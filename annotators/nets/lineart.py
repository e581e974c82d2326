"""The generator that draws photos as line art: down twice, three residual blocks, up twice."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

SIDE_MULTIPLE = 4  # pixels: other sides come back longer than they went in
SMALLEST = 16  # pixels a side: below, there is nothing to reflect at the edges
CHANNELS = (64, 128, 256)
BLOCKS = 3


def _normed(conv: nn.Module, channels: int) -> list[nn.Module]:
    return [conv, nn.InstanceNorm2d(channels), nn.ReLU(inplace=True)]


def _up(channels: int, fewer: int) -> nn.Module:
    return nn.ConvTranspose2d(channels, fewer, 3, stride=2, padding=1, output_padding=1)


class ResidualBlock(nn.Module):
    """Two convolutions around which the input is added."""

    def __init__(self, channels: int) -> None:
        """Make the layers."""
        super().__init__()
        self.conv_block = nn.Sequential(
            nn.ReflectionPad2d(1),
            *_normed(nn.Conv2d(channels, channels, 3), channels),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            nn.InstanceNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (B, C, h, w)."""
        return x + self.conv_block(x)


class LineartGenerator(nn.Module):
    """RGB in [0, 1] to brightness in [0, 1]. Keys as in the published sk_model.pth.

    Source: Chan, Durand and Isola 2022 (arXiv 2203.12691), with the three residual blocks of the published
    files.
    """

    def __init__(self) -> None:
        """Make the network."""
        super().__init__()
        fine, middle, coarse = CHANNELS
        self.model0 = nn.Sequential(nn.ReflectionPad2d(3), *_normed(nn.Conv2d(3, fine, 7), fine))
        self.model1 = nn.Sequential(
            *_normed(nn.Conv2d(fine, middle, 3, stride=2, padding=1), middle),
            *_normed(nn.Conv2d(middle, coarse, 3, stride=2, padding=1), coarse),
        )
        self.model2 = nn.Sequential(*(ResidualBlock(coarse) for _ in range(BLOCKS)))
        self.model3 = nn.Sequential(*_normed(_up(coarse, middle), middle), *_normed(_up(middle, fine), fine))
        self.model4 = nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(fine, 1, 7), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """Turn (B, 3, h, w), sides multiples of 4 and at least 16, into (B, 1, h, w)."""
        for part in (self.model0, self.model1, self.model2, self.model3, self.model4):
            x = part(x)
        return x


def build(metadata: Mapping[str, str]) -> LineartGenerator:
    """Make the network for a file; there is one size."""
    return LineartGenerator()
