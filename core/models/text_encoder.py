"""Prompts to context: open_clip's text transformer and tokenizer, read as Stable Diffusion reads them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import ftfy
import regex
import torch
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transformer import QuickGELU, Transformer
from torch import Tensor, nn

from core.config import TextConfig

START_TOKEN, END_TOKEN = 49406, 49407


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
        tokens = torch.full((len(prompts), config.context_length), config.pad_token)
        for row, prompt in zip(tokens, prompts, strict=True):
            ids = [START_TOKEN, *encode(prompt)[: config.context_length - 2], END_TOKEN]
            if config.repeat_prompt and len(ids) > 2:
                copies = -(-config.context_length // (len(ids) - 1))
                ids = [START_TOKEN, *ids[1:] * copies][: config.context_length]
            row[: len(ids)] = torch.tensor(ids)
        return tokens

    def _rows(self, tokens: Tensor) -> Tensor:
        """Map token ids to rows of the embedding; a token that was not kept maps to the last row."""
        if not self.config.kept_tokens:
            return tokens
        at = torch.searchsorted(self.token_ids, tokens).clamp(max=len(self.token_ids) - 1)
        return torch.where(self.token_ids[at] == tokens, at, len(self.token_ids))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the context (B, context_length, width) of ``tokens`` (B, context_length) int64."""
        x = self.token_embedding(self._rows(tokens))
        x = x + self.positional_embedding
        length = x.shape[1]
        mask = torch.full((length, length), float("-inf"), dtype=x.dtype, device=x.device).triu_(1)
        blocks = self.transformer.resblocks
        for block in blocks[:-1] if self.config.penultimate else blocks:
            x = block(x, attn_mask=mask)
        return self.ln_final(x)

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Return the context (B, context_length, width) of the prompts."""
        return self(self.tokenize(prompts).to(self.positional_embedding.device))
