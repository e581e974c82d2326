"""ControlNet: a trainable copy of the UNet's encoder, tied to it by zero convolutions (arXiv 2302.05543)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from core.config import ControlNetConfig, UNetConfig
from core.models.blocks import zero_module
from core.models.unet import ContextKV, UNet, UNetEncoder


def hint_block(config: ControlNetConfig, out_channels: int) -> nn.Sequential:
    """Build the small stack that brings a hint (B, 3, H, W) down to (B, out_channels, H/8, W/8)."""
    widths = config.hint_widths
    layers: list[nn.Module] = [nn.Conv2d(config.hint_channels, widths[0], 3, padding=1), nn.SiLU()]
    for narrow, wide in zip(widths, widths[1:], strict=False):
        layers += [nn.Conv2d(narrow, narrow, 3, padding=1), nn.SiLU()]
        layers += [nn.Conv2d(narrow, wide, 3, padding=1, stride=2), nn.SiLU()]
    layers.append(zero_module(nn.Conv2d(widths[-1], out_channels, 3, padding=1)))
    return nn.Sequential(*layers)


def zero_conv(channels: int) -> nn.Sequential:
    """Build a 1x1 convolution that is zero at the start: what it guards changes nothing then."""
    return nn.Sequential(zero_module(nn.Conv2d(channels, channels, 1)))


class ControlNet(UNetEncoder):
    """The UNet's encoder with a hint block and a zero convolution on each output."""

    static: ClassVar[bool] = False  # the residuals change with x_t and t

    def __init__(self, unet: UNetConfig, control: ControlNetConfig) -> None:
        """Build for the UNet described by ``unet``."""
        super().__init__(unet)
        self.zero_convs = nn.ModuleList(zero_conv(ch) for ch in self.skip_channels)
        self.input_hint_block = hint_block(control, unet.model_channels)
        self.middle_block_out = zero_conv(self.skip_channels[-1])

    @classmethod
    def from_unet(cls, unet: UNet, control: ControlNetConfig) -> ControlNet:
        """Make the trainable copy: encoder weights from ``unet``, a fresh hint block, zero convolutions."""
        net = cls(unet.config, control)
        own = net.state_dict()
        own.update({k: v.clone() for k, v in unet.state_dict().items() if k in own})
        net.load_state_dict(own)
        return net

    def embed_hint(self, hint: Tensor) -> Tensor:
        """Map ``hint`` (B, 3, H, W) in [0, 1] to (B, model_channels, H/8, W/8); the same at every step."""
        return self.input_hint_block(hint)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        context: Tensor | ContextKV,
        hint_embedding: Tensor,
        merged: float = 0.0,
        count: int | None = None,
    ) -> list[Tensor]:
        """Return the residuals: one for each input block of the UNet and, last, one for its middle block.

        Args:
            x: (B, in_channels, h, w) noisy latents.
            t: (B,) time steps.
            context: (B, tokens, context_dim), or what this network's ``project_context`` made of it.
            hint_embedding: what ``embed_hint`` made of the hint; batch B or 1.
            merged: the share of the tokens that the finest self-attention merges away.
            count: how many residuals to return, the first ones; what they do not need is not computed.
        """
        kvs = iter(context if isinstance(context, tuple) else self.project_context(context))
        blocks = None if count == self.num_residuals else count
        outputs = self.encode(x, self.embed_time(t, x.dtype), kvs, hint_embedding, merged, blocks)
        convs = [*self.zero_convs, self.middle_block_out]
        return [conv(h) for conv, h in zip(convs, outputs, strict=False)]


def add_residuals(total: list[Tensor] | None, more: list[Tensor]) -> list[Tensor]:
    """Add the residuals of several ControlNets up."""
    return more if total is None else [torch.add(a, b) for a, b in zip(total, more, strict=True)]
