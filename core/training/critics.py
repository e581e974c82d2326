"""What tells a decoded picture from a true one, beyond their pixels: the apps' detectors, and an adversary.

Sources: distances of features, Johnson et al. 2016 (arXiv 1603.08155) and Zhang et al. 2018 (1801.03924); an
adversary that judges patches, Isola et al. 2017 (1611.07004); its hinge loss, Lim and Ye 2017 (1705.02894).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from annotators.nets.hed import HED
from annotators.nets.mlsd import MLSD
from annotators.nets.openpose import STRIDE, BodyNet, OpenPoseConfig, published_key
from annotators.nets.quick import fold_norms
from annotators.pose import BODY_SCALE, BOX
from core.runtime.device import autocast
from core.weights.registry import Registry

POSE = "demo_openpose_body"
LINE_FEATURES = 2  # of five
HED_BLOCKS = 2  # of five: outlines are seen in the first, and each costs as much as the one before
ADVERSARY_WIDTHS = (48, 96, 192)
FARTHEST = 20  # pixels of M-LSD's maps: an end that is farther off is no worse
FEW_LINES = 4  # are always counted as there, so that a picture without any does not weigh endlessly
LINES_WEIGHT = 2.0  # of what M-LSD says, beside each of the features
POSE_WEIGHT = 50.0  # its maps are nearly everywhere 0


NetworkT = TypeVar("NetworkT", bound=nn.Module)


def load_network(net: NetworkT, name: str, key_of: Callable[[str], str] = str) -> NetworkT:
    """Give ``net`` the weights that the registry calls ``name``; it does not learn.

    Raises:
        WeightsMissing: they are not on this computer; says how to get them.
    """
    tensors = load_file(Registry.load().locate(name))
    wanted = [key for key in net.state_dict() if not key.endswith("num_batches_tracked")]
    net.load_state_dict({key: tensors[key_of(key)].float() for key in wanted}, strict=False)
    return net.eval().requires_grad_(False)


class EdgeCritic(nn.Module):
    """How differently HED sees two pictures."""

    def __init__(self) -> None:
        """Load it from where the apps have it.

        Raises:
            WeightsMissing: it is not on this computer; says how to get it.
        """
        super().__init__()
        self.hed = load_network(HED(), "hed")

    def see(self, x: Tensor) -> list[Tensor]:
        """Return the features of pictures (B, 3, H, W) in [-1, 1]."""
        features, h = [], (x + 1) * 127.5 - self.hed.norm
        for number in range(1, HED_BLOCKS + 1):
            h = F.max_pool2d(h, 2) if number > 1 else h
            h = self.hed.get_submodule(f"block{number}")(h)
            features.append(h)
        return features

    def compare(self, found: list[Tensor], wanted: list[Tensor]) -> Tensor:
        """Return the distance of what was seen in two pictures."""
        return _distance(found, wanted)


class LineCritic(nn.Module):
    """How differently M-LSD sees two pictures."""

    def __init__(self) -> None:
        """Load it from where the apps have it.

        Raises:
            WeightsMissing: it is not on this computer; says how to get it.
        """
        super().__init__()
        self.mlsd = load_network(MLSD(), "mlsd")
        fold_norms(self.mlsd)

    def see(self, x: Tensor) -> list[Tensor]:
        """Return features of pictures (B, 3, H, W) in [-1, 1], sides multiples of 16, and last the lines."""
        ones = torch.full_like(x[:, :1], 1 / 127.5 - 1)  # the fourth channel, scaled with the colours
        features = self.mlsd.backbone(torch.cat([x, ones], dim=1))
        return [*features[:LINE_FEATURES], self.mlsd.read(features)]

    def compare(self, found: list[Tensor], wanted: list[Tensor]) -> Tensor:
        """Return the distance of what was seen in two pictures."""
        return _distance(found[:-1], wanted[:-1]) + LINES_WEIGHT * self.lines_apart(found[-1], wanted[-1])

    @staticmethod
    def lines_apart(found: Tensor, wanted: Tensor) -> Tensor:
        """Return how differently two maps (B, 9, h, w) say that there are lines, and where they end."""
        found, wanted = found.float(), wanted.float()
        sure, truly_sure = found[:, 0].sigmoid(), wanted[:, 0].sigmoid()
        ways = ((found[:, 1:5] - wanted[:, 1:5]).abs().clamp(max=FARTHEST) * truly_sure[:, None]).sum()
        there = truly_sure.sum() + FEW_LINES * len(found)
        return ((sure - truly_sure).abs().sum() + ways / FARTHEST / 2) / there


class PoseCritic(nn.Module):
    """How differently the demo pose detector sees two pictures."""

    def __init__(self, side: int) -> None:
        """Load it from where the apps have it; ``side`` in pixels is that of a whole picture.

        Raises:
            WeightsMissing: it is not on this computer; says how to get it.
        """
        super().__init__()
        with safe_open(Registry.load().locate(POSE), "pt") as file:
            config = OpenPoseConfig.from_metadata(file.metadata() or {})
        self.pose = load_network(BodyNet(config), POSE, published_key)
        self.scale = BODY_SCALE * BOX / side

    def see(self, x: Tensor) -> list[Tensor]:
        """Return the fields and the parts' maps of pictures (B, 3, H, W) in [-1, 1]."""
        smaller = F.interpolate(x.flip(1), scale_factor=self.scale, mode="bicubic")
        height, width = (side // STRIDE * STRIDE for side in smaller.shape[2:])
        return list(self.pose(smaller[:, :, :height, :width] * (127.5 / 256)))

    def compare(self, found: list[Tensor], wanted: list[Tensor]) -> Tensor:
        """Return the distance of what was seen in two pictures."""
        apart = [F.mse_loss(a.float(), b.float()) for a, b in zip(found, wanted, strict=True)]
        return POSE_WEIGHT * torch.stack(apart).sum()


class Detectors(nn.Module):
    """How differently HED, M-LSD and the demo pose detector see two pictures."""

    def __init__(self, side: int) -> None:
        """Load them from where the apps have them; ``side`` in pixels is that of a whole picture.

        Raises:
            WeightsMissing: one is not on this computer; says how to get it.
        """
        super().__init__()
        self.edges, self.lines, self.poses = EdgeCritic(), LineCritic(), PoseCritic(side)

    def forward(self, made: Tensor, true: Tensor) -> Tensor:
        """Compare pictures (B, 3, H, W) in [-1, 1], sides multiples of 16: the sum of all distances."""
        apart = [compared(critic, made, true) for critic in (self.edges, self.lines, self.poses)]
        return torch.stack(apart).sum()


def compared(critic: EdgeCritic | LineCritic | PoseCritic, made: Tensor, true: Tensor) -> Tensor:
    """Return how differently a critic sees pictures (B, 3, H, W) in [-1, 1]; ``made`` gets gradients."""
    with torch.no_grad(), autocast(true.device.type):
        wanted = critic.see(true)
    with autocast(made.device.type):
        found = critic.see(made)
    return critic.compare(found, wanted)


def _distance(found: list[Tensor], wanted: list[Tensor]) -> Tensor:
    """Return the mean absolute difference of features, each as a share of the true one's size."""
    shares = [
        (a.float() - b.float()).abs().mean() / b.float().abs().mean().clamp(min=1e-6)
        for a, b in zip(found, wanted, strict=True)
    ]
    return torch.stack(shares).sum()


class Adversary(nn.Module):
    """Says of each patch whether it is of a true picture (above 0) or of a decoded one."""

    def __init__(self) -> None:
        """Make it with random weights; it sees patches of 38 px."""
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in ADVERSARY_WIDTHS:
            layers += [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
            channels = width
        layers.append(nn.Conv2d(channels, 1, 3, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Judge pictures (B, 3, H, W) in [-1, 1]: (B, 1, H / 8, W / 8)."""
        with autocast(x.device.type):
            return self.layers(x).float()

    def losses(self, made: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the decoder minimises, to be taken for true, and what the adversary does.

        Both may be added: neither's gradients reach the other's parameters.
        """
        parameters = list(self.parameters())
        learns = parameters[0].requires_grad
        for p in parameters:
            p.requires_grad_(False)
        fooled = -self(made).mean()
        for p in parameters:
            p.requires_grad_(learns)
        seen = F.relu(1.0 - self(true)).mean() + F.relu(1.0 + self(made.detach())).mean()
        return fooled, seen

    def named_for_training(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the parameters as they are named in a decoder's checkpoints."""
        for name, parameter in self.named_parameters():
            yield f"{ADVERSARY}{name}", parameter


ADVERSARY = "adversary."
