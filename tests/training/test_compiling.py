"""Compiled blocks compute what they did, in both directions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from core.config import ModelConfig
from core.models.controlnet import ControlNet
from core.models.unet import UNet
from core.training.compiling import compile_blocks


@pytest.mark.compiler
def test_compiled_blocks_give_the_same_prediction_and_gradients(config: ModelConfig) -> None:
    torch.manual_seed(0)
    unet = UNet(config.unet)
    net = ControlNet.from_unet(unet, config.control)
    for p in (*unet.parameters(), *net.parameters()):
        nn.init.normal_(p, std=0.05)
    x, context = torch.randn(2, config.unet.in_channels, 8, 8), torch.randn(2, 7, config.unet.context_dim)
    t, hint = torch.tensor([1, 500]), torch.rand(2, 3, 64, 64)

    def computed() -> list[Tensor]:
        for part in (unet, net):
            part.zero_grad()
        made = unet(x, t, context, net(x, t, context, net.embed_hint(hint)))
        made.square().mean().backward()
        return [
            made.detach(),
            *(p.grad.clone() for p in (*unet.parameters(), *net.parameters()) if p.grad is not None),
        ]

    plain = computed()
    compile_blocks([unet, net])
    for a, b in zip(plain, computed(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
