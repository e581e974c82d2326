"""GroupNorm with SiLU, and GEGLU, in one go on an NVIDIA GPU: small Triton kernels.

torch's GroupNorm wants the channels apart: it copies a channels-last map, and the next convolution copies it
back.
"""

from __future__ import annotations

import logging
from functools import cache
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

log = logging.getLogger(__name__)

TOLERANCE = 2e-2  # of the trial, whose values are about 1, in 16 bits


@cache
def _kernels() -> ModuleType | None:
    """Return the kernels, or None where Triton is not installed."""
    try:
        from core.models import fused_kernels
    except ImportError:
        return None
    return fused_kernels


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, *, silu: bool) -> Tensor:
    """Normalise ``x`` (B, C, h, w), channels last, on a GPU; with ``silu`` return SiLU of that.

    Moments are of float32, computed around each part's own mean; the result is of the type of ``x``.
    """
    kernels = _kernels()
    assert kernels is not None
    made: Tensor = kernels.group_norm(x, groups, weight, bias, eps, silu=silu)
    return made


def geglu(x: Tensor) -> Tensor:
    """Return value * gelu(gate) of ``x`` (..., 2 n), on a GPU, whose rows hold n values and then n gates."""
    kernels = _kernels()
    assert kernels is not None
    made: Tensor = kernels.geglu(x)
    return made


def suits_norm(x: Tensor) -> bool:
    """Whether ``group_norm`` can take ``x`` and no gradient is asked for."""
    return x.ndim == 4 and _suits(x, torch.channels_last)


def suits_gates(x: Tensor) -> bool:
    """Whether ``geglu`` can take ``x`` and no gradient is asked for."""
    return _suits(x, torch.contiguous_format)


def _suits(x: Tensor, layout: torch.memory_format) -> bool:
    return (
        x.device.type == "cuda"
        and x.dtype in (torch.float16, torch.bfloat16)
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and x.is_contiguous(memory_format=layout)
        and works(x.device)
    )


@cache
def works(device: torch.device) -> bool:
    """Whether the kernels are there and, on a small map, agree with torch; said once where they do not."""
    if _kernels() is None:
        return False
    with torch.inference_mode():
        try:
            away = _farthest(device)
        except Exception as error:  # whatever Triton, the driver or the compiler have to say
            log.warning("The fused kernels are off, torch's are used: %s", error)
            return False
    if away > TOLERANCE:
        log.warning("The fused kernels are off, torch's are used: they are %.3f away from torch's.", away)
    return away <= TOLERANCE


def _farthest(device: torch.device) -> float:
    """Return how far the kernels are from torch, in 16 bits."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 96, 9, 7, generator=generator) * 2.0 + 0.5
    weight, bias = torch.randn(2, 96, generator=generator)
    given = x.to(device, torch.float16).contiguous(memory_format=torch.channels_last)
    made = group_norm(given, 32, weight.to(device), bias.to(device), 1e-5, silu=True)
    normed = float((made.float().cpu() - F.silu(F.group_norm(x, 32, weight, bias, 1e-5))).abs().max())
    rows = torch.randn(5, 46, generator=generator)
    value, gate = rows.chunk(2, dim=-1)
    gated = geglu(rows.to(device, torch.float16)).float().cpu() - value * F.gelu(gate)
    return max(normed, float(gated.abs().max()))
