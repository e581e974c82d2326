"""The diffusion UNet, and the encoder that it shares with ControlNet."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from core.config import UNetConfig
from core.models.blocks import (
    BasicTransformerBlock,
    CrossAttention,
    Downsample,
    KeyValue,
    ResBlock,
    SpatialTransformer,
    TimestepSequential,
    Upsample,
    convolved,
    timestep_embedding,
    zero_module,
)
from core.models.norms import GroupNorm

ContextKV = tuple[KeyValue, ...]  # one pair for each attention over the text, in the order of the blocks
Residuals = Sequence[Tensor | None]
# Blocks at either end that are run in every step; the deep ones between them may be left out in some. That is
# the least there can be: what more of them cost and gain is in docs/performance.md.
SHALLOW = 1


class UNetEncoder(nn.Module):
    """Time embedding, input blocks and middle block: the half that UNet and ControlNet have in common."""

    def __init__(self, config: UNetConfig) -> None:
        """Build from ``config``; parameters are random, as torch initialises them."""
        super().__init__()
        self.config = config
        ch = config.model_channels
        emb = ch * 4
        self.time_embed = nn.Sequential(nn.Linear(ch, emb), nn.SiLU(), nn.Linear(emb, emb))
        first = nn.Conv2d(config.in_channels, ch, 3, padding=1)
        self.input_blocks = nn.ModuleList([TimestepSequential(first)])
        self.skip_channels = [ch]
        self.factors = [1]  # how many times smaller than the input each block's output is
        ds = 1
        for level, mult in enumerate(config.channel_mult):
            for _ in range(config.res_blocks[level]):
                layers: list[nn.Module] = [ResBlock(ch, mult * config.model_channels, emb)]
                ch = mult * config.model_channels
                if ds in config.attention_resolutions:
                    layers.append(self._transformer(ch, ds))
                self._append(TimestepSequential(*layers), ch, ds)
            if level + 1 < len(config.channel_mult):
                ds *= 2
                self._append(TimestepSequential(Downsample(ch)), ch, ds)
        self.middle_block = TimestepSequential(
            ResBlock(ch, ch, emb), self._transformer(ch, ds), ResBlock(ch, ch, emb)
        )

    def _append(self, block: TimestepSequential, channels: int, factor: int) -> None:
        self.input_blocks.append(block)
        self.skip_channels.append(channels)
        self.factors.append(factor)

    def _transformer(self, ch: int, ds: int) -> SpatialTransformer:
        c = self.config
        heads = c.num_heads if c.num_heads > 0 else ch // c.num_head_channels
        finest = ds == min(c.attention_resolutions)
        return SpatialTransformer(
            ch, heads, ch // heads, c.transformer_depth, c.context_dim, c.use_linear_in_transformer, finest
        )

    @property
    def num_residuals(self) -> int:
        """How many residuals a ControlNet of this shape gives: one an input block, one for the middle."""
        return len(self.input_blocks) + 1

    def embed_time(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the (B, 4 * model_channels) embedding of the time steps ``t`` (B,)."""
        return self.time_embed(timestep_embedding(t, self.config.model_channels).to(dtype))

    def project_context(self, context: Tensor) -> ContextKV:
        """Compute every block's keys and values of the text ``context`` (B, tokens, context_dim), once."""
        return tuple(
            module.key_value(context)
            for name, module in self.named_modules()
            if isinstance(module, CrossAttention) and name.endswith("attn2")
        )

    def encode(
        self,
        x: Tensor,
        emb: Tensor,
        kvs: Iterator[KeyValue],
        hint: Tensor | None = None,
        merged: float = 0.0,
        blocks: int | None = None,
    ) -> list[Tensor]:
        """Return the output of every input block and, last, of the middle block.

        ``hint`` (B, model_channels, h, w), where given, is added once, after the first input block.
        ``merged`` is the share of the tokens that the finest self-attention merges away. With ``blocks`` only
        so many input blocks are run, and not the middle one.
        """
        outputs = []
        for i, block in enumerate(self.input_blocks[:blocks]):
            x = block(x, emb, kvs, merged)
            if i == 0 and hint is not None:
                x = x + hint
            outputs.append(x)
        if blocks is None:
            outputs.append(self.middle_block(x, emb, kvs, merged))
        return outputs


