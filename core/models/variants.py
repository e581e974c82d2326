"""ControlNets that do not look at x_t and t, so that their residuals are the same at every step.

Source: the two lighter networks of the ControlNet author's ablation (lllyasviel/ControlNet, discussion 188):
plain convolutions, and a pixel-wise perceptron with average pooling, both trained from scratch, their
channels read from the UNet; and the title of discussion 216, a precomputed ControlNet. The original has no
code of them: what is not said here was decided anew, among it that the lighter two see the hint alone.
"""

from __future__ import annotations

import math
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn

from core.config import ControlNetConfig, UNetConfig
from core.models.blocks import TimestepSequential
from core.models.controlnet import ControlNet, hint_block, zero_conv
from core.models.unet import ContextKV, UNet, UNetEncoder

SILU_GAIN = 1.68  # 1 / sqrt(E[silu(z)^2]) for normal z: what keeps a signal's variance through SiLU
Static = TypeVar("Static", bound="StackControlNet")


def keep_variance(module: nn.Module) -> None:
    """Initialise the convolutions of ``module`` so that a signal arrives at the end as large as it came in.

    torch's own initialisation shrinks it to a third at each: after ten there would be nothing to learn from.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=SILU_GAIN / math.sqrt(layer.weight[0].numel()))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def pixel_block(control: ControlNetConfig, out_channels: int) -> nn.Sequential:
    """Build ``hint_block`` of 1x1 convolutions and average pooling: each cell sees its own 8x8 pixels."""
    widths = control.hint_widths
    layers: list[nn.Module] = [nn.Conv2d(control.hint_channels, widths[0], 1), nn.SiLU()]
    for narrow, wide in zip(widths, widths[1:], strict=False):
        layers += [nn.Conv2d(narrow, wide, 1), nn.SiLU(), nn.AvgPool2d(2)]
    layers.append(nn.Conv2d(widths[-1], out_channels, 1))
    return nn.Sequential(*layers)


class StackControlNet(nn.Module):
    """One plain layer for each block of the UNet's encoder, of as many channels, on the hint alone."""

    static: ClassVar[bool] = True  # the residuals depend on neither x_t nor t

    def __init__(self, unet: UNetConfig, control: ControlNetConfig) -> None:
        """Build for the UNet described by ``unet``."""
        super().__init__()
        with torch.device("meta"):
            encoder = UNetEncoder(unet)
        widths, factors = encoder.skip_channels, encoder.factors
        self.input_hint_block = self._hint_block(control, widths[0])
        self.input_blocks = nn.ModuleList(
            self._layer(widths[i], widths[i + 1], halve=factors[i + 1] > factors[i])
            for i in range(len(widths) - 1)
        )
        self.middle_block = self._layer(widths[-1], widths[-1], halve=False)
        keep_variance(self)
        self.zero_convs = nn.ModuleList(zero_conv(ch) for ch in widths)
        self.middle_block_out = zero_conv(widths[-1])

    @staticmethod
    def _hint_block(control: ControlNetConfig, out_channels: int) -> nn.Sequential:
        raise NotImplementedError

    @staticmethod
    def _layer(channels: int, out_channels: int, *, halve: bool) -> nn.Sequential:
        raise NotImplementedError

    @classmethod
    def from_unet(cls: type[Static], unet: UNet, control: ControlNetConfig) -> Static:
        """Build for ``unet``; its weights are not taken over."""
        return cls(unet.config, control)

    @property
    def num_residuals(self) -> int:
        """How many residuals there are: one for each input block of the UNet, one for the middle."""
        return len(self.zero_convs) + 1

    def embed_hint(self, hint: Tensor) -> Tensor:
        """Map ``hint`` (B, 3, H, W) in [0, 1] to (B, model_channels, H/8, W/8)."""
        return self.input_hint_block(hint)

    def project_context(self, context: Tensor) -> ContextKV:
        """Return nothing: the text is not read."""
        return ()

    def forward(
        self, x: Tensor | None, t: Tensor | None, context: Tensor | ContextKV, hint_embedding: Tensor
    ) -> list[Tensor]:
        """Return the residuals, as ``ControlNet`` does, with the rows of ``hint_embedding``."""
        h = hint_embedding
        residuals = [self.zero_convs[0](h)]
        for block, conv in zip(self.input_blocks, self.zero_convs[1:], strict=True):
            h = block(h)
            residuals.append(conv(h))
        residuals.append(self.middle_block_out(self.middle_block(h)))
        return residuals


