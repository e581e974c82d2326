"""Decoding large latents in strips: the same picture as the autoencoder's own ``decode``, in less memory.

A picture's rows are cut into strips that go through the decoder layer by layer, each with the nearest row of
its neighbours, which is all that a 3x3 convolution reads. The normalisations need the mean and variance of
the whole map: they are put together from those of the strips as they are made. So nothing is blended, and
only rounding differs. Where strips rest in main memory, the device never holds a whole map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from core.models.vae import AttnBlock, AutoencoderKL, Level, ResnetBlock, Upsample

STRIP_BYTES = 16 * 2**20  # of the largest map's strip: about what one layer keeps at a time
QUERIES = 1024  # pixels that attend at once


@dataclass(slots=True)
class Strips:
    """A map (1, C, h, w), cut into strips of rows. ``given`` are each strip's rows, means and variances."""

    groups: int
    rest: torch.device
    rows: list[Tensor | None] = field(default_factory=list)
    given: list[tuple[int, Tensor, Tensor]] = field(default_factory=list)

    def append(self, strip: Tensor) -> None:
        """Add the next strip (1, C, r, w)."""
        variances, means = torch.var_mean(strip.float(), dim=(0, 2, 3), correction=0)  # each (C,)
        # On the CPU: not every device has float64.
        means, variances = (t.cpu().double().view(self.groups, -1) for t in (means, variances))
        self.given.append((strip.shape[2], *_joined(means, variances, torch.ones_like(means))))
        self.rows.append(strip.to(self.rest, copy=True))  # a part of a larger tensor would keep all of it

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return mean and variance of each group over the whole map, float64 (groups,) on the CPU."""
        counts = torch.tensor([count for count, _, _ in self.given], dtype=torch.float64)
        means = torch.stack([mean for _, mean, _ in self.given], dim=1)
        variances = torch.stack([variance for _, _, variance in self.given], dim=1)
        return _joined(means, variances, counts.expand_as(means))

    def windows(self, device: torch.device, *, consume: bool = False) -> Iterator[tuple[Tensor, int, int]]:
        """Yield each strip with its neighbours' nearest rows, and how many were added above and below.

        With ``consume`` every strip is given up as soon as the next one is reached.
        """
        above: Tensor | None = None
        for i, strip in enumerate(self.rows):
            assert strip is not None
            below = self.rows[i + 1] if i + 1 < len(self.rows) else None
            edge = None if below is None else below[:, :, :1]
            parts = [part for part in (above, strip, edge) if part is not None]
            window = torch.cat([part.to(device) for part in parts], dim=2)
            yield window.contiguous(memory_format=torch.channels_last), int(i > 0), int(below is not None)
            above = strip[:, :, -1:].clone()
            if consume:
                self.rows[i] = None


def _joined(means: Tensor, variances: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance of parts put together, along the last axis; ``weights`` are their sizes."""
    shares = weights / weights.sum(dim=-1, keepdim=True)
    mean = (shares * means).sum(dim=-1)
    return mean, (shares * (variances + (means - mean[..., None]) ** 2)).sum(dim=-1)


def decode_in_strips(
    vae: AutoencoderKL, latents: Tensor, *, rest: torch.device | None = None, strip_bytes: int = STRIP_BYTES
) -> Tensor:
    """Return (1, 3, 8h, 8w), about [-1, 1], from scaled ``latents`` (1, embed_dim, h, w), in strips.

    Strips rest on ``rest``, by default where the latents are; ``strip_bytes`` bounds the largest.
    """
    decoder, device = vae.decoder, latents.device
    h = decoder.conv_in(vae.post_quant_conv(latents / vae.config.scale_factor))
    h = decoder.mid.block_2(_attend(decoder.mid.attn_1, decoder.mid.block_1(h)))
    height = _rows_each(vae, latents, strip_bytes)
    strips = Strips(vae.config.norm_groups, device if rest is None else rest)
    for strip in h.split(height, dim=2):
        strips.append(strip)
    del h
    for level in reversed(decoder.up):
        assert isinstance(level, Level)
        for block in level.block:
            assert isinstance(block, ResnetBlock)
            strips = _resnet(block, strips, device)
        if isinstance(level.upsample, Upsample):
            strips = _each(level.upsample, strips, device, scale=2)
    normed = _normed(decoder.norm_out, strips)
    windows = strips.windows(device, consume=True)
    return torch.cat([_cropped(decoder.conv_out(normed(x)), above, below) for x, above, below in windows], 2)


def _rows_each(vae: AutoencoderKL, latents: Tensor, strip_bytes: int) -> int:
    """Return how many rows of latents make a strip whose largest map stays within ``strip_bytes``."""
    widest = max(ch * 4**i for i, ch in enumerate(_channels(vae)))  # in units of a latent pixel
    return max(1, strip_bytes // (widest * latents.shape[3] * latents.element_size()))


def _channels(vae: AutoencoderKL) -> list[int]:
    """Return the channels with which each level begins, the smallest map's level first."""
    widths = [vae.config.ch * mult for mult in reversed(vae.config.ch_mult)]
    return [widths[0], *widths[:-1]]


def _attend(block: AttnBlock, x: Tensor) -> Tensor:
    """Map (1, C, h, w) as ``block`` does, some pixels at a time: each attends for itself."""
    h = block.norm(x)
    q, k, v = (rearrange(conv(h), "b c h w -> b 1 (h w) c") for conv in (block.q, block.k, block.v))
    seen = [F.scaled_dot_product_attention(some, k, v) for some in q.split(QUERIES, dim=2)]
    return x + block.proj_out(rearrange(torch.cat(seen, dim=2), "b 1 (h w) c -> b c h w", h=x.shape[2]))


def _normed(norm: nn.GroupNorm, strips: Strips) -> Callable[[Tensor], Tensor]:
    """Return the normalisation by the moments of the whole map, with SiLU."""
    mean, variance = strips.moments()
    rstd = (variance + norm.eps).rsqrt()
    each = norm.num_channels // norm.num_groups
    scale = norm.weight.cpu().double() * rstd.repeat_interleave(each)
    shift = norm.bias.cpu().double() - mean.repeat_interleave(each) * scale
    a, b = (t.float().to(norm.weight.device)[None, :, None, None] for t in (scale, shift))
    return lambda x: F.silu((x.float() * a + b).to(x.dtype))


def _each(
    layer: Callable[[Tensor], Tensor],
    strips: Strips,
    device: torch.device,
    *,
    scale: int = 1,
    consume: bool = True,
) -> Strips:
    """Put every strip through ``layer``, whose output has ``scale`` times the rows."""
    made = Strips(strips.groups, strips.rest)
    for window, above, below in strips.windows(device, consume=consume):
        made.append(_cropped(layer(window), scale * above, scale * below))
    return made


def _cropped(x: Tensor, above: int, below: int) -> Tensor:
    return x[:, :, above : x.shape[2] - below]


def _resnet(block: ResnetBlock, x: Strips, device: torch.device) -> Strips:
    first = _normed(block.norm1, x)
    h = _each(lambda window: block.conv1(first(window)), x, device, consume=False)
    second, made = _normed(block.norm2, h), Strips(x.groups, x.rest)
    pairs = zip(x.windows(device, consume=True), h.windows(device, consume=True), strict=True)
    for (skip, above, below), (window, _, _) in pairs:
        out = block.nin_shortcut(skip) + block.conv2(second(window))
        made.append(_cropped(out, above, below))
    return made
