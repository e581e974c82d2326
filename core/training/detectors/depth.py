"""Depth, and through it normals: a small MiDaS that learns nearness as the toy world knows it."""

from __future__ import annotations

import random
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from annotators.nets.midas import MidasConfig, MidasNet
from core.training.detectors.task import Image, Task, Truth, mirrored
from core.training.hints import photographed
from core.training.toyworld.scene import Scene
from core.training.toyworld.truth import NORMAL_SIZE, NORMAL_STRENGTH, NORMAL_Z

CONFIG = MidasConfig(
    width=128,
    depth=2,
    heads=4,
    grid=16,
    tap=0,
    layers=(1, 2, 1),
    stem=32,
    channels=(128, 128, 128),
    features=32,
)
SCALES = 4  # each half as fine as the one before, at which slopes are compared
NORMALS_WEIGHT = 0.3
START = 0.3  # nearness that the network begins with: a ReLU that begins at 0 could stay there

LAST = "scratch.output_conv.4."  # the convolution that gives the depth


class DepthTask(Task):
    """Learns nearness 0 to 1; the exported network gives it in MiDaS's units, on which normals depend."""

    file = "detector_depth.safetensors"
    sides = ((0.0, 128), (0.6, 192), (0.85, 256))

    def build(self) -> nn.Module:
        """Make a small MiDaS."""
        net = MidasNet(CONFIG)
        for name, p in net.named_parameters():
            if name.endswith(("cls_token", "pos_embed")):
                nn.init.normal_(p, std=0.02)
        nn.init.constant_(net.get_parameter("scratch.output_conv.4.bias"), START)
        return net

    def config(self) -> str:
        """Return the network's configuration."""
        return CONFIG.to_json()

    def sample(self, scene: Scene, rng: random.Random) -> tuple[Image, Truth]:
        """Return a picture and its nearness (H, W) float32."""
        assert scene.truth is not None
        seen, truth = mirrored(scene.image, (scene.truth.depth,), rng)
        return photographed(seen, rng), truth

    def loss(self, net: nn.Module, seen: Tensor, truth: tuple[Tensor, ...]) -> Tensor:
        """Compare nearness, its slopes at several scales, and normals."""
        assert isinstance(net, MidasNet)
        # Not the network's own forward: channels last, the gradients of its normalisations are slow on a CPU.
        on_cpu = seen.device.type == "cpu"
        x = seen / 127.5 - 1.0
        found = (net.scratch(*net.pretrained(x)).squeeze(1) if on_cpu else net(x)).float()
        (given,) = truth
        away = found - given
        slopes = [step for k in range(SCALES) for step in _steps(away[:, :: 2**k, :: 2**k])]
        turned = 1 - functional.cosine_similarity(_normals(found), _normals(given), dim=1).mean()
        return away.abs().mean() + sum(s.abs().mean() for s in slopes) + NORMALS_WEIGHT * turned

    def exported(self, net: nn.Module) -> Mapping[str, Tensor]:
        """Return the tensors, the last convolution scaled to MiDaS's units."""
        return {k: v * NORMAL_STRENGTH if k.startswith(LAST) else v for k, v in net.state_dict().items()}

    def begin(self, net: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Give ``net`` an exported network's tensors, the last convolution in the units that it learns."""
        own = {k: v.float() / NORMAL_STRENGTH if k.startswith(LAST) else v for k, v in tensors.items()}
        super().begin(net, own)


def _steps(depth: Tensor) -> tuple[Tensor, Tensor]:
    """Return the differences of neighbours in (B, H, W), along rows and columns."""
    return depth[:, :, 1:] - depth[:, :, :-1], depth[:, 1:] - depth[:, :-1]


def _normals(depth: Tensor) -> Tensor:
    """Return normals (B, 3, H, W), not of length 1, by the rule of the normal detector."""
    sobel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]], device=depth.device)
    kernels = torch.stack([sobel, sobel.T])[:, None]
    raw = functional.pad(depth[:, None], (1, 1, 1, 1), mode="replicate")
    slopes = functional.conv2d(raw * (NORMAL_STRENGTH * depth.shape[1] / NORMAL_SIZE), kernels)
    return torch.cat([slopes, torch.full_like(slopes[:, :1], NORMAL_Z)], dim=1)
