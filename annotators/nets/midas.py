"""The depth network of MiDaS, DPT-Hybrid: a ResNet, a transformer on top, and a decoder over both.

Source: Ranftl et al. 2021, "Vision Transformers for Dense Prediction".
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import StdConv2dSame
from timm.models.resnetv2 import ResNetV2
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from annotators.nets.quick import when_loaded
from core.errors import CheckpointMismatch

STRIDE = 32  # the input's sides are multiples of this
PATCH = 16  # pixels of the input to a side of a token
GROUPS = 32  # of the ResNet's group normalisations
NORM_EPS = 1e-6  # of the transformer's layer normalisations
MAX_NUMBER = 8192  # of channels; guards against nonsense in a file


@dataclass(frozen=True, slots=True)
class MidasConfig:
    """How large a network is; the defaults are the published file's.

    ``width``, ``depth`` and ``heads`` are the transformer's channels, blocks and attention heads, ``grid``
    the side in tokens of the square that its positions were trained on, and ``tap`` the earlier one of the
    two blocks that the decoder sees; the other is the last. ``layers`` counts the blocks of the ResNet's
    stages, ``stem`` and ``channels`` are their widths. ``features`` is the decoder's width.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    grid: int = 24
    tap: int = 8
    layers: tuple[int, int, int] = (3, 4, 9)
    stem: int = 64
    channels: tuple[int, int, int] = (256, 512, 1024)
    features: int = 256

    def to_json(self) -> str:
        """Write what ``from_metadata`` reads from the key "config"."""
        return json.dumps(asdict(self))

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> MidasConfig:
        """Read the key "config" of a file's metadata; published files have none.

        Raises:
            CheckpointMismatch: it is no such configuration.
        """
        try:
            given = json.loads(metadata.get("config", "{}"))
            if not isinstance(given, dict) or set(given) - {field.name for field in fields(cls)}:
                raise ValueError("unknown names")
            triples = {name: tuple(given[name]) for name in ("layers", "channels") if name in given}
            config = cls(**{**given, **triples})
            config._check()
        except (ValueError, TypeError) as error:
            raise CheckpointMismatch(
                f'The file\'s metadata "config" describes no MiDaS network ({error}): get the file anew.'
            ) from error
        return config

    def _check(self) -> None:
        if len(self.layers) != 3 or len(self.channels) != 3:
            raise ValueError("layers and channels need three numbers each")
        one_up = (self.width, self.depth, self.heads, self.grid, *self.layers, self.stem, *self.channels)
        for number in (*one_up, self.features):
            if type(number) is not int or not 1 <= number <= MAX_NUMBER:
                raise ValueError(f"{number!r}: 1 to {MAX_NUMBER} is allowed")
        if type(self.tap) is not int or not 0 <= self.tap < self.depth:
            raise ValueError(f"tap is {self.tap!r}: 0 to {self.depth - 1} is allowed")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads, {self.heads}")
        # A stage works inside with a quarter of its channels, and each is normalised in groups.
        if self.stem % GROUPS or any(channels % (4 * GROUPS) for channels in self.channels):
            raise ValueError(f"stem needs a multiple of {GROUPS}, channels multiples of {4 * GROUPS}")
        if self.features % 2:
            raise ValueError(f"features is {self.features}: an even number is needed")


class PatchEmbed(nn.Module):
    """Makes the transformer's tokens out of the ResNet's last stage."""

    def __init__(self, config: MidasConfig) -> None:
        """Make the ResNet, whose convolutions standardise their weights, and the projection."""
        super().__init__()
        self.backbone = ResNetV2(
            layers=config.layers,
            channels=config.channels,
            stem_chs=config.stem,
            num_classes=0,
            global_pool="",
            stem_type="same",
            preact=False,
            conv_layer=partial(StdConv2dSame, eps=1e-8),
        )
        self.proj = nn.Conv2d(config.channels[-1], config.width, 1)


