"""The Triton kernels of ``core.models.fused``; importing this needs Triton."""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 4096  # elements that a program holds at once
GATES = 1024  # of a program
MOST_CHANNELS = 64  # of a tile: 128 bytes in a row of 16-bit numbers


@triton.jit
def _part_moments(x_ptr, mean_ptr, square_ptr, pixels, channels, parts, P: tl.constexpr, C: tl.constexpr):
    """Write mean and sum of squared distances of each channel over ``P`` pixels."""
    image, part = tl.program_id(0), tl.program_id(1)
    p = part * P + tl.arange(0, P)
    c = tl.program_id(2) * C + tl.arange(0, C)
    inside = (p < pixels)[:, None] & (c < channels)[None, :]
    at = (image.to(tl.int64) * pixels + p)[:, None] * channels + c[None, :]
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    count = tl.minimum(P, pixels - part * P)
    mean = tl.sum(x, axis=0) / count
    away = tl.where(inside, x - mean[None, :], 0.0)
    to = (image * parts + part) * channels + c
    tl.store(mean_ptr + to, mean, mask=c < channels)
    tl.store(square_ptr + to, tl.sum(away * away, axis=0), mask=c < channels)


@triton.jit
def _scale_and_shift(
    mean_ptr, square_ptr, weight_ptr, bias_ptr, scale_ptr, shift_ptr, pixels, channels, parts, eps,
    each, P: tl.constexpr, K: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """Join the parts' moments over a group of ``each`` channels; write what maps its channels."""
    image, group = tl.program_id(0), tl.program_id(1)
    c = group * each + tl.arange(0, G)
    own = tl.arange(0, G) < each
    total = tl.zeros([K, G], tl.float32)
    for first in range(0, parts, K):
        k = first + tl.arange(0, K)
        inside = (k < parts)[:, None] & own[None, :]
        count = tl.minimum(P, pixels - k * P)[:, None]
        at = ((image * parts + k) * channels)[:, None] + c[None, :]
        total += tl.where(inside, tl.load(mean_ptr + at, mask=inside, other=0.0) * count, 0.0)
    mean = tl.sum(total) / (pixels * each)
    total = tl.zeros([K, G], tl.float32)
    for first in range(0, parts, K):
        k = first + tl.arange(0, K)
        inside = (k < parts)[:, None] & own[None, :]
        count = tl.minimum(P, pixels - k * P)[:, None]
        at = ((image * parts + k) * channels)[:, None] + c[None, :]
        away = tl.load(mean_ptr + at, mask=inside, other=0.0) - mean
        squares = tl.load(square_ptr + at, mask=inside, other=0.0) + away * away * count
        total += tl.where(inside, squares, 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(total) / (pixels * each) + eps)
    scale = tl.load(weight_ptr + c, mask=own, other=0.0).to(tl.float32) * rstd
    shift = tl.load(bias_ptr + c, mask=own, other=0.0).to(tl.float32) - mean * scale
    tl.store(scale_ptr + image * channels + c, scale, mask=own)
    tl.store(shift_ptr + image * channels + c, shift, mask=own)


@triton.jit
def _map(
    x_ptr, y_ptr, scale_ptr, shift_ptr, pixels, channels,
    SILU: tl.constexpr, P: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Write scale * x + shift, or SiLU of it."""
    image, part = tl.program_id(0), tl.program_id(1)
    p = part * P + tl.arange(0, P)
    c = tl.program_id(2) * C + tl.arange(0, C)
    inside = (p < pixels)[:, None] & (c < channels)[None, :]
    at = (image.to(tl.int64) * pixels + p)[:, None] * channels + c[None, :]
    scale = tl.load(scale_ptr + image * channels + c, mask=c < channels, other=0.0)
    shift = tl.load(shift_ptr + image * channels + c, mask=c < channels, other=0.0)
    y = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32) * scale[None, :] + shift[None, :]
    if SILU:
        y = y / (1.0 + tl.exp(-y))
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _gated(x_ptr, y_ptr, count, width, N: tl.constexpr):
    """Write value * gelu(gate) of rows that hold ``width`` values and then as many gates."""
    i = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    inside = i < count
    at = i // width * 2 * width + i % width
    value = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(x_ptr + at + width, mask=inside, other=0.0).to(tl.float32)
    y = value * 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476))
    tl.store(y_ptr + i, y.to(y_ptr.dtype.element_ty), mask=inside)


def _on(x: Tensor) -> AbstractContextManager[None]:
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def geglu(x: Tensor) -> Tensor:
    """See ``core.models.fused.geglu``."""
    width = x.shape[-1] // 2
    made = x.new_empty(*x.shape[:-1], width)
    with _on(x):
        _gated[(triton.cdiv(made.numel(), GATES),)](x, made, made.numel(), width, N=GATES)
    return made


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, *, silu: bool) -> Tensor:
    """See ``core.models.fused.group_norm``."""
    images, channels, height, width = x.shape
    pixels, each = height * width, channels // groups
    c = min(MOST_CHANNELS, triton.next_power_of_2(channels))
    p = TILE // c
    parts = triton.cdiv(pixels, p)
    moments = x.new_empty(2, images, parts, channels, dtype=torch.float32)
    maps = x.new_empty(2, images, channels, dtype=torch.float32)
    made = torch.empty_like(x)
    tiles = (images, parts, triton.cdiv(channels, c))
    g = triton.next_power_of_2(each)
    k = max(1, min(triton.next_power_of_2(parts), TILE // g))
    with _on(x):
        _part_moments[tiles](x, moments[0], moments[1], pixels, channels, parts, P=p, C=c)
        _scale_and_shift[(images, groups)](
            moments[0], moments[1], weight, bias, maps[0], maps[1], pixels, channels, parts, eps,
            each, P=p, K=k, G=g,
        )  # fmt: skip
        _map[tiles](x, made, maps[0], maps[1], pixels, channels, SILU=silu, P=p, C=c)
    return made