class LiteControlNet(StackControlNet):
    """Plain 3x3 convolutions, from scratch: neighbourhoods, but no depth, no attention and no text."""

    @staticmethod
    def _hint_block(control: ControlNetConfig, out_channels: int) -> nn.Sequential:
        return hint_block(control, out_channels)

    @staticmethod
    def _layer(channels: int, out_channels: int, *, halve: bool) -> nn.Sequential:
        stride = 2 if halve else 1
        return nn.Sequential(nn.SiLU(), nn.Conv2d(channels, out_channels, 3, stride=stride, padding=1))


class MLPControlNet(StackControlNet):
    """A perceptron on every pixel, shrunk by average pooling, from scratch: no neighbourhoods at all."""

    @staticmethod
    def _hint_block(control: ControlNetConfig, out_channels: int) -> nn.Sequential:
        return pixel_block(control, out_channels)

    @staticmethod
    def _layer(channels: int, out_channels: int, *, halve: bool) -> nn.Sequential:
        shrink: list[nn.Module] = [nn.AvgPool2d(2)] if halve else []
        return nn.Sequential(nn.SiLU(), *shrink, nn.Conv2d(channels, out_channels, 1))


class PrecomputedControlNet(UNetEncoder):
    """The trainable copy without its first convolution, which reads x_t, and without a time.

    The hint's embedding takes the place of x_t, a learned vector that of the time's embedding. The text is
    read still: it, too, is the same at every step.
    """

    static: ClassVar[bool] = True

    def __init__(self, unet: UNetConfig, control: ControlNetConfig) -> None:
        """Build for the UNet described by ``unet``."""
        super().__init__(unet)
        del self.time_embed
        self.emb = nn.Parameter(torch.zeros(1, unet.model_channels * 4))
        self.input_blocks[0] = TimestepSequential()
        self.input_hint_block = hint_block(control, unet.model_channels)
        keep_variance(self.input_hint_block)  # not zero: the zero convolutions alone make the start silent
        self.zero_convs = nn.ModuleList(zero_conv(ch) for ch in self.skip_channels)
        self.middle_block_out = zero_conv(self.skip_channels[-1])

    @classmethod
    @torch.no_grad()
    def from_unet(cls, unet: UNet, control: ControlNetConfig) -> PrecomputedControlNet:
        """Make the trainable copy; its vector is the mean of the time's embeddings."""
        net = cls(unet.config, control)
        own = net.state_dict()
        own.update({k: v.clone() for k, v in unet.state_dict().items() if k in own})
        net.load_state_dict(own)
        times = torch.arange(1000, device=net.emb.device)
        net.emb.copy_(unet.embed_time(times, net.emb.dtype).mean(0, keepdim=True))
        return net

    def embed_hint(self, hint: Tensor) -> Tensor:
        """Map ``hint`` (B, 3, H, W) in [0, 1] to (B, model_channels, H/8, W/8)."""
        return self.input_hint_block(hint)

    def forward(
        self, x: Tensor | None, t: Tensor | None, context: Tensor | ContextKV, hint_embedding: Tensor
    ) -> list[Tensor]:
        """Return the residuals, as ``ControlNet`` does, with the rows of the context.

        ``x`` and ``t`` are not looked at; ``hint_embedding`` has as many rows as the context, or one.
        """
        kvs = context if isinstance(context, tuple) else self.project_context(context)
        rows = len(kvs[0][0])
        h = hint_embedding.expand(rows, -1, -1, -1)
        *outputs, middle = self.encode(h, self.emb.expand(rows, -1), iter(kvs))
        residuals = [conv(out) for conv, out in zip(self.zero_convs, outputs, strict=True)]
        residuals.append(self.middle_block_out(middle))
        return residuals


AnyControlNet = ControlNet | LiteControlNet | MLPControlNet | PrecomputedControlNet
VARIANTS: dict[str, type[AnyControlNet]] = {
    "full": ControlNet,
    "lite": LiteControlNet,
    "mlp": MLPControlNet,
    "precomputed": PrecomputedControlNet,
}


def control_class(control: ControlNetConfig) -> type[AnyControlNet]:
    """Return the class of the variant that ``control`` names."""
    return VARIANTS[control.variant]