class UNet(UNetEncoder):
    """The denoiser: predicts eps or v from a noisy latent, its time step, the text and control residuals."""

    def __init__(self, config: UNetConfig) -> None:
        """Build from ``config``."""
        super().__init__(config)
        emb = config.model_channels * 4
        skips = list(self.skip_channels)
        ch = skips[-1]
        ds = 2 ** (len(config.channel_mult) - 1)
        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(config.channel_mult))):
            for i in range(config.res_blocks[level] + 1):
                layers: list[nn.Module] = [ResBlock(ch + skips.pop(), mult * config.model_channels, emb)]
                ch = mult * config.model_channels
                if ds in config.attention_resolutions:
                    layers.append(self._transformer(ch, ds))
                if level and i == config.res_blocks[level]:
                    layers.append(Upsample(ch))
                    ds //= 2
                self.output_blocks.append(TimestepSequential(*layers))
        self.out = nn.Sequential(
            GroupNorm(32, ch), nn.SiLU(), zero_module(nn.Conv2d(ch, config.out_channels, 3, padding=1))
        )

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        context: Tensor | ContextKV,
        residuals: Residuals | Callable[[], Residuals] | None = None,
        merged: float = 0.0,
    ) -> Tensor:
        """Predict eps or v.

        Args:
            x: (B, in_channels, h, w) noisy latents; h and w divisible by the encoder's largest factor.
            t: (B,) time steps.
            context: (B, tokens, context_dim), or what ``project_context`` made of it.
            residuals: one for each input block's skip, last the middle block's; each (B, c, h', w') or None
                for nothing, which is how control on the middle block alone is asked for. Or a function that
                gives them, called once the encoder is done: they may be computed beside it.
            merged: the share of the tokens that the finest self-attention merges away.
        """
        return self.whole(x, t, context, residuals, merged)[0]

    def whole(
        self,
        x: Tensor,
        t: Tensor,
        context: Tensor | ContextKV,
        residuals: Residuals | Callable[[], Residuals] | None = None,
        merged: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """Return what ``forward`` does, and the deep features that ``shallow`` can go on from."""
        emb = self.embed_time(t, x.dtype)
        kvs = iter(context if isinstance(context, tuple) else self.project_context(context))
        encoded = self.encode(x, emb, kvs, merged=merged)
        return self.decode_whole(encoded, emb, kvs, residuals() if callable(residuals) else residuals, merged)

    def shallow(
        self,
        x: Tensor,
        t: Tensor,
        context: ContextKV,
        residuals: Residuals | None,
        deep: Tensor,
        merged: float = 0.0,
    ) -> Tensor:
        """Predict with the first and the last SHALLOW blocks alone; ``deep`` stands for all between them.

        ``residuals`` are those of the first blocks only; the other arguments are those of ``forward``.

        Source: DeepCache (arXiv 2312.00858).
        """
        emb = self.embed_time(t, x.dtype)
        ahead = count_transformers(self.input_blocks[:SHALLOW])
        behind = count_transformers(self.output_blocks[-SHALLOW:])
        kvs = iter((*context[:ahead], *context[len(context) - behind :]))
        skips = self.encode(x, emb, kvs, merged=merged, blocks=SHALLOW)
        if residuals is not None:
            skips = _add(skips, residuals)
        return convolved(self.out, self._ascend(self.output_blocks[-SHALLOW:], deep, skips, emb, kvs, merged))

    def decode(
        self,
        encoded: Sequence[Tensor],
        emb: Tensor,
        kvs: Iterator[KeyValue],
        residuals: Residuals | None = None,
    ) -> Tensor:
        """Return the prediction from what ``encode`` gave; the arguments are those of ``forward``.

        ``kvs`` are at the first pair of the output blocks.
        """
        return self.decode_whole(encoded, emb, kvs, residuals)[0]

    def decode_whole(
        self,
        encoded: Sequence[Tensor],
        emb: Tensor,
        kvs: Iterator[KeyValue],
        residuals: Residuals | None = None,
        merged: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """Return what ``decode`` does, and the deep features."""
        skips, h = self._controlled(encoded, residuals)
        deep = self._ascend(self.output_blocks[:-SHALLOW], h, skips, emb, kvs, merged)
        h = self._ascend(self.output_blocks[-SHALLOW:], deep, skips, emb, kvs, merged)
        return convolved(self.out, h), deep

    def _controlled(
        self, encoded: Sequence[Tensor], residuals: Residuals | None
    ) -> tuple[list[Tensor], Tensor]:
        """Return the skips and the middle block's output, with the residuals added."""
        if residuals is None:
            return list(encoded[:-1]), encoded[-1]
        if len(residuals) != self.num_residuals:
            raise ValueError(f"{len(residuals)} residuals given: this UNet takes {self.num_residuals}.")
        *skips, h = _add(encoded, residuals)
        return skips, h

    @staticmethod
    def _ascend(
        blocks: Iterable[nn.Module],
        h: Tensor,
        skips: list[Tensor],
        emb: Tensor,
        kvs: Iterator[KeyValue],
        merged: float = 0.0,
    ) -> Tensor:
        """Run output blocks, each with the last of the ``skips``, which are used up."""
        for block in blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), emb, kvs, merged)
        return h


def _add(values: Sequence[Tensor], residuals: Residuals) -> list[Tensor]:
    return [v if r is None else v + r for v, r in zip(values, residuals, strict=True)]


def count_transformers(blocks: Iterable[nn.Module]) -> int:
    """Return how many pairs of keys and values of the text these blocks take."""
    return sum(isinstance(m, BasicTransformerBlock) for block in blocks for m in block.modules())
