"""Detectors that compare pictures, with gradients: for what makes the pictures to learn from.

Source of distances of features: Johnson et al. 2016 (arXiv 1603.08155) and Zhang et al. 2018 (1801.03924).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from annotators.ade20k import to_classes
from annotators.nets.hed import CHANNELS, HED
from annotators.nets.mlsd import MLSD
from annotators.nets.openpose import STRIDE, build_body, published_key
from annotators.nets.quick import fold_norms
from annotators.nets.uniformer import UniFormerConfig, UperNet
from annotators.pose import BODY_SCALE, BOX
from core.runtime.device import CPU, autocast
from core.training.detectors.segmentation import SegmentationTask
from core.weights.plain import load_plain
from core.weights.registry import Registry

POSE, CLASSES = "demo_openpose_body", "demo_uniformer"
LINE_FEATURES = 2  # of five
HED_BLOCKS = 2  # of five: outlines are seen in the first, and each costs as much as the one before
HED_WIDTHS = tuple(width for _, width, _ in CHANNELS[:HED_BLOCKS])  # of their features
FARTHEST = 20  # pixels of M-LSD's maps: an end that is farther off is no worse
FEW_LINES = 4  # are always counted as there, so that a picture without any does not weigh endlessly
LINES_WEIGHT = 2.0  # of what M-LSD says, beside each of the features
SURE = math.log(0.1 / 0.9)  # what the apps' threshold for lines is in M-LSD's maps
MARGIN = 1.0  # by which a line should be surer than that, and what is none less sure
NEAR = 2  # pixels of M-LSD's maps: a centre so close to a true one is no line too many
FEW_PIXELS = 20.0  # of lines are always counted as there
POSE_WEIGHT = 50.0  # its maps are nearly everywhere 0


NetworkT = TypeVar("NetworkT", bound=nn.Module)
Seen = tuple[list[Tensor], list[Tensor]]  # in what was made, and in what is true
Judge = Callable[[Tensor, Tensor, NDArray[np.uint8]], Tensor]  # of pictures made, true ones and hints


def load_network(
    name: str,
    build: Callable[[Mapping[str, str]], NetworkT],
    key_of: Callable[[str], str] | None = None,
) -> NetworkT:
    """Load the network that the registry calls ``name`` in float32; ``build`` makes it from the metadata.

    It does not learn. It is not made quicker as the apps do: that leaves out gradients.

    Raises:
        WeightsMissing: it is not on this computer; says how to get it.
    """
    path = Registry.load().locate(name)
    net = load_plain(build, path, name=name, device=CPU, dtype=torch.float32, key_of=key_of)
    return net.eval().requires_grad_(False)


class EdgeCritic(nn.Module):
    """How differently HED sees two pictures."""

    def __init__(self) -> None:
        """Load it from where the apps have it.

        Raises:
            WeightsMissing: it is not on this computer; says how to get it.
        """
        super().__init__()
        self.hed = load_network("hed", lambda _: HED())

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
        self.mlsd = load_network("mlsd", lambda _: MLSD())
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
        self.pose = load_network(POSE, build_body, published_key)
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

    def forward(self, made: Tensor, true: Tensor, edges: Seen | None = None) -> Tensor:
        """Compare pictures (B, 3, H, W) in [-1, 1], sides multiples of 16: the sum of all distances.

        ``edges`` is what ``seen_by`` says of ``self.edges``, where that is known already.
        """
        outlines = self.edges.compare(*(edges or seen_by(self.edges, made, true)))
        return outlines + compared(self.lines, made, true) + compared(self.poses, made, true)


def seen_by(critic: EdgeCritic | LineCritic | PoseCritic, made: Tensor, true: Tensor) -> Seen:
    """Return what a critic sees in pictures (B, 3, H, W) in [-1, 1]; ``made`` gets gradients."""
    with torch.no_grad(), autocast(true.device.type):
        wanted = critic.see(true)
    with autocast(made.device.type):
        found = critic.see(made)
    return found, wanted


def compared(critic: EdgeCritic | LineCritic | PoseCritic, made: Tensor, true: Tensor) -> Tensor:
    """Return how differently a critic sees pictures (B, 3, H, W) in [-1, 1]; ``made`` gets gradients."""
    return critic.compare(*seen_by(critic, made, true))


def _distance(found: list[Tensor], wanted: list[Tensor]) -> Tensor:
    """Return the mean absolute difference of features, each as a share of the true one's size."""
    shares = [
        (a.float() - b.float()).abs().mean() / b.float().abs().mean().clamp(min=1e-6)
        for a, b in zip(found, wanted, strict=True)
    ]
    return torch.stack(shares).sum()


def lines_missed(found: Tensor, wanted: Tensor) -> Tensor:
    """Return by how much the apps' threshold misses lines, or passes what is none.

    Both are M-LSD's maps (B, 9, h, w). A line is a centre that is the surest about it, as the apps read it,
    and counts by its length; each picture counts alike. Where the lines end counts too.
    """
    found, wanted = found.float(), wanted.float()
    sure, truly = found[:, :1], wanted[:, :1]
    best = F.max_pool2d(sure, 3, stride=1, padding=1)
    lines = _lengths(wanted) * (F.max_pool2d(truly, 3, stride=1, padding=1) == truly) * (truly > SURE)
    none = F.max_pool2d(truly, 2 * NEAR + 1, stride=1, padding=NEAR) < SURE
    others = _lengths(found).detach() * (none & (best == sure) & (sure > SURE - MARGIN))
    ways = (found[:, 1:5] - wanted[:, 1:5]).abs().clamp(max=FARTHEST).mean(dim=1, keepdim=True)
    wrong = lines * (F.softplus(SURE + MARGIN - best) + ways / FARTHEST)
    wrong = wrong + others * F.softplus(sure - SURE + MARGIN)
    return (wrong.sum(dim=(1, 2, 3)) / (lines.sum(dim=(1, 2, 3)) + FEW_PIXELS)).mean()


def _lengths(maps: Tensor) -> Tensor:
    """Return the length (B, 1, h, w) of the line at each place, in pixels of the maps."""
    return (maps[:, 1:3] - maps[:, 3:5]).square().sum(dim=1, keepdim=True).sqrt()


def line_judge(side: int, device: torch.device) -> Judge:
    """Return what tells how many lines that M-LSD sees in the true picture it misses in the other."""
    critic = LineCritic().to(device)

    def judge(made: Tensor, true: Tensor, hints: NDArray[np.uint8]) -> Tensor:
        with torch.no_grad():
            wanted = critic.see(true)[-1]
        return lines_missed(critic.see(made)[-1], wanted)

    return judge


def pose_judge(side: int, device: torch.device) -> Judge:
    """Return what tells how differently the demo pose detector sees people in two pictures."""
    critic = PoseCritic(side).to(device)
    return lambda made, true, hints: compared(critic, made, true)


def class_judge(side: int, device: torch.device) -> Judge:
    """Return what tells how far the demo detector's classes are from those of the maps."""
    net = load_network(CLASSES, lambda metadata: UperNet(UniFormerConfig.from_metadata(metadata))).to(device)
    task = SegmentationTask()

    def judge(made: Tensor, true: Tensor, hints: NDArray[np.uint8]) -> Tensor:
        classes = torch.from_numpy(np.stack([to_classes(hint) for hint in hints])).to(device)
        return task.loss(net, (made.flip(1) + 1) * 127.5, (classes,))

    return judge


JUDGES: dict[str, Callable[[int, torch.device], Judge]] = {
    "mlsd": line_judge,
    "openpose": pose_judge,
    "seg": class_judge,
}
