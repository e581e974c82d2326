"""The parts that UNet and ControlNet are made of: residual blocks and spatial transformers.

Source: the latent diffusion UNet (arXiv 2112.10752); attribute names are those of its published checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from core.models.attention import attend
from core.models.fused import geglu, suits_gates
from core.models.norms import GroupNorm
from core.models.tokens import Merge, match_tokens

KeyValue = tuple[Tensor, Tensor]  # each (B, heads, tokens, head channels)
# glibc takes larger blocks from the system each time anew, and the system clears every page of them.
REUSED_BYTES = 2**25
PIECE_BYTES = 2**23  # of what a feed-forward network holds at a time where it would be more than that


def timestep_embedding(t: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Return (B, dim) float32 sinusoids of the time steps ``t`` (B,), cosines first; ``dim`` is even."""
    half = dim // 2
    freqs = torch.exp(-math.log(max_period) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t.float()[:, None] * freqs[None]
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def zero_module(module: nn.Module) -> nn.Module:
    """Set every parameter of ``module`` to zero and return it."""
    for p in module.parameters():
        nn.init.zeros_(p)
    return module


def convolved(layers: nn.Sequential, x: Tensor) -> Tensor:
    """Put ``x`` through GroupNorm and SiLU, the first two of ``layers``, and the convolution, their last."""
    norm = layers[0]
    assert isinstance(norm, GroupNorm)
    made: Tensor = layers[-1](norm.silu(x))
    return made


class ResBlock(nn.Module):
    """GroupNorm, SiLU, conv; the time embedding added; GroupNorm, SiLU, conv; plus a skip."""

    def __init__(self, channels: int, out_channels: int, emb_channels: int) -> None:
        """Build for (B, channels, h, w) in, (B, out_channels, h, w) out."""
        super().__init__()
        self.in_layers = nn.Sequential(
            GroupNorm(32, channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, out_channels))
        self.out_layers = nn.Sequential(
            GroupNorm(32, out_channels),
            nn.SiLU(),
            nn.Identity(),  # the published dropout, p = 0: keeps the index of the convolution
            zero_module(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        same = channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Map ``x`` (B, C, h, w) with the time embedding ``emb`` (B, E)."""
        h = convolved(self.in_layers, x) + self.emb_layers(emb)[:, :, None, None]
        return self.skip_connection(x) + convolved(self.out_layers, h)


class GatedLinear(nn.Linear):
    """A linear map, one half of whose result gates the other."""

    def gated(self, x: Tensor) -> Tensor:
        """Map ``x`` (..., in) to (..., out / 2): the first half of the result times GELU of the second."""
        both = self(x)
        if suits_gates(both):
            return geglu(both)
        value, gate = both.chunk(2, dim=-1)
        return value * F.gelu(gate)


class GEGLU(nn.Module):
    """A linear map to twice the width, one half gating the other through GELU."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        """Build for (..., dim_in) in, (..., dim_out) out."""
        super().__init__()
        self.proj = GatedLinear(dim_in, dim_out * 2)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (..., dim_in)."""
        return self.proj.gated(x)


class FeedForward(nn.Module):
    """GEGLU to four times the width, and back."""

    def __init__(self, dim: int) -> None:
        """Build for (..., dim)."""
        super().__init__()
        self.net = nn.Sequential(GEGLU(dim, dim * 4), nn.Identity(), nn.Linear(dim * 4, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (..., dim); on a CPU many rows a piece at a time, with the same result."""
        row_bytes = 8 * x.shape[-1] * x.element_size()  # of what lies between
        many = x.device.type == "cpu" and x.numel() // x.shape[-1] * row_bytes > REUSED_BYTES
        if not many or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self.net(x)
        pieces = x.flatten(0, -2).split(max(1, PIECE_BYTES // row_bytes))
        return torch.cat([self.net(piece) for piece in pieces]).view_as(x)


class CrossAttention(nn.Module):
    """Multi-head attention of ``x`` over a context; over itself where no keys and values are given."""

    def __init__(self, query_dim: int, context_dim: int, heads: int, dim_head: int) -> None:
        """Build for queries (B, N, query_dim) and a context (B, M, context_dim)."""
        super().__init__()
        inner = heads * dim_head
        self.heads = heads
        self.to_q = nn.Linear(query_dim, inner, bias=False)
        self.to_k = nn.Linear(context_dim, inner, bias=False)
        self.to_v = nn.Linear(context_dim, inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, query_dim), nn.Identity())

    def key_value(self, context: Tensor) -> KeyValue:
        """Project ``context`` (B, M, context_dim) once; over all the steps of a request it stays the same."""
        return self._split(self.to_k(context)), self._split(self.to_v(context))

    def _split(self, x: Tensor) -> Tensor:
        return rearrange(x, "b n (h d) -> b h n d", h=self.heads)

    def forward(self, x: Tensor, kv: KeyValue | None = None) -> Tensor:
        """Map ``x`` (B, N, query_dim); ``kv`` from ``key_value``, else from ``x`` itself."""
        k, v = self.key_value(x) if kv is None else kv
        out = attend(self._split(self.to_q(x)), k, v)
        return self.to_out(rearrange(out, "b h n d -> b n (h d)"))


class BasicTransformerBlock(nn.Module):
    """Self-attention, attention over the text, feed-forward; each behind a LayerNorm, each added."""

    def __init__(self, dim: int, heads: int, dim_head: int, context_dim: int) -> None:
        """Build for (B, N, dim)."""
        super().__init__()
        self.attn1 = CrossAttention(dim, dim, heads, dim_head)
        self.ff = FeedForward(dim)
        self.attn2 = CrossAttention(dim, context_dim, heads, dim_head)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)

    def forward(self, x: Tensor, kv: KeyValue, merge: Merge | None = None) -> Tensor:
        """Map ``x`` (B, N, dim); ``kv`` are the text's keys and values for ``attn2``.

        ``merge`` says which tokens the self-attention takes for one.
        """
        normed = self.norm1(x)
        x = (self.attn1(normed) if merge is None else merge.unmerge(self.attn1(merge.merge(normed)))) + x
        x = self.attn2(self.norm2(x), kv) + x
        return self.ff(self.norm3(x)) + x


class SpatialTransformer(nn.Module):
    """Transformer blocks over the pixels of a feature map, between two projections, plus a skip."""

    def __init__(
        self,
        channels: int,
        heads: int,
        dim_head: int,
        depth: int,
        context_dim: int,
        linear: bool,
        finest: bool = False,
    ) -> None:
        """Build for (B, channels, h, w); ``linear`` (SD 2.x): projections not by convolution.

        ``finest`` is whether it stands where a network's transformers have the most tokens.
        """
        super().__init__()
        inner = heads * dim_head
        self.linear, self.finest = linear, finest
        self.norm = GroupNorm(32, channels, eps=1e-6)
        self.proj_in: nn.Module = nn.Linear(channels, inner) if linear else nn.Conv2d(channels, inner, 1)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(inner, heads, dim_head, context_dim) for _ in range(depth)
        )
        out: nn.Module = nn.Linear(inner, channels) if linear else nn.Conv2d(inner, channels, 1)
        self.proj_out = zero_module(out)

    def forward(self, x: Tensor, kvs: Iterator[KeyValue], merged: float = 0.0) -> Tensor:
        """Map ``x`` (B, C, h, w); takes one pair from ``kvs`` for each transformer block.

        ``merged`` is the share of the tokens that self-attention merges away, if this is among the finest.
        """
        height, width = x.shape[2:]
        h = self.norm(x)
        if not self.linear:
            h = self.proj_in(h)
        h = rearrange(h, "b c h w -> b (h w) c")
        if self.linear:
            h = self.proj_in(h)
        for block in self.transformer_blocks:
            merge = match_tokens(h, width, merged) if merged and self.finest else None
            h = block(h, next(kvs), merge)
        if self.linear:
            h = self.proj_out(h)
        h = rearrange(h, "b (h w) c -> b c h w", h=height)
        if not self.linear:
            h = self.proj_out(h)
        return h + x


class Downsample(nn.Module):
    """Halve height and width by a strided convolution with symmetric padding."""

    def __init__(self, channels: int) -> None:
        """Build for (B, channels, h, w)."""
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, C, h/2, w/2)."""
        return self.op(x)


class Upsample(nn.Module):
    """Double height and width by nearest neighbour and a convolution."""

    def __init__(self, channels: int) -> None:
        """Build for (B, channels, h, w)."""
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, C, 2h, 2w)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class TimestepSequential(nn.Sequential):
    """Layers in sequence, each given what it takes: the time embedding, the text, or neither.

    With ``recompute`` the values inside are not kept for the gradient but computed a second time: less
    memory, more time, the same gradient.
    """

    recompute = False

    def forward(  # type: ignore[override]
        self, x: Tensor, emb: Tensor, kvs: Iterator[KeyValue], merged: float = 0.0
    ) -> Tensor:
        """Map ``x`` (B, C, h, w); ``merged`` is for the transformers, and only without ``recompute``."""
        if not (self.recompute and torch.is_grad_enabled()):
            return self._run(x, emb, kvs, merged)
        depth = sum(len(m.transformer_blocks) for m in self if isinstance(m, SpatialTransformer))
        own = tuple(islice(kvs, depth))
        return checkpoint(lambda: self._run(x, emb, iter(own)), use_reentrant=False)

    def _run(self, x: Tensor, emb: Tensor, kvs: Iterator[KeyValue], merged: float = 0.0) -> Tensor:
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, kvs, merged)
            else:
                x = layer(x)
        return x
