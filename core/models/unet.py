"""The diffusion UNet, and the encoder that it shares with ControlNet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from core.config import UNetConfig
from core.models.blocks import (
    CrossAttention,
    Downsample,
    KeyValue,
    ResBlock,
    SpatialTransformer,
    TimestepSequential,
    Upsample,
    timestep_embedding,
    zero_module,
)
from core.models.norms import GroupNorm

ContextKV = tuple[KeyValue, ...]  # one pair for each attention over the text, in the order of the blocks
Residuals = Sequence[Tensor | None]


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
            for _ in range(config.num_res_blocks):
                layers: list[nn.Module] = [ResBlock(ch, mult * config.model_channels, emb)]
                ch = mult * config.model_channels
                if ds in config.attention_resolutions:
                    layers.append(self._transformer(ch))
                self._append(TimestepSequential(*layers), ch, ds)
            if level + 1 < len(config.channel_mult):
                ds *= 2
                self._append(TimestepSequential(Downsample(ch)), ch, ds)
        self.middle_block = TimestepSequential(
            ResBlock(ch, ch, emb), self._transformer(ch), ResBlock(ch, ch, emb)
        )

    def _append(self, block: TimestepSequential, channels: int, factor: int) -> None:
        self.input_blocks.append(block)
        self.skip_channels.append(channels)
        self.factors.append(factor)

    def _transformer(self, ch: int) -> SpatialTransformer:
        c = self.config
        heads = c.num_heads if c.num_heads > 0 else ch // c.num_head_channels
        return SpatialTransformer(
            ch, heads, ch // heads, c.transformer_depth, c.context_dim, c.use_linear_in_transformer
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
        self, x: Tensor, emb: Tensor, kvs: Iterator[KeyValue], hint: Tensor | None = None
    ) -> list[Tensor]:
        """Return the output of every input block and, last, of the middle block.

        ``hint`` (B, model_channels, h, w), where given, is added once, after the first input block.
        """
        outputs = []
        for i, block in enumerate(self.input_blocks):
            x = block(x, emb, kvs)
            if i == 0 and hint is not None:
                x = x + hint
            outputs.append(x)
        outputs.append(self.middle_block(x, emb, kvs))
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
            for i in range(config.num_res_blocks + 1):
                layers: list[nn.Module] = [ResBlock(ch + skips.pop(), mult * config.model_channels, emb)]
                ch = mult * config.model_channels
                if ds in config.attention_resolutions:
                    layers.append(self._transformer(ch))
                if level and i == config.num_res_blocks:
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
    ) -> Tensor:
        """Predict eps or v.

        Args:
            x: (B, in_channels, h, w) noisy latents; h and w divisible by the encoder's largest factor.
            t: (B,) time steps.
            context: (B, tokens, context_dim), or what ``project_context`` made of it.
            residuals: one for each input block's skip, last the middle block's; each (B, c, h', w') or None
                for nothing, which is how control on the middle block alone is asked for. Or a function that
                gives them, called once the encoder is done: they may be computed beside it.
        """
        emb = self.embed_time(t, x.dtype)
        kvs = iter(context if isinstance(context, tuple) else self.project_context(context))
        encoded = self.encode(x, emb, kvs)
        return self.decode(encoded, emb, kvs, residuals() if callable(residuals) else residuals)

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
        *skips, h = encoded
        if residuals is not None:
            if len(residuals) != self.num_residuals:
                raise ValueError(f"{len(residuals)} residuals given: this UNet takes {self.num_residuals}.")
            *extra, middle = residuals
            skips = [s if r is None else s + r for s, r in zip(skips, extra, strict=True)]
            h = h if middle is None else h + middle
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), emb, kvs)
        return self.out(h)
