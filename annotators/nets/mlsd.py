"""M-LSD large: a MobileNetV2 that marks the centres of straight lines and points at both their ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from annotators.nets.quick import fold_norms, when_loaded

STRIDE = 16  # each side of the input must be a multiple of it
# Of each group of inverted residuals: how much the middle is wider, channels, how many, first stride.
GROUPS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1))
KEPT = (1, 3, 6, 10, 13)  # features that the decoder takes: at 1/2, 1/4, 1/8, 1/16 and 1/16
FIRST_USED = 7  # of the 16 output channels; those before only helped in training
MOST = 200  # lines in a picture


def conv_relu6(
    channels_in: int, channels_out: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Module:
    """Return convolution, normalisation, ReLU6; with stride 2 unpadded, see ``pad_below_right``."""
    padding = 0 if stride == 2 else kernel // 2
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU6(inplace=True),
    )


def conv_relu(channels_in: int, channels_out: int, kernel: int, dilation: int = 1) -> nn.Sequential:
    """Return convolution, normalisation, ReLU, at the same size."""
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel, padding=padding, dilation=dilation),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )


def pad_below_right(x: Tensor) -> Tensor:
    """Add a row and a column of zeros: TensorFlow's padding of a 3x3 convolution with stride 2."""
    return functional.pad(x, (0, 1, 0, 1))


class InvertedResidual(nn.Module):
    """Widen, filter each channel, narrow again; added to the input where the shapes allow."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, wider: int) -> None:
        """Make the block; ``wider`` 1 leaves the widening out."""
        super().__init__()
        middle = channels_in * wider
        self.stride, self.residual = stride, stride == 1 and channels_in == channels_out
        layers = [conv_relu6(channels_in, middle, 1)] if wider != 1 else []
        layers += [
            conv_relu6(middle, middle, 3, stride, groups=middle),
            nn.Conv2d(middle, channels_out, 1, bias=False),
            nn.BatchNorm2d(channels_out),
        ]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Turn (B, in, h, w) into (B, out, h / stride, w / stride)."""
        h = x
        for layer in self.conv:
            strided = isinstance(layer, nn.Sequential) and self.stride == 2 and layer[0].stride == (2, 2)
            h = layer(pad_below_right(h) if strided else h)
        return x + h if self.residual else h


class Backbone(nn.Module):
    """The first fourteen layers of MobileNetV2, for four channels."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        layers, channels = [conv_relu6(4, 32, 3, stride=2)], 32
        for wider, channels_out, count, stride in GROUPS:
            for i in range(count):
                layers.append(InvertedResidual(channels, channels_out, stride if i == 0 else 1, wider))
                channels = channels_out
        self.features = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Turn (B, 4, h, w) into the five features ``KEPT``."""
        kept = []
        for i, layer in enumerate(self.features):
            x = layer(pad_below_right(x) if i == 0 else x)
            if i in KEPT:
                kept.append(x)
        return kept


class Join(nn.Module):
    """Bring a coarser and a finer feature to as many channels and the same size; put one on the other."""

    def __init__(self, fine: int, coarse: int, out: int, *, upscale: bool = True) -> None:
        """Make the two convolutions; without ``upscale`` both features are of one size."""
        super().__init__()
        self.conv1 = conv_relu(coarse, out, 1)
        self.conv2 = conv_relu(fine, out, 1)
        self.upscale = upscale

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """Turn (B, fine, h, w) and (B, coarse, h / 2, w / 2) into (B, 2 * out, h, w)."""
        coarse = self.conv1(coarse)
        if self.upscale:
            coarse = functional.interpolate(coarse, scale_factor=2.0, mode="bilinear", align_corners=True)
        return torch.cat([self.conv2(fine), coarse], dim=1)


class Refine(nn.Module):
    """Two 3x3 convolutions, the first with a way around it."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        """Make the two convolutions."""
        super().__init__()
        self.conv1 = conv_relu(channels_in, channels_in, 3)
        self.conv2 = conv_relu(channels_in, channels_out, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Turn (B, in, h, w) into (B, out, h, w)."""
        y: Tensor = self.conv2(self.conv1(x) + x)
        return y


class Head(nn.Module):
    """Look far around, then name the numbers of each point."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        """Make the three convolutions."""
        super().__init__()
        self.conv1 = conv_relu(channels_in, channels_in, 3, dilation=5)
        self.conv2 = conv_relu(channels_in, channels_in, 3)
        self.conv3 = nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Turn (B, in, h, w) into (B, out, h, w)."""
        y: Tensor = self.conv3(self.conv2(self.conv1(x)))
        return y


class MLSD(nn.Module):
    """RGB and a plane of ones to maps of line centres. Keys as in the published mlsd_large_512_fp32.pth.

    Source: Gu et al. 2022 (arXiv 2106.00186), the large model.
    """

    def __init__(self) -> None:
        """Make the network."""
        super().__init__()
        self.backbone = Backbone()
        self.block15, self.block16 = Join(64, 96, 64, upscale=False), Refine(128, 64)
        self.block17, self.block18 = Join(32, 64, 64), Refine(128, 64)
        self.block19, self.block20 = Join(24, 64, 64), Refine(128, 64)
        self.block21, self.block22 = Join(16, 64, 64), Refine(128, 64)
        self.block23 = Head(64, 16)

    def forward(self, x: Tensor) -> Tensor:
        """Turn (B, 4, h, w) in [-1, 1], multiples of 16, into (B, 9, h / 2, w / 2).

        Channel 0 is the logit of a line's centre, 1 to 4 the way from there to the ends: x, y, x, y in
        pixels of the output.
        """
        return self.read(self.backbone(x))

    def read(self, features: Sequence[Tensor]) -> Tensor:
        """Turn the five features of the backbone into the maps."""
        c1, c2, c3, c4, c5 = features
        y = self.block16(self.block15(c4, c5))
        y = self.block18(self.block17(c3, y))
        y = self.block20(self.block19(c2, y))
        y = self.block22(self.block21(c1, y))
        maps: Tensor = self.block23(y)
        return maps[:, FIRST_USED:]


def build(metadata: Mapping[str, str]) -> MLSD:
    """Make the network for a file; there is one size. It is made quicker when it has its weights."""
    net = MLSD()
    when_loaded(net, _quicken)
    return net


def _quicken(net: nn.Module) -> None:
    fold_norms(net)
    net.to(memory_format=torch.channels_last)


def find_lines(maps: Tensor, value_threshold: float, distance_threshold: float) -> Tensor:
    """Read the lines off maps (9 or 5, h, w): (n, 4) x0, y0, x1, y1 in pixels of the input, the surest first.

    Of the ``MOST`` surest centres, each the surest of its 3x3 neighbours, those count whose probability
    exceeds ``value_threshold`` and whose line is longer than ``distance_threshold`` pixels of the maps.
    """
    width = maps.shape[2]
    sure = maps[0].sigmoid()
    crest = functional.max_pool2d(sure[None], 3, stride=1, padding=1)[0] == sure
    scores, places = (sure * crest).flatten().topk(min(MOST, sure.numel()))
    ways = maps[1:5].flatten(1)[:, places].T  # (n, 4): from the centre to both ends
    length = (ways[:, :2] - ways[:, 2:]).square().sum(dim=1).sqrt()
    x, y = places % width, places // width
    ends = torch.stack([x, y, x, y], dim=1) + ways
    return 2 * ends[(scores > value_threshold) & (length > distance_threshold)]
