"""The base model, locked, under its trainable copy: what a step of ControlNet training computes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from core.config import ModelConfig
from core.models.blocks import TimestepSequential
from core.models.unet import UNet
from core.models.variants import AnyControlNet, control_class

DECODER = ("output_blocks", "out")
BASE = "base."  # before the names of the base's parameters that are trained, in checkpoints


def build_network(config: ModelConfig, unet: UNet) -> AnyControlNet:
    """Make the network that is trained, of the variant that ``config.control`` names."""
    return control_class(config.control).from_unet(unet, config.control)


class ControlledUNet(nn.Module):
    """Predicts eps or v; what is locked has no gradients, and its encoder is not even watched for them."""

    def __init__(
        self,
        unet: UNet,
        net: AnyControlNet,
        *,
        sd_locked: bool = True,
        only_mid_control: bool = False,
        recompute: bool = False,
        precision: torch.dtype = torch.float32,
    ) -> None:
        """Lock ``unet``, but for its decoder where ``sd_locked`` is off; let ``net`` learn.

        ``precision`` is the number format to compute in. The locked half is also stored in it; what learns
        stays float32. ``recompute`` trades time for memory (gradient checkpointing).
        """
        super().__init__()
        self.unet, self.net = unet.requires_grad_(False), net.requires_grad_(True).float()
        self.only_mid_control, self.precision = only_mid_control, precision
        unet.to(precision)
        if not sd_locked:
            for part in self.decoder:
                part.requires_grad_(True).float()
        for module in self.modules():
            if isinstance(module, TimestepSequential):
                module.recompute = recompute

    @property
    def decoder(self) -> Sequence[nn.Module]:
        """The base's decoder: the parts that ``sd_locked`` is about."""
        return [self.unet.get_submodule(name) for name in DECODER]

    def trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield what learns, by name: the copy's parameters, then those of the base under "base."."""
        yield from self.net.named_parameters()
        for name, p in self.unet.named_parameters():
            if p.requires_grad:
                yield BASE + name, p

    def forward(self, x_t: Tensor, t: Tensor, context: Tensor, hint: Tensor) -> Tensor:
        """Predict from ``x_t`` (B, C, h, w) at ``t`` (B,) under the hint (B, 3, H, W) in [0, 1]."""
        with torch.autocast(x_t.device.type, self.precision, enabled=self.precision != torch.float32):
            residuals: Sequence[Tensor | None] = self.net(x_t, t, context, self.net.embed_hint(hint))
            if self.only_mid_control:
                residuals = [*[None] * (len(residuals) - 1), residuals[-1]]
            kvs = iter(self.unet.project_context(context))
            with torch.no_grad():
                emb = self.unet.embed_time(t, x_t.dtype)
                encoded = self.unet.encode(x_t, emb, kvs)
            return self.unet.decode(encoded, emb, kvs, residuals)
