"""Attention: torch's own, and for many tokens in bfloat16 on a CPU a faster way."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

MANY_TOKENS = 1024  # keys; below, torch's own is as fast
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
    left, right, values = (x.new_zeros(*x.shape[:3], padded) for x in (q, k, v))
    torch.mul(q, width**-0.5, out=left[..., :width])
    torch.sub(k, k.mean(2, keepdim=True), out=right[..., :width])
    values[..., :width], values[..., width] = v, 1.0
    left, right, values = (x.flatten(0, 1) for x in (left, right, values))
    # Only how large the scores are is needed here, and bfloat16 tells that well enough.
    covariance = (right.mT @ right) / right.shape[1]
    variance = ((left @ covariance) * left).sum(-1, dtype=torch.float32).clamp_min(0.0)
    shift = torch.minimum(variance, SPREAD * variance.sqrt())  # (B heads, N)
    length, longest = _norm(left), _norm(right).amax(-1, keepdim=True)
    if not bool((length * longest - shift).max() < LARGEST_EXPONENT):
        return None  # NaN among them too
    left[..., width], right[..., width] = -shift, 1.0
    right = right.mT
    out = torch.empty_like(left)
    rows = ROWS_A_THREAD * torch.get_num_threads()
    for head in range(batch * heads):
        for strip, result in zip(left[head].split(rows), out[head].split(rows), strict=True):
            torch.mm((strip @ right[head]).exp_(), values[head], out=result)
    made = q.new_empty(batch, count, heads, width)  # with the heads side by side, as what follows takes them
    sums = out.view(batch, heads, count, padded)
    return torch.div(sums[..., :width], sums[..., width : width + 1], out=made.transpose(1, 2))


def _norm(x: Tensor) -> Tensor:
    """Return the lengths (B heads, N) of ``x`` (B heads, N, d)."""
    return torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32)
