"""Token ids to context: the text transformer of CLIP, read as Stable Diffusion reads it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from core.config import TextConfig
from core.models.tokenizer import END_TOKEN, START_TOKEN, tokenizer

QUICK = 1.702  # of the sigmoid that OpenAI's text encoders take for GELU
T = TypeVar("T")


def frame(config: TextConfig, words: Sequence[T], start: T, end: T, pad: T) -> list[T]:
    """Return the ``context_length`` places of a text, two of them not words: start, words, end, padding."""
    places = [start, *words, end]
    if config.repeat_prompt and words:
        copies = -(-config.context_length // (len(places) - 1))
        places = [start, *places[1:] * copies][: config.context_length]
    return places + [pad] * (config.context_length - len(places))


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x), near to GELU."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` of any shape."""
        return x * torch.sigmoid(QUICK * x)


class TextAttention(nn.Module):
    """Multi-head self-attention, with the parameters and the beginnings of torch's MultiheadAttention.

    That one takes its tokens first by a view, and maps them by a copy of the weights for each of them, which
    in bfloat16 took over nine tenths of a text encoder's time.
    """

    def __init__(self, width: int, heads: int) -> None:
        """Build for (B, N, width)."""
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.in_proj_bias)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map ``x`` (B, N, width); ``mask`` (N, N) is added to the scores."""
        every = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = rearrange(every, "b n (qkv h d) -> qkv b h n d", qkv=3, h=self.heads)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        mapped: Tensor = self.out_proj(rearrange(out, "b h n d -> b n (h d)"))
        return mapped


class TextBlock(nn.Module):
    """Self-attention and a feed-forward network of four times the width; each behind a LayerNorm, each added.

    Source: Radford et al. 2021 (arXiv 2103.00020); attribute names as in OpenAI's published checkpoints.
    """

    def __init__(self, width: int, heads: int, quick_gelu: bool) -> None:
        """Build for (B, N, width)."""
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = TextAttention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        layers = {
            "c_fc": nn.Linear(width, width * 4),
            "gelu": QuickGELU() if quick_gelu else nn.GELU(),
            "c_proj": nn.Linear(width * 4, width),
        }
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map ``x`` (B, N, width); ``mask`` (N, N) is added to the scores."""
        x = x + self.attn(self.ln_1(x), mask)
        return x + self.mlp(self.ln_2(x))


class TextTransformer(nn.Module):
    """The blocks, under the name that published checkpoints have for them."""

    def __init__(self, config: TextConfig) -> None:
        """Build from ``config``."""
        super().__init__()
        blocks = (TextBlock(config.width, config.heads, config.quick_gelu) for _ in range(config.layers))
        self.resblocks = nn.ModuleList(blocks)


def _drawn(deviation: float, *shape: int) -> Tensor:
    """Return normally distributed numbers, or none on the meta device: drawing there imports for a second."""
    empty = torch.empty(shape)
    return empty if empty.is_meta else empty.normal_(std=deviation)


class TextEncoder(nn.Module):
    """A causal text transformer; attribute names as in open_clip's published checkpoints."""

    token_ids: Tensor

    def __init__(self, config: TextConfig) -> None:
        """Build from ``config``; parameters as torch initialises them."""
        super().__init__()
        self.config = config
        rows = config.kept_tokens + 1 if config.kept_tokens else config.vocab_size
        self.token_embedding = nn.Embedding(rows, config.width, _weight=_drawn(1.0, rows, config.width))
        self.positional_embedding = nn.Parameter(_drawn(0.01, config.context_length, config.width))
        self.transformer = TextTransformer(config)
        self.ln_final = nn.LayerNorm(config.width)
        if config.kept_tokens:
            ids = torch.empty(config.kept_tokens, dtype=torch.long)
            self.register_buffer("token_ids", ids if ids.is_meta else torch.arange(len(ids)))

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Return (B, context_length) int64 token ids; a longer prompt is cut, a shorter one padded."""
        config = self.config
        encode = tokenizer(config.layout).encode
        most = config.context_length - 2
        cut = [encode(prompt)[:most] for prompt in prompts]
        return torch.tensor([frame(config, ids, START_TOKEN, END_TOKEN, config.pad_token) for ids in cut])

    def rows(self, tokens: Tensor) -> Tensor:
        """Map token ids to rows of the embedding; a token that was not kept maps to the last row."""
        if not self.config.kept_tokens:
            return tokens
        at = torch.searchsorted(self.token_ids, tokens).clamp(max=len(self.token_ids) - 1)
        return torch.where(self.token_ids[at] == tokens, at, len(self.token_ids))

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the vectors (B, context_length, width) of ``tokens`` (B, context_length) int64."""
        return self.token_embedding(self.rows(tokens))

    def read(self, vectors: Tensor) -> Tensor:
        """Return the context (B, context_length, width) of words given as what ``embed`` returns."""
        x = vectors + self.positional_embedding
        length = x.shape[1]
        mask = torch.full((length, length), float("-inf"), dtype=x.dtype, device=x.device).triu_(1)
        blocks = self.transformer.resblocks
        for block in blocks[: len(blocks) - self.config.layers_left_out]:
            x = block(x, mask)
        return self.ln_final(x)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the context (B, context_length, width) of ``tokens`` (B, context_length) int64."""
        return self.read(self.embed(tokens))

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Return the context (B, context_length, width) of plain captions; see ``core.prompts``."""
        return self(self.tokenize(prompts).to(self.positional_embedding.device))
