"""Compile the parts that UNet and ControlNets are made of, for training: each kind once, whoever has it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from core.models.blocks import BasicTransformerBlock, ResBlock

KINDS = 64  # of blocks, by their sizes; torch's own limit is 8
HINT_BLOCK = "input_hint_block"


def compile_blocks(networks: Iterable[nn.Module]) -> None:
    """Let torch.compile make residual blocks, transformer blocks and hint blocks faster; the values stay.

    Blocks of the same sizes share what is compiled, in a sixth of the time that whole networks take.
    """
    config = torch._dynamo.config
    for name in ("recompile_limit", "cache_size_limit"):  # its name since torch 2.7, and before
        if hasattr(config, name):
            setattr(config, name, max(KINDS, getattr(config, name)))
    for network in networks:
        for name, module in network.named_modules():
            if isinstance(module, (ResBlock, BasicTransformerBlock)) or name == HINT_BLOCK:
                module.compile(dynamic=False)
