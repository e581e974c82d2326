"""AutoencoderKL: pictures to latents and back (arXiv 2112.10752), with the published attribute names."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from core.config import VAEConfig
from core.models.norms import GroupNorm

EPS = 1e-6  # of every GroupNorm in the autoencoder


class ResnetBlock(nn.Module):
    """GroupNorm, SiLU, conv, twice; plus a skip."""

    def __init__(self, channels: int, out_channels: int, groups: int) -> None:
        """Build for (B, channels, h, w) in, (B, out_channels, h, w) out."""
        super().__init__()
        self.norm1 = GroupNorm(groups, channels, eps=EPS)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm2 = GroupNorm(groups, out_channels, eps=EPS)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        same = channels == out_channels
        self.nin_shortcut = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (B, C, h, w)."""
        h = self.conv1(self.norm1.silu(x))
        h = self.conv2(self.norm2.silu(h))
        return self.nin_shortcut(x) + h


class AttnBlock(nn.Module):
    """Single-head self-attention over the pixels, plus a skip."""

    def __init__(self, channels: int, groups: int) -> None:
        """Build for (B, channels, h, w)."""
        super().__init__()
        self.norm = GroupNorm(groups, channels, eps=EPS)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (B, C, h, w)."""
        h = self.norm(x)
        q, k, v = (rearrange(conv(h), "b c h w -> b 1 (h w) c") for conv in (self.q, self.k, self.v))
        out = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(rearrange(out, "b 1 (h w) c -> b c h w", h=x.shape[2]))


class Downsample(nn.Module):
    """Halve height and width: one row and one column of zeros on the far side, then a strided convolution."""

    def __init__(self, channels: int) -> None:
        """Build for (B, channels, h, w)."""
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, C, h/2, w/2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double height and width by nearest neighbour and a convolution."""

    def __init__(self, channels: int) -> None:
        """Build for (B, channels, h, w)."""
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, C, 2h, 2w)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The blocks at one resolution and, where another follows, the change to it."""

    def __init__(
        self, blocks: list[nn.Module], downsample: nn.Module | None = None, upsample: nn.Module | None = None
    ) -> None:
        """Take the layers."""
        super().__init__()
        self.block = nn.Sequential(*blocks)
        self.downsample = downsample or nn.Identity()
        self.upsample = upsample or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (B, C, h, w)."""
        return self.upsample(self.downsample(self.block(x)))


class Middle(nn.Module):
    """Two residual blocks around attention, at the smallest resolution."""

    def __init__(self, channels: int, groups: int) -> None:
        """Build for (B, channels, h, w)."""
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, groups)
        self.attn_1 = AttnBlock(channels, groups)
        self.block_2 = ResnetBlock(channels, channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (B, C, h, w)."""
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    """Pictures to the moments of the latent distribution, before ``quant_conv``."""

    def __init__(self, config: VAEConfig) -> None:
        """Build from ``config``."""
        super().__init__()
        groups, ch = config.norm_groups, config.ch
        self.conv_in = nn.Conv2d(config.in_channels, ch, 3, padding=1)
        self.down = nn.ModuleList()
        for level, mult in enumerate(config.ch_mult):
            blocks: list[nn.Module] = []
            for _ in range(config.num_res_blocks):
                blocks.append(ResnetBlock(ch, mult * config.ch, groups))
                ch = mult * config.ch
            last = level + 1 == len(config.ch_mult)
            self.down.append(Level(blocks, downsample=None if last else Downsample(ch)))
        self.mid = Middle(ch, groups)
        self.norm_out = GroupNorm(groups, ch, eps=EPS)
        self.conv_out = nn.Conv2d(ch, 2 * config.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 3, H, W) in [-1, 1] to (B, 2 * z_channels, H/8, W/8)."""
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        return self.conv_out(self.norm_out.silu(self.mid(h)))


class Decoder(nn.Module):
    """Latents, after ``post_quant_conv``, to pictures."""

    def __init__(self, config: VAEConfig) -> None:
        """Build from ``config``."""
        super().__init__()
        groups, ch = config.norm_groups, config.ch * config.ch_mult[-1]
        self.conv_in = nn.Conv2d(config.z_channels, ch, 3, padding=1)
        self.mid = Middle(ch, groups)
        levels = []
        for level, mult in reversed(list(enumerate(config.ch_mult))):
            blocks: list[nn.Module] = []
            for _ in range(config.num_res_blocks + 1):
                blocks.append(ResnetBlock(ch, mult * config.ch, groups))
                ch = mult * config.ch
            levels.append(Level(blocks, upsample=Upsample(ch) if level else None))
        self.up = nn.ModuleList(reversed(levels))  # published order: index 0 is the full resolution
        self.norm_out = GroupNorm(groups, ch, eps=EPS)
        self.conv_out = nn.Conv2d(ch, config.out_ch, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """Map (B, z_channels, h, w) to (B, 3, 8h, 8w), about [-1, 1]."""
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        return self.conv_out(self.norm_out.silu(h))


class AutoencoderKL(nn.Module):
    """Encoder and decoder around a Gaussian latent. Owns the scale factor: callers see scaled latents."""

    def __init__(self, config: VAEConfig) -> None:
        """Build from ``config``."""
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * config.z_channels, 2 * config.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.z_channels, 1)

    @property
    def factor(self) -> int:
        """How many times smaller than the picture the latents are, on each side."""
        return 2 ** (len(self.config.ch_mult) - 1)

    def moments(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of ``image`` (B, 3, H, W), unscaled, each (B, embed_dim, H/8, W/8)."""
        mean, logvar = self.quant_conv(self.encoder(image)).chunk(2, dim=1)
        return mean, logvar.clamp(-30.0, 20.0)

    def encode(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return scaled latents (B, embed_dim, H/8, W/8) of ``image`` (B, 3, H, W) in [-1, 1].

        Without ``generator`` the mode of the distribution; with one, a sample of it.
        """
        mean, logvar = self.moments(image)
        if generator is not None:
            noise = torch.randn(mean.shape, generator=generator).to(mean)
            mean = mean + (0.5 * logvar).exp() * noise
        return mean * self.config.scale_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Return (B, 3, 8h, 8w), about [-1, 1], from scaled ``latents`` (B, embed_dim, h, w)."""
        return self.decoder(self.post_quant_conv(latents / self.config.scale_factor))