class Encoder(nn.Module):
    """The ResNet and the transformer, without the normalisation and the classes at its end."""

    def __init__(self, config: MidasConfig) -> None:
        """Make the network with random weights."""
        super().__init__()
        self.tap, self.grid = config.tap, config.grid
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.grid**2, config.width))
        self.patch_embed = PatchEmbed(config)
        norm = partial(nn.LayerNorm, eps=NORM_EPS)
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, mlp_ratio=4, qkv_bias=True, norm_layer=norm)
            for _ in range(config.depth)
        )

    def positions(self, height: int, width: int) -> Tensor:
        """Return the positional embedding (1, 1 + height * width, c) of a grid of tokens."""
        start, square = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        square = square.unflatten(1, (self.grid, self.grid)).permute(0, 3, 1, 2)  # (1, c, grid, grid)
        if (height, width) != (self.grid, self.grid):
            square = F.interpolate(square, (height, width), mode="bilinear", align_corners=False)
        return torch.cat([start, square.flatten(2).transpose(1, 2)], dim=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return what the decoder sees, of (B, 3, h, w).

        The first two are the ResNet's stages 0 and 1, (B, c, h/4, w/4) and (B, c, h/8, w/8); the others are
        the tokens after two blocks, (B, 1 + h/16 * w/16, c).
        """
        resnet = self.patch_embed.backbone
        first = resnet.stages[0](resnet.stem(x))
        second = resnet.stages[1](first)
        patches = self.patch_embed.proj(resnet.stages[2](second))  # (B, c, h/16, w/16)
        tokens = patches.flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), tokens], dim=1)
        tokens = tokens + self.positions(patches.shape[2], patches.shape[3])
        third = tokens
        for i, block in enumerate(self.blocks):
            tokens = block(tokens)
            if i == self.tap:
                third = tokens
        return first, second, third, tokens


class Readout(nn.Module):
    """Tells every token what the class token knows."""

    def __init__(self, width: int) -> None:
        """Make the projection."""
        super().__init__()
        self.project = nn.Sequential(nn.Linear(2 * width, width), nn.GELU())

    def forward(self, tokens: Tensor) -> Tensor:
        """Turn tokens (B, 1 + n, c) into (B, n, c)."""
        start, others = tokens[:, :1], tokens[:, 1:]
        return self.project(torch.cat([others, start.expand_as(others)], dim=2))


def _postprocess(width: int, *, halve: bool) -> nn.Sequential:
    """Make what turns tokens back into a picture; the numbers are the published names."""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    parts["0"] = Readout(width)
    parts["3"] = nn.Conv2d(width, width, 1)
    if halve:
        parts["4"] = nn.Conv2d(width, width, 3, stride=2, padding=1)
    return nn.Sequential(parts)


class Pretrained(nn.Module):
    """The encoder, and what turns its tokens back into pictures."""

    def __init__(self, config: MidasConfig) -> None:
        """Make the network with random weights."""
        super().__init__()
        self.model = Encoder(config)
        self.act_postprocess3 = _postprocess(config.width, halve=False)
        self.act_postprocess4 = _postprocess(config.width, halve=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return features of (B, 3, h, w) at 1/4, 1/8, 1/16 and 1/32 of its size."""
        first, second, *tapped = self.model(x)
        size = x.shape[2] // PATCH, x.shape[3] // PATCH
        pictures = []
        for tokens, (readout, *convs) in zip(
            tapped, (self.act_postprocess3, self.act_postprocess4), strict=True
        ):
            picture = readout(tokens).transpose(1, 2).unflatten(2, size)  # (B, c, h/16, w/16)
            for conv in convs:
                picture = conv(picture)
            pictures.append(picture)
        return first, second, pictures[0], pictures[1]


def _double(x: Tensor) -> Tensor:
    """Double the height and the width, corners on corners."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)


class ResidualUnit(nn.Module):
    """Two convolutions beside the identity."""

    def __init__(self, features: int) -> None:
        """Make the convolutions."""
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (B, c, h, w)."""
        return x + self.conv2(self.conv1(x.relu()).relu_())


class Fusion(nn.Module):
    """Joins what comes from below with the encoder's features of the same size, and doubles the size."""

    def __init__(self, features: int, *, lowest: bool) -> None:
        """Make the units; at the lowest size nothing comes from below."""
        super().__init__()
        self.out_conv = nn.Conv2d(features, features, 1)
        if not lowest:
            self.resConfUnit1 = ResidualUnit(features)
        self.resConfUnit2 = ResidualUnit(features)

    def forward(self, x: Tensor, below: Tensor | None = None) -> Tensor:
        """Turn (B, c, h, w) into (B, c, 2h, 2w)."""
        if below is not None:
            x = below + self.resConfUnit1(x)
        # The original doubles first. A 1x1 convolution does not care, and costs a quarter this way.
        return _double(self.out_conv(self.resConfUnit2(x)))


class Scratch(nn.Module):
    """The decoder."""

    def __init__(self, config: MidasConfig) -> None:
        """Make the network with random weights."""
        super().__init__()
        seen = (config.channels[0], config.channels[1], config.width, config.width)
        features = config.features
        for number, channels in enumerate(seen, start=1):
            self.add_module(f"layer{number}_rn", nn.Conv2d(channels, features, 3, padding=1, bias=False))
            self.add_module(f"refinenet{number}", Fusion(features, lowest=number == len(seen)))
        parts: OrderedDict[str, nn.Module] = OrderedDict()  # the numbers are the published names
        parts["0"] = nn.Conv2d(features, features // 2, 3, padding=1)
        parts["1"] = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        parts["2"] = nn.Conv2d(features // 2, 32, 3, padding=1)
        parts["3"] = nn.ReLU(inplace=True)
        parts["4"] = nn.Conv2d(32, 1, 1)
        parts["5"] = nn.ReLU(inplace=True)
        self.output_conv = nn.Sequential(parts)

    def forward(self, *seen: Tensor) -> Tensor:
        """Turn features at 1/4, 1/8, 1/16 and 1/32 of the size into (B, 1, h, w), at least 0."""
        joined = None
        for number in range(len(seen), 0, -1):
            features = self.get_submodule(f"layer{number}_rn")(seen[number - 1])
            joined = self.get_submodule(f"refinenet{number}")(features, joined)
        return self.output_conv(joined)


class MidasNet(nn.Module):
    """Finds how near things are. Names are those of the published file."""

    def __init__(self, config: MidasConfig | None = None) -> None:
        """Make the network with random weights."""
        super().__init__()
        self.config = config = config or MidasConfig()
        self.pretrained = Pretrained(config)
        self.scratch = Scratch(config)

    def forward(self, x: Tensor) -> Tensor:
        """Return inverse depth (B, h, w), at least 0, larger is nearer; its unit is the picture's own.

        ``x`` is (B, 3, h, w), RGB in [-1, 1], its sides multiples of 32.
        """
        x = x.contiguous(memory_format=torch.channels_last)
        return self.scratch(*self.pretrained(x)).squeeze(1)


def build(metadata: Mapping[str, str]) -> MidasNet:
    """Make the network for a file of this metadata; with its weights it gets the quicker layout."""
    net = MidasNet(MidasConfig.from_metadata(metadata))
    when_loaded(net, _quicken)
    return net


def _quicken(net: nn.Module) -> None:
    net.to(memory_format=torch.channels_last)  # saves a tenth of the time on a CPU


# In the published file, but nothing is computed with them: the classes of the encoder's first training, and
# a unit for what comes from below the lowest size.
UNUSED = ("pretrained.model.norm.", "pretrained.model.head.", "scratch.refinenet4.resConfUnit1.")


def unused(key: str) -> bool:
    """Tell whether the network does without this key of the published file."""
    return key.startswith(UNUSED)
