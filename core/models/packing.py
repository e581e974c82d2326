"""Weights kept in the order that the processor multiplies in, for inference on a CPU.

oneDNN, which computes torch's bfloat16 convolutions and matrix products on x86, wants weights in blocks.
Given plain ones it reorders them at every call, which at few pixels costs more than the product. Packed once,
they take the same memory and give the same but for the order of sums. In float32 nothing is gained by that;
there wide 3x3 convolutions get weights for fewer products (`core/models/winograd.py`). Figures are in
docs/performance.md.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from core.models.blocks import GatedLinear
from core.models.packed import Packed
from core.models.winograd import WinogradConv2d, memory_for_winograd, suits_winograd

# The side of the feature maps that weights are packed for; the order that this gives suits others too.
TYPICAL_SIDE = 64
# oneDNN cuts multiples of 48 output channels by 48 or by 64, as the size of the maps suits it. A weight that
# is packed the other way is brought into order at every call, by code so slow that 192 to 192 channels on
# 16x16 take 20 ms and not 1.5. Plain weights lose a tenth at most, and none of SD's large ones is among them.
AMBIGUOUS = 48


class PackedConv2d(Packed):
    """A convolution."""

    def __init__(self, conv: nn.Conv2d) -> None:
        """Take the weights of ``conv``."""
        self.geometry = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        self.maps = [2, conv.in_channels, TYPICAL_SIDE, TYPICAL_SIDE]
        super().__init__(conv)

    def pack(self, weight: Tensor) -> None:
        """Take a plain weight of the layer's shape."""
        self.packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *self.geometry, self.maps)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (B, C, h, w)."""
        convolve = torch.ops.mkldnn._convolution_pointwise
        return convolve(x, self.packed, self.bias, *self.geometry, "none", [], "")


class PackedLinear(Packed):
    """A linear map."""

    def pack(self, weight: Tensor) -> None:
        """Take a plain weight of the layer's shape."""
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (..., C)."""
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


class PackedPixelwise(PackedLinear):
    """A 1x1 convolution, as a linear map of every pixel's channels.

    As a convolution, one with a packed weight has no fast kernel for maps of 4x4 pixels on processors without
    matrix units: 92 ms instead of 1.7 for 1280 channels.
    """

    def pack(self, weight: Tensor) -> None:
        """Take a plain weight, (out, in, 1, 1)."""
        super().pack(weight[:, :, 0, 0])

    def plain(self) -> Tensor:
        """Return the weight, (out, in, 1, 1)."""
        return super().plain()[:, :, None, None]

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (B, C, h, w), best channels last."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class PackedGates(PackedLinear):
    """A linear map, one half of whose result gates the other: within the products, not yet rounded."""

    def pack(self, weight: Tensor) -> None:
        """Take a plain weight of the layer's shape."""
        value, gate = weight.chunk(2)
        super().pack(value)
        self.packed_gate = torch.ops.mkldnn._reorder_linear_weight(gate)

    def plain(self) -> Tensor:
        """Return the plain weight."""
        return torch.cat([super().plain(), self.packed_gate.to_dense()])

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (..., in) to both halves, (..., out)."""
        bias = self._biases()
        multiply = torch.ops.mkldnn._linear_pointwise
        halves = zip((self.packed, self.packed_gate), bias, strict=True)
        return torch.cat([multiply(x, weight, each, "none", [], "") for weight, each in halves], dim=-1)

    def gated(self, x: Tensor) -> Tensor:
        """Map ``x`` (..., in) to (..., out / 2): the first half of the result times GELU of the second."""
        value, gate = self._biases()
        multiply = torch.ops.mkldnn._linear_pointwise
        opened = multiply(x, self.packed_gate, gate, "gelu", [], "none")  # "none": not the approximate one
        return multiply.binary(x, opened, self.packed, value, "mul")

    def _biases(self) -> tuple[Tensor | None, ...]:
        return (None, None) if self.bias is None else self.bias.chunk(2)


def can_pack() -> bool:
    """Say whether this processor multiplies bfloat16 itself and this version of torch has packed layers."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
        return False
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def pack_weights(network: nn.Module) -> dict[str, Packed]:
    """Pack the layers of ``network`` on the CPU, in place, one at a time.

    Those are bfloat16 convolutions and linear maps, unless ``can_pack`` says no, and wide 3x3 convolutions in
    float32, unless ``memory_for_winograd`` does. For a network that from then on is used without gradients
    and not moved. What cannot be packed stays as it is. Layers on the meta device are packed once
    ``Packed.pack`` gives them their weights: they are returned, by the weights' names.
    """
    return dict(_pack_children(network, "", can_pack(), memory_for_winograd()))


def _pack_children(
    network: nn.Module, prefix: str, order: bool, winograd: bool
) -> Iterator[tuple[str, Packed]]:
    for name, layer in list(network.named_children()):
        packed = (_packed(layer) if order else None) or (_with_fewer_products(layer) if winograd else None)
        if packed is None:
            # Level by level: a list of all layers would keep every plain weight alive.
            yield from _pack_children(layer, f"{prefix}{name}.", order, winograd)
            continue
        setattr(network, name, packed)
        if layer.weight.is_meta:
            yield f"{prefix}{name}.weight", packed


def _packed(layer: nn.Module) -> Packed | None:
    # Exactly these types: who derives from them may read the weight itself.
    if type(layer) is nn.Linear and _is_packable(layer.weight):
        return PackedLinear(layer)
    if type(layer) is GatedLinear and _is_packable(layer.weight):
        return PackedGates(layer)
    if type(layer) is not nn.Conv2d or not _is_packable(layer.weight):
        return None
    if _is_pixelwise(layer):
        return PackedPixelwise(layer)
    return PackedConv2d(layer) if layer.out_channels % AMBIGUOUS else None


def _with_fewer_products(layer: nn.Module) -> Packed | None:
    return WinogradConv2d(layer) if type(layer) is nn.Conv2d and suits_winograd(layer) else None


def _is_pixelwise(conv: nn.Conv2d) -> bool:
    return (conv.kernel_size, conv.stride, conv.padding, conv.groups) == ((1, 1), (1, 1), (0, 0), 1)


def _is_packable(weight: Tensor) -> bool:
    return weight.device.type in {"cpu", "meta"} and weight.dtype == torch.bfloat16
