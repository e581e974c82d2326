"""Prompts to context: open_clip's text transformer and tokenizer, read as Stable Diffusion reads them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TypeVar

import ftfy
import regex
import torch
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transformer import QuickGELU, Transformer
from torch import Tensor, nn

from core.config import TextConfig

START_TOKEN, END_TOKEN = 49406, 49407
T = TypeVar("T")


class PublishedTokenizer(SimpleTokenizer):
    """The tokenizer as published with ViT-L/14: its special tokens are written ``<|endoftext|>``."""

    pat: regex.Pattern[str]

    def __init__(self) -> None:
        """Read open_clip's merges, with the published spelling of the special tokens."""
        super().__init__()
        special = {"<|startoftext|>": START_TOKEN, "<|endoftext|>": END_TOKEN}
        _, _, words = self.pat.pattern.split("|", 2)
        self.pat = regex.compile("|".join([*map(regex.escape, special), words]), regex.IGNORECASE)
        self.encoder.update(special)
        self.cache = {token: token for token in special}
        self.clean_fn = lambda text: " ".join(ftfy.fix_text(text).split()).lower()


@cache
def tokenizer(layout: str) -> SimpleTokenizer:
    """Return the tokenizer that text encoders published in ``layout`` ("hf" or "open_clip") are used with."""
    return PublishedTokenizer() if layout == "hf" else SimpleTokenizer()


def frame(config: TextConfig, words: Sequence[T], start: T, end: T, pad: T) -> list[T]:
    """Return the ``context_length`` places of a text, two of them not words: start, words, end, padding."""
    places = [start, *words, end]
    if config.repeat_prompt and words:
        copies = -(-config.context_length // (len(places) - 1))
        places = [start, *places[1:] * copies][: config.context_length]
    return places + [pad] * (config.context_length - len(places))


class TextEncoder(nn.Module):
    """A causal text transformer; attribute names as in open_clip's published checkpoints."""

    token_ids: Tensor

    def __init__(self, config: TextConfig) -> None:
        """Build from ``config``; parameters as torch and open_clip initialise them."""
        super().__init__()
        self.config = config
        rows = config.kept_tokens + 1 if config.kept_tokens else config.vocab_size
        self.token_embedding = nn.Embedding(rows, config.width)
        self.positional_embedding = nn.Parameter(torch.randn(config.context_length, config.width) * 0.01)
        self.transformer = Transformer(
            config.width, config.layers, config.heads, act_layer=QuickGELU if config.quick_gelu else nn.GELU
        )
        self.ln_final = nn.LayerNorm(config.width)
        if config.kept_tokens:
            self.register_buffer("token_ids", torch.arange(config.kept_tokens))

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
            x = block(x, attn_mask=mask)
        return self.ln_final(x)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the context (B, context_length, width) of ``tokens`` (B, context_length) int64."""
        return self.read(self.embed(tokens))

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Return the context (B, context_length, width) of plain captions; see ``core.prompts``."""
        return self(self.tokenize(prompts).to(self.positional_embedding.device))
