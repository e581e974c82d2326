"""3x3 convolutions with fewer products, for inference in float32 on a CPU.

Winograd's minimal filtering: tiles of the input, the weights and the products are transformed by small
matrices, so that a tile of 2x2 outputs takes 16 products a channel instead of 36 and one of 4x4 takes 36
instead of 144. The results differ by rounding: about as much again as a plain convolution is off for 2x2,
three times as much for 4x4. The weights take 16/9 and 4 times the memory. Figures are in docs/performance.md.

Source: Lavin and Gray 2015 (arXiv 1509.09308), points 0, 1, -1 and infinity, and 2 and -2 too for 4x4.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.models.packed import Packed

WIDE = 256  # channels: with fewer, transforming takes more time than the products that are saved
FEW_PAIRS = 640 * 320  # of channels: up to here weights that take four times the memory are worth it
MOST_TILES = 256  # at once, so that they stay in the processor's cache
LIMIT_FILE = Path("/sys/fs/cgroup/memory.max")  # what a container may take
ENOUGH_MEMORY = 15e9  # bytes: a process that draws with SD 1.5 and a ControlNet takes 10 GB so, 7 GB without


@dataclass(frozen=True, slots=True)
class Tiling:
    """How tiles of ``made`` x ``made`` outputs come about; each is made of (made + 2) x (made + 2) inputs.

    The matrices act on tiles as rows of numbers: ``spread`` (t t, t t) on the input, ``weight`` (t t, 9) on
    3x3 weights, ``gather`` (made made, t t) on the products.
    """

    made: int
    spread: Tensor
    weight: Tensor
    gather: Tensor

    @staticmethod
    def of(made: int, spread: list[list[int]], weight: list[list[int]], gather: list[list[int]]) -> Tiling:
        """Make it of the matrices for one direction; those for weights are over their largest entry."""
        over = max(max(row) for row in weight)
        both = [torch.tensor(matrix, dtype=torch.float64) for matrix in (spread, weight, gather)]
        both[1] /= over
        one, two, three = (torch.kron(matrix, matrix).float() for matrix in both)
        return Tiling(made, one, two, three)


SMALL = Tiling.of(
    2,
    spread=[[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]],
    weight=[[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]],
    gather=[[1, 1, 1, 0], [0, 1, -1, -1]],
)
LARGE = Tiling.of(
    4,
    spread=[
        *([4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0]),
        *([0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]),
    ],
    weight=[[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]],
    gather=[[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
)


class WinogradConv2d(Packed):
    """A 3x3 convolution with padding 1; its state dict holds the plain weight, but for rounding."""

    def __init__(self, conv: nn.Conv2d, tiling: Tiling | None = None) -> None:
        """Take the weights of ``conv``; by default their number decides on the ``tiling``."""
        few = conv.in_channels * conv.out_channels <= FEW_PAIRS
        self.tiling = tiling or (LARGE if few else SMALL)
        super().__init__(conv)

    def pack(self, weight: Tensor) -> None:
        """Take a plain weight, (out, in, 3, 3); keep it as (t t, out, in)."""
        made = (self.tiling.weight @ weight.reshape(-1, 9).T).view(-1, *weight.shape[:2])
        self.register_buffer("packed", made, persistent=False)

    def plain(self) -> Tensor:
        """Return the weight, (out, in, 3, 3)."""
        back = torch.linalg.pinv(self.tiling.weight.double()).float()
        taps = (back @ self.packed.flatten(1)).view(3, 3, *self.packed.shape[1:])
        return taps.permute(2, 3, 0, 1).contiguous()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (B, in, h, w), best channels last, to (B, out, h, w), channels last."""
        made, (batch, channels, height, width) = self.tiling.made, x.shape
        tile, rows, columns = made + 2, -(-height // made), -(-width // made)
        edge = (0, 0, 1, columns * made + 1 - width, 1, rows * made + 1 - height)
        padded = F.pad(x.permute(0, 2, 3, 1), edge)  # (B, h', w', in)
        per_image, per_row, per_pixel, _ = padded.stride()
        tiles = padded.as_strided(
            (tile, tile, batch, rows, columns, channels),
            (per_row, per_pixel, per_image, made * per_row, made * per_pixel, 1),
        )
        out = x.new_empty(batch, rows, made, columns, made, self.packed.shape[1])
        at_once = max(1, MOST_TILES // (batch * columns))
        for row in range(0, rows, at_once):
            strip = tiles[:, :, :, row : row + at_once]
            out[:, row : row + at_once] = self._convolve(strip).permute(2, 3, 0, 4, 1, 5)
        whole = out.view(batch, rows * made, columns * made, -1)[:, :height, :width].contiguous()
        if self.bias is not None:
            whole += self.bias
        return whole.permute(0, 3, 1, 2)

    def _convolve(self, strip: Tensor) -> Tensor:
        """Turn tiles (t, t, B, rows, columns, in) into (made, made, B, rows, columns, out)."""
        made, (tile, _, *places, channels) = self.tiling.made, strip.shape
        spread = (self.tiling.spread @ strip.reshape(tile * tile, -1)).view(tile * tile, -1, channels)
        products = torch.bmm(spread, self.packed.mT)
        return (self.tiling.gather @ products.flatten(1)).view(made, made, *places, -1)


def suits_winograd(conv: nn.Conv2d) -> bool:
    """Say whether this convolution, or one like it that waits for its weight, gains by it."""
    return (
        (conv.kernel_size, conv.padding, conv.stride) == ((3, 3), (1, 1), (1, 1))
        and (conv.dilation, conv.groups, conv.padding_mode) == ((1, 1), 1, "zeros")
        and min(conv.in_channels, conv.out_channels) >= WIDE < max(conv.in_channels, conv.out_channels)
        and conv.weight.device.type in {"cpu", "meta"}
        and conv.weight.dtype == torch.float32
    )


def memory_for_winograd() -> bool:
    """Say whether this computer has the memory that the transformed weights take."""
    return _memory() >= ENOUGH_MEMORY


def _memory() -> float:
    """Return the bytes of memory that there are for this process, or 0 where that is not known."""
    try:
        there = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf, others not these names
        return 0.0
    try:
        return min(there, float(LIMIT_FILE.read_text(encoding="ascii")))
    except (OSError, ValueError):  # there is no limit: "max"
        return there
