"""Train a ControlNet as the paper does: the base model locked, a trainable copy, zero convolutions."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.config import ModelConfig
from core.models.controlnet import ControlNet
from core.models.text_encoder import TextEncoder
from core.models.unet import UNet
from core.runtime.device import autocast
from core.training.base import varied_captions
from core.training.data import LatentScenes
from core.training.diffusion import DiffusionLoss, draw
from core.training.loop import LoopConfig, Trainer
from core.training.start import load_start

EMPTY_PROMPTS = 0.3  # so that the ControlNet learns to read the hint without being told what it shows

HintMaker = Callable[[NDArray[np.uint8], random.Random], NDArray[np.uint8]]


def canny_hint(image: NDArray[np.uint8], rng: random.Random) -> NDArray[np.uint8]:
    """Return the edges (H, W, 3) uint8 of ``image`` (H, W, 3), between the thresholds that people choose."""
    low = rng.uniform(40, 130)
    edges = cv2.Canny(image, low, low * rng.uniform(1.6, 2.4))
    return np.repeat(edges[:, :, None], 3, axis=2)


HINT_MAKERS: dict[str, HintMaker] = {"canny": canny_hint}


@dataclass(frozen=True, slots=True)
class ControlBatch:
    """What one step of ControlNet training sees.

    ``x_0`` (B, C, h, w) scaled latents, ``context`` (B, tokens, width), ``hint`` (B, 3, H, W) in [0, 1].
    """

    x_0: Tensor
    context: Tensor
    hint: Tensor


def control_prediction(unet: UNet, net: ControlNet, batch: ControlBatch, x_t: Tensor, t: Tensor) -> Tensor:
    """Return the locked UNet's prediction under the residuals of the trainable copy."""
    residuals = net(x_t, t, batch.context, net.embed_hint(batch.hint))
    return unet(x_t, t, batch.context, residuals)


class SceneControlBatches:
    """Draws batches of latents, captions and freshly made hints from the cached scenes."""

    def __init__(self, data: Path, text: TextEncoder, control: str, size: int) -> None:
        """Read the cached scenes of ``data`` for the ControlNet ``control``, ``size`` samples a batch."""
        if control not in HINT_MAKERS:
            raise ValueError(f"control is {control!r}: give one of {', '.join(HINT_MAKERS)}.")
        self.dataset = LatentScenes.open(data)
        self.text = text
        self.make_hint = HINT_MAKERS[control]
        self.size = size

    def __call__(self, generator: torch.Generator) -> ControlBatch:
        """Draw one batch."""
        which, x_0 = self.dataset.draw(self.size, generator)
        captions = varied_captions([self.dataset.scenes.captions[i] for i in which], generator)
        rng = random.Random(int(torch.randint(2**31, (1,), generator=generator)))
        captions = ["" if rng.random() < EMPTY_PROMPTS else caption for caption in captions]
        hints = np.stack([self.make_hint(self.dataset.scenes.images[i], rng) for i in which])
        with torch.no_grad(), autocast("cpu"):
            context = self.text.encode(captions)
        return ControlBatch(x_0, context, torch.from_numpy(hints).permute(0, 3, 1, 2).float().div_(255.0))


def train_control(
    config: ModelConfig,
    unet: UNet,
    draw_batch: Callable[[torch.Generator], ControlBatch],
    loop: LoopConfig,
    *,
    batch_size: int,
) -> ControlNet:
    """Train a ControlNet on the locked ``unet``; resumes from ``loop.output``; returns the moving average."""
    torch.manual_seed(loop.seed)
    unet.requires_grad_(False).float()
    net = ControlNet.from_unet(unet, config.control)
    load_start(net, loop.output)
    net.requires_grad_(True)
    criterion = DiffusionLoss(config.schedule)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        batch = draw_batch(generator)
        noise, t = draw(tuple(batch.x_0.shape), config.schedule.timesteps, generator)
        x_t = criterion.noised(batch.x_0, noise, t)
        with autocast("cpu"):
            prediction = control_prediction(unet, net, batch, x_t, t)
        return criterion(prediction, batch.x_0, noise, t)

    trainer = Trainer(net.named_parameters(), loop)
    trainer.run(loss, batch_size)
    trainer.use_average()
    return net.requires_grad_(False)
