"""Batch normalisations of averaged weights: their means are taken anew, since training saw other weights'."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


def settle(net: nn.Module, run: Callable[[int], object], batches: int) -> None:
    """Let ``run(0)``, ``run(1)`` and so on send ``batches`` batches through ``net``; all count alike.

    The means of all batch normalisations are those of these batches then; afterwards ``net`` is for use.
    """
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean
    net.train()
    with torch.no_grad():
        for number in range(batches if norms else 0):
            run(number)
    net.eval()
