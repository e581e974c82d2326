"""The same networks in less time, for inference: folded normalisations, convolutions with fewer products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

# Winograd's F(4x4, 3x3): a tile of 6x6 makes 4x4 outputs with 36 products a channel instead of 144.
# Source: Lavin and Gray 2015 (arXiv 1509.09308), points 0, 1, -1, 2, -2 and infinity.
INPUT = [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0]]
INPUT += [[0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]]
WEIGHT = [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]  # over 24
OUTPUT = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
MADE, TILE = 4, 6
WIDE = 256  # channels: with fewer, moving the tiles takes more time than the products saved
STRIP = 96  # tiles at once, so that they stay in the processor's cache


class WinogradConv(nn.Module):
    """A 3x3 convolution with padding 1 in float32; its rounding errors are about four times as large."""

    weight: Tensor
    bias: Tensor
    spread: Tensor
    gather: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        """Transform the weights of ``conv``: they take four times the memory."""
        super().__init__()
        assert conv.bias is not None
        turn = torch.tensor(WEIGHT, dtype=torch.float64) / 24
        weight = torch.einsum("ij,ocjk,lk->ilco", turn, conv.weight.double(), turn)
        self.register_buffer("weight", weight.flatten(0, 1).float().contiguous())  # (36, in, out)
        self.register_buffer("bias", conv.bias.detach())
        for name, matrix in (("spread", INPUT), ("gather", OUTPUT)):
            one = torch.tensor(matrix, dtype=torch.float32)
            self.register_buffer(name, torch.kron(one, one), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Turn (B, in, h, w) into (B, out, h, w), both best channels last."""
        height, width = x.shape[2:]
        rows, columns = -(-height // MADE), -(-width // MADE)
        edge = (0, 0, 1, columns * MADE + 1 - width, 1, rows * MADE + 1 - height)
        padded = functional.pad(x.permute(0, 2, 3, 1), edge)  # (B, h', w', in)
        per_image, per_row, per_pixel, _ = padded.stride()
        tiles = padded.as_strided(
            (TILE, TILE, len(x), rows, columns, x.shape[1]),
            (per_row, per_pixel, per_image, MADE * per_row, MADE * per_pixel, 1),
        )
        out = x.new_empty(len(x), rows, MADE, columns, MADE, len(self.bias))
        at_once = max(1, STRIP // columns)
        for image in range(len(x)):
            for row in range(0, rows, at_once):
                strip = tiles[:, :, image, row : row + at_once]
                out[image, row : row + at_once] = self._convolve(strip).permute(2, 0, 3, 1, 4)
        whole = out.view(len(x), rows * MADE, columns * MADE, -1)
        return whole[:, :height, :width].permute(0, 3, 1, 2) + self.bias[:, None, None]

    def _convolve(self, strip: Tensor) -> Tensor:
        """Turn tiles (6, 6, rows, columns, in) into (4, 4, rows, columns, out)."""
        count, channels_in = strip.shape[2] * strip.shape[3], strip.shape[4]
        spread = (self.spread @ strip.reshape(TILE * TILE, -1)).view(-1, count, channels_in)
        products = torch.bmm(spread, self.weight)  # (36, tiles, out)
        made: Tensor = self.gather @ products.flatten(1)
        return made.view(MADE, MADE, *strip.shape[2:4], -1)


def use_winograd(net: nn.Module) -> None:
    """Replace the wide 3x3 convolutions of a network where Winograd's are faster: on a CPU in float32."""
    for module in list(net.modules()):
        for name, conv in list(module.named_children()):
            if (
                isinstance(conv, nn.Conv2d)
                and (conv.kernel_size, conv.padding, conv.stride) == ((3, 3), (1, 1), (1, 1))
                and (conv.dilation, conv.groups) == ((1, 1), 1)
                and min(conv.in_channels, conv.out_channels) >= WIDE
                and max(conv.in_channels, conv.out_channels) > WIDE
                and conv.weight.device.type == "cpu"
                and conv.weight.dtype == torch.float32
            ):
                setattr(module, name, WinogradConv(conv))


def fold_norms(net: nn.Module) -> None:
    """Merge every batch normalisation that follows a convolution in a ``Sequential`` into it."""
    for module in net.modules():
        if not isinstance(module, nn.Sequential):
            continue
        for i in range(len(module) - 1):
            conv, norm = module[i], module[i + 1]
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                module[i], module[i + 1] = _folded(conv, norm), nn.Identity()


def _folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    shift = norm.bias.double() - norm.running_mean.double() * scale
    if conv.bias is not None:
        shift += conv.bias.double() * scale
    weight = conv.weight.double() * scale[:, None, None, None]
    conv.weight = nn.Parameter(weight.to(conv.weight.dtype), requires_grad=False)
    conv.bias = nn.Parameter(shift.to(conv.weight.dtype), requires_grad=False)
    return conv


def when_loaded(net: nn.Module, change: Callable[[nn.Module], None]) -> None:
    """Apply a change to the network once it has been given its weights."""

    def hook(module: nn.Module, _: Any) -> None:
        with torch.no_grad():
            change(module)

    net.register_load_state_dict_post_hook(hook)
