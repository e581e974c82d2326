"""UniFormer-S with an UperNet head, which tells each pixel's class: convolutions first, then attention."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from annotators.nets.quick import fold_norms, use_winograd, when_loaded
from core.errors import CheckpointMismatch

CLASSES = 150  # of ADE20K
SMALLEST = 32  # pixels a side: the backbone halves five times
POOLS = (1, 2, 3, 6)  # cells a side in which the head pools the deepest features
HIDDEN = 4  # times as many channels within the perceptrons
MAX_CHANNELS, MAX_DEPTH = 4096, 64


@dataclass(frozen=True, slots=True)
class UniFormerConfig:
    """How large a network is; the defaults are the published file's.

    ``dims`` and ``depths`` are the channels and the blocks of the four stages, ``head_dim`` the channels of
    an attention head, ``width`` those of the UperNet head. ``side`` is the short side in pixels of the
    pictures that it knows best.
    """

    dims: tuple[int, int, int, int] = (64, 128, 320, 512)
    depths: tuple[int, int, int, int] = (3, 4, 8, 3)
    head_dim: int = 64
    width: int = 512
    side: int = 512

    def to_json(self) -> str:
        """Write what ``from_metadata`` reads from the key "config"."""
        return json.dumps(asdict(self))

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> UniFormerConfig:
        """Read the key "config" of a file's metadata; published files have none.

        Raises:
            CheckpointMismatch: it is no such configuration.
        """
        try:
            given = json.loads(metadata.get("config", "{}"))
            if not isinstance(given, dict) or set(given) - {field.name for field in fields(cls)}:
                raise ValueError("unknown names")
            given.update({name: tuple(given[name]) for name in ("dims", "depths") if name in given})
            config = cls(**given)
            config._check()
        except (ValueError, TypeError) as error:
            raise CheckpointMismatch(
                f'The file\'s metadata "config" describes no UniFormer ({error}): get the file anew.'
            ) from error
        return config

    def _check(self) -> None:
        if len(self.dims) != 4 or len(self.depths) != 4:
            raise ValueError("dims and depths need four numbers each")
        for number in (*self.dims, self.head_dim, self.width):
            if type(number) is not int or not 1 <= number <= MAX_CHANNELS:
                raise ValueError(f"{number!r} channels: 1 to {MAX_CHANNELS} are allowed")
        if type(self.side) is not int or not SMALLEST <= self.side <= MAX_CHANNELS:
            raise ValueError(f"side is {self.side!r}: {SMALLEST} to {MAX_CHANNELS} pixels are allowed")
        for number in self.depths:
            if type(number) is not int or not 1 <= number <= MAX_DEPTH:
                raise ValueError(f"{number!r} blocks: 1 to {MAX_DEPTH} are allowed")
        if any(dim % self.head_dim for dim in self.dims[2:]):
            raise ValueError(f"the last two dims are no multiples of head_dim, {self.head_dim}")


class PatchEmbed(nn.Module):
    """Makes patches of ``size`` pixels a side into one each."""

    def __init__(self, channels: int, dim: int, size: int) -> None:
        """Make the projection."""
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.proj = nn.Conv2d(channels, dim, size, stride=size)

    def forward(self, x: Tensor) -> Tensor:
        """Turn (B, channels, h, w) into (B, dim, h // size, w // size)."""
        return _by_pixel(self.norm, self.proj(x))


class Mlp(nn.Module):
    """A perceptron of two layers for each pixel; ``layer`` makes a linear layer or a 1x1 convolution."""

    def __init__(self, dim: int, layer: Any) -> None:
        """Make the layers."""
        super().__init__()
        self.fc1 = layer(dim, HIDDEN * dim)
        self.fc2 = layer(HIDDEN * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape."""
        return self.fc2(functional.gelu(self.fc1(x)))


class ConvBlock(nn.Module):
    """A block that looks around itself with a 5x5 convolution where attention would cost too much."""

    def __init__(self, dim: int) -> None:
        """Make the layers."""
        super().__init__()
        self.pos_embed = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm1 = nn.BatchNorm2d(dim)
        self.conv1 = nn.Conv2d(dim, dim, 1)
        self.conv2 = nn.Conv2d(dim, dim, 1)
        self.attn = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.norm2 = nn.BatchNorm2d(dim)
        self.mlp = Mlp(dim, lambda a, b: nn.Conv2d(a, b, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (B, dim, h, w)."""
        x = x + self.pos_embed(x)
        x = x + self.conv2(self.attn(self.conv1(self.norm1(x))))
        return x + self.mlp(self.norm2(x))


class Attention(nn.Module):
    """Attention of all pixels to all."""

    def __init__(self, dim: int, head_dim: int) -> None:
        """Make the projections."""
        super().__init__()
        self.head_dim = head_dim
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (B, n, dim)."""
        qkv = self.qkv(x).unflatten(2, (3, -1, self.head_dim)).permute(2, 0, 3, 1, 4)  # (3, B, heads, n, d)
        seen = functional.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        return self.proj(seen.transpose(1, 2).flatten(2))


class AttentionBlock(nn.Module):
    """A block in which each pixel attends to all others."""

    def __init__(self, dim: int, head_dim: int) -> None:
        """Make the layers."""
        super().__init__()
        self.pos_embed = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, head_dim)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, nn.Linear)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (B, dim, h, w)."""
        height, width = x.shape[2:]
        x = (x + self.pos_embed(x)).flatten(2).transpose(1, 2)  # (B, h * w, dim)
        x = x + self.attn(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return x.transpose(1, 2).unflatten(2, (height, width))


class UniFormer(nn.Module):
    """The backbone: four stages, two with convolutions, two with attention. Source: Li et al. 2022."""

    def __init__(self, config: UniFormerConfig) -> None:
        """Make the stages; their names end with 1 to 4."""
        super().__init__()
        channels = 3
        for number, (dim, depth) in enumerate(zip(config.dims, config.depths, strict=True), start=1):
            make = partial(AttentionBlock, dim, config.head_dim) if number > 2 else partial(ConvBlock, dim)
            self.add_module(f"patch_embed{number}", PatchEmbed(channels, dim, 4 if number == 1 else 2))
            self.add_module(f"blocks{number}", nn.Sequential(*(make() for _ in range(depth))))
            self.add_module(f"norm{number}", nn.LayerNorm(dim, eps=1e-6))
            channels = dim

    def forward(self, x: Tensor) -> list[Tensor]:
        """Turn (B, 3, h, w) into the stages' features, (B, dim, h / 4, w / 4) to (B, dim, h / 32, w / 32)."""
        features = []
        for number in range(1, 5):
            x = self.get_submodule(f"patch_embed{number}")(x)
            x = self.get_submodule(f"blocks{number}")(x)
            features.append(_by_pixel(self.get_submodule(f"norm{number}"), x))
        return features


class ConvUnit(nn.Sequential):
    """A convolution that keeps the size, a normalisation and a ReLU."""

    def __init__(self, channels: int, out: int, kernel: int = 1) -> None:
        """Make the layers."""
        conv = nn.Conv2d(channels, out, kernel, padding=kernel // 2, bias=False)
        super().__init__(OrderedDict(conv=conv, bn=nn.BatchNorm2d(out)))

    def forward(self, x: Tensor) -> Tensor:
        """Turn (B, channels, h, w) into (B, out, h, w)."""
        return functional.relu_(super().forward(x))


class Fusion(ConvUnit):
    """The same for several maps at once, the first one's size, to which the others are resized."""

    conv: nn.Conv2d
    bn: nn.Module

    def __init__(self, channels: int, out: int, kernel: int) -> None:
        """Make the layers."""
        super().__init__(channels, out, kernel)
        self.own: nn.Module | None = None  # the convolution of the first map, once split off

    def forward(self, maps: list[Tensor]) -> Tensor:  # type: ignore[override]  # several maps
        """Turn maps (B, c, h, w) of any sizes into (B, out, h, w) of the first one's size."""
        height, width = maps[0].shape[2:]
        own, *kernels = self.conv.weight.chunk(len(maps), dim=1)
        x = self.own(maps[0]) if self.own else functional.conv2d(maps[0], own, self.conv.bias, padding=1)
        for smaller, kernel in zip(maps[1:], kernels, strict=True):
            x = x + convolve_resized(smaller, kernel, (height, width))
        return functional.relu_(self.bn(x))

    def split(self, channels: int) -> nn.Module:
        """Make a convolution of its own for the first ``channels``; return its holder."""
        conv = nn.Conv2d(channels, self.conv.out_channels, 3, padding=1, bias=self.conv.bias is not None)
        conv.weight, conv.bias = nn.Parameter(self.conv.weight[:, :channels]), self.conv.bias
        self.own = nn.Sequential(conv.requires_grad_(False))
        return self.own


class UperHead(nn.Module):
    """All stages' features to the classes' logits. Source: Xiao et al. 2018, as in mmsegmentation."""

    def __init__(self, config: UniFormerConfig) -> None:
        """Make the layers."""
        super().__init__()
        dims, width = config.dims, config.width
        self.conv_seg = nn.Conv2d(width, CLASSES, 1)
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(cells), ConvUnit(dims[3], width)) for cells in POOLS
        )
        self.bottleneck = ConvUnit(dims[3] + len(POOLS) * width, width, 3)
        self.lateral_convs = nn.ModuleList(ConvUnit(dim, width) for dim in dims[:3])
        self.fpn_convs = nn.ModuleList(ConvUnit(width, width, 3) for _ in dims[:3])
        self.fpn_bottleneck = Fusion(len(dims) * width, width, 3)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Turn the four features into logits (B, 150, h, w) of the first one's size."""
        deepest = features[3]
        pooled = [_resize(psp(deepest), deepest) for psp in self.psp_modules]
        x = self.bottleneck(torch.cat([deepest, *pooled], dim=1))
        levels = [x]
        for i in (2, 1, 0):
            x = self.lateral_convs[i](features[i]) + _resize(x, features[i])
            levels.insert(0, self.fpn_convs[i](x))
        return self.conv_seg(self.fpn_bottleneck(levels))

    def quicken(self) -> None:
        """Do the same in less time, for inference: fold the normalisations, use Winograd's convolutions."""
        fold_norms(self)
        own = self.fpn_bottleneck.split(self.conv_seg.in_channels)
        for large in (self.fpn_convs[0], own):  # on smaller maps it would not pay
            use_winograd(large)


class UperNet(nn.Module):
    """A picture to the classes' logits. Keys as in the published file, without its auxiliary head."""

    def __init__(self, config: UniFormerConfig | None = None) -> None:
        """Make the network with random weights."""
        super().__init__()
        self.config = config or UniFormerConfig()
        self.backbone = UniFormer(self.config)
        self.decode_head = UperHead(self.config)

    def forward(self, x: Tensor) -> Tensor:
        """Turn (B, 3, h, w), at least 32 a side, into logits (B, 150, h // 4, w // 4).

        The three channels are normalised by ImageNet's mean and standard deviation.
        """
        return self.decode_head(self.backbone(x.contiguous(memory_format=torch.channels_last)))


def _by_pixel(norm: nn.Module, x: Tensor) -> Tensor:
    """Normalise (B, c, h, w) over its channels."""
    return norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _resize(x: Tensor, like: Tensor) -> Tensor:
    """Bring (B, c, h, w) to the height and width of ``like``."""
    return functional.interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)


def convolve_resized(x: Tensor, kernel: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (B, c, h, w) to ``size`` = (H, W), bilinearly, and convolve with (out, c, 3, 3), padded by 1.

    Resizing, and shifting by a pixel for each of the kernel's nine taps, are sums over rows and columns, and
    the taps mix channels: the order is free. With the taps first, on the small (h, w), a quarter or less of
    the multiplications remains.
    """
    rows, columns = (_shifted_resize(n, m, x) for n, m in zip(x.shape[2:], size, strict=True))
    pixels = x.permute(0, 2, 3, 1)  # (B, h, w, c)
    made = x.new_zeros(1, 1, 1)
    for i in range(3):
        taps = pixels @ kernel[:, :, i].permute(1, 2, 0).flatten(1)  # (B, h, w, 3 * out)
        wide = columns.flatten(1) @ taps.unflatten(3, (3, -1)).flatten(2, 3)  # (B, h, W, out)
        made = torch.baddbmm(made, rows[:, :, i].expand(len(x), -1, -1), wide.flatten(2))  # (B, H, W * out)
    return made.unflatten(2, (size[1], -1)).permute(0, 3, 1, 2)


def _shifted_resize(n: int, m: int, like: Tensor) -> Tensor:
    """Return (m, n, 3): how n pixels in a line become m, shifted by 1, 0 and -1 with zeros coming in."""
    line = torch.eye(n, dtype=like.dtype, device=like.device)[None]
    resized = functional.interpolate(line, m, mode="linear", align_corners=False)[0].T  # (m, n)
    padded = functional.pad(resized, (0, 0, 1, 1))
    return torch.stack([padded[i : i + m] for i in range(3)], dim=2)


def build(metadata: Mapping[str, str]) -> UperNet:
    """Make the network for a file from its metadata."""
    net = UperNet(UniFormerConfig.from_metadata(metadata)).to(memory_format=torch.channels_last)
    when_loaded(net.decode_head, lambda _: net.decode_head.quicken())
    return net


def without_use(key: str) -> bool:
    """Say whether a key of the published file is of the auxiliary head, which only training needs."""
    return key.startswith("auxiliary_head.")
