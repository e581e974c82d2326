"""Segmentation: a small UniFormer that learns the toy world's classes among the 150 of ADE20K."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from annotators.nets.uniformer import UniFormerConfig, UperNet
from annotators.segmentation import MEAN, STD
from core.training.detectors.task import Image, Task, Truth, mirrored
from core.training.hints import photographed
from core.training.soft import softly
from core.training.toyworld.scene import Scene

CONFIG = UniFormerConfig(dims=(32, 64, 96, 128), depths=(1, 2, 2, 1), head_dim=32, width=48, side=256)
STRIDE = 4  # pixels of the picture to one of the logits
RIGHT_ORDER = 0.25  # of the pictures are RGB; the app gives the network BGR, as the original does


class SegmentationTask(Task):
    """Learns classes, of pictures whose red and blue are mostly swapped, as they are in the app."""

    file = "detector_segmentation.safetensors"
    sides = ((0.0, 128), (0.6, 192), (0.85, 256))

    def build(self) -> nn.Module:
        """Make a small UniFormer."""
        return UperNet(CONFIG)

    def config(self) -> str:
        """Return the network's configuration."""
        return CONFIG.to_json()

    def sample(self, scene: Scene, rng: random.Random) -> tuple[Image, Truth]:
        """Return a picture and its classes (H, W) uint8."""
        assert scene.truth is not None
        seen, (classes,) = mirrored(scene.image, (scene.truth.segmentation,), rng)
        seen, classes = softly(seen, classes.astype(np.uint8, copy=False), rng)
        seen = photographed(seen, rng)
        return (seen if rng.random() < RIGHT_ORDER else seen[:, :, ::-1]), (classes,)

    def loss(self, net: nn.Module, seen: Tensor, truth: tuple[Tensor, ...]) -> Tensor:
        """Return the cross-entropy, half of it with every class that occurs counted alike."""
        assert isinstance(net, UperNet)
        mean, std = (torch.tensor(values, device=seen.device)[:, None, None] for values in (MEAN, STD))
        # Not the network's own forward: contiguous maps have the faster gradients on a CPU.
        x = (seen - mean) / std
        logits = (net.decode_head(net.backbone(x)) if seen.device.type == "cpu" else net(x)).float()
        classes = truth[0][:, STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE].long()
        each = functional.cross_entropy(logits, classes, reduction="none").flatten()
        count = torch.bincount(classes.flatten(), minlength=logits.shape[1])
        per_class = torch.zeros_like(logits[0, :, 0, 0]).index_add(0, classes.flatten(), each)
        there = count > 0
        return (each.mean() + (per_class[there] / count[there]).mean()) / 2
