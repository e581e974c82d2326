"""Attention: torch's own, and for many tokens in bfloat16 on a CPU a faster way."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

MANY_TOKENS = 2048  # keys; below, torch's own is as fast
ROWS_A_THREAD = 256  # queries at a time: their scores stay in the processor's cache
MULTIPLE = 16  # channels: matrix products like their sides to be
SPREAD = 3.5  # standard deviations above the mean at which the largest of thousands of scores lie
LARGEST_EXPONENT = 80.0  # exp of it is still far from float32's limit


@cache
def has_matrix_units() -> bool:
    """Say whether this processor has AMX, for which torch's own attention has a way of its own."""
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", bool)())


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return softmax(q k^T / sqrt(d)) v of queries (B, heads, N, d), keys and values (B, heads, M, d)."""
    many = min(q.shape[2], k.shape[2]) >= MANY_TOKENS and q.shape[1] > 1
    plain = torch.compiler.is_compiling() or (torch.is_grad_enabled() and q.requires_grad)
    if many and not plain and _is_fitting(q):
        out = attend_in_strips(q, k, v)
        if out is not None:
            return out
    return F.scaled_dot_product_attention(q, k, v)


def _is_fitting(q: Tensor) -> bool:
    return q.device.type == "cpu" and q.dtype == torch.bfloat16 and not has_matrix_units()


def attend_in_strips(q: Tensor, k: Tensor, v: Tensor) -> Tensor | None:
    """Attend by two matrix products for each head and strip of queries; None where exp might overflow.

    The products leave scores in bfloat16, whose error grows with their size. So they are made small where it
    matters: adding the same number to all scores of a query changes nothing, and the one added here, within
    the product itself, puts those that carry most of the weight near zero. That is, for scores of mean 0
    (the keys are centred) and variance s^2 that lie about normally, where they are around s^2, but not above
    the largest there are. The sum of the weights comes out of the second product, of a column of ones.
    """
    batch, heads, count, width = q.shape
    padded = -(-(width + 1) // MULTIPLE) * MULTIPLE
    keys = k.float()
    keys = keys - keys.mean(2, keepdim=True)
    queries = q.float() * width**-0.5
    covariance = keys.transpose(2, 3) @ keys / keys.shape[2]
    variance = ((queries @ covariance) * queries).sum(-1, keepdim=True).clamp_min(0.0)
    shift = torch.minimum(variance, SPREAD * variance.sqrt())  # (B, heads, N, 1)
    longest = keys.norm(dim=-1).amax(-1)[..., None, None]
    if not bool((queries.norm(dim=-1, keepdim=True) * longest - shift).max() < LARGEST_EXPONENT):
        return None  # NaN among them too
    left = _beside(queries, -shift, padded, q.dtype)
    right = _beside(keys, torch.ones_like(keys[..., :1]), padded, q.dtype).transpose(1, 2)
    values = _beside(v, torch.ones_like(v[..., :1]), padded, q.dtype)
    out = q.new_empty(batch * heads, count, padded)
    rows = ROWS_A_THREAD * torch.get_num_threads()
    for head in range(batch * heads):
        for strip, result in zip(left[head].split(rows), out[head].split(rows), strict=True):
            torch.mm((strip @ right[head]).exp_(), values[head], out=result)
    return (out[..., :width] / out[..., width : width + 1]).view(batch, heads, count, width)


def _beside(x: Tensor, column: Tensor, padded: int, dtype: torch.dtype) -> Tensor:
    """Return (B * heads, N, padded): ``x`` (B, heads, N, d), the ``column`` (B, heads, N, 1), zeros."""
    wide = x.new_zeros((*x.shape[:3], padded), dtype=dtype)
    wide[..., : x.shape[3]] = x
    wide[..., x.shape[3] : x.shape[3] + 1] = column
    return wide.flatten(0, 1)
