"""The detectors' networks with the original's order of work and memory layout, to time ours against."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from annotators.nets import hed, midas, mlsd, openpose, uniformer


class _Midas(midas.MidasNet):
    """MiDaS in the plain memory layout."""

    def forward(self, x: Tensor) -> Tensor:
        """Return inverse depth (B, h, w) of (B, 3, h, w)."""
        return self.scratch(*self.pretrained(x.contiguous())).squeeze(1)


class _MidasFusion(midas.Fusion):
    """A fusion that doubles the size before its 1x1 convolution."""

    def forward(self, x: Tensor, below: Tensor | None = None) -> Tensor:
        """Turn (B, c, h, w) into (B, c, 2h, 2w)."""
        if below is not None:
            x = below + self.resConfUnit1(x)
        x = functional.interpolate(self.resConfUnit2(x), scale_factor=2, mode="bilinear", align_corners=True)
        return self.out_conv(x)


class _Uniformer(uniformer.UperNet):
    """UniFormer in the plain memory layout."""

    def forward(self, x: Tensor) -> Tensor:
        """Turn (B, 3, h, w) into logits (B, 150, h // 4, w // 4)."""
        return self.decode_head(self.backbone(x.contiguous()))


class _UniformerFusion(uniformer.Fusion):
    """A fusion that enlarges all maps and convolves them together."""

    def forward(self, maps: list[Tensor]) -> Tensor:  # type: ignore[override]  # several maps
        """Turn maps (B, c, h, w) of any sizes into (B, out, h, w) of the first one's size."""
        size = maps[0].shape[2:]
        large = [functional.interpolate(m, size, mode="bilinear", align_corners=False) for m in maps]
        return functional.relu_(self.bn(self.conv(torch.cat(large, dim=1))))


def _original(net: nn.Module, kinds: Mapping[type[nn.Module], type[nn.Module]]) -> nn.Module:
    """Let the modules of some kinds compute as others do that hold the same weights."""
    for module in net.modules():
        module.__class__ = kinds.get(type(module), type(module))
    return net


# By their name in the registry; each takes the file's metadata.
ORIGINALS: dict[str, Callable[[Mapping[str, str]], nn.Module]] = {
    "hed": lambda metadata: hed.HED(),
    "midas": lambda metadata: _original(_Midas(), {midas.Fusion: _MidasFusion}),
    "mlsd": lambda metadata: mlsd.MLSD(),
    "openpose_body": openpose.build_body,
    "uniformer": lambda metadata: _original(_Uniformer(), {uniformer.Fusion: _UniformerFusion}),
}
