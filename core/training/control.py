"""Train a ControlNet as the paper does: the base model locked, a trainable copy, zero convolutions."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from core.config import ModelConfig
from core.models.text_encoder import TextEncoder
from core.models.unet import UNet
from core.models.variants import AnyControlNet, control_class
from core.runtime.device import CPU, autocast, for_training, training_attention
from core.training.base import varied_captions
from core.training.data import LatentScenes, shown_things
from core.training.diffusion import DiffusionLoss, draw
from core.training.hints import CONTROLS, HINT_MAKERS, CachedHints, canny_hint
from core.training.loop import LoopConfig, Trainer
from core.training.near import CLOSE_SHARE, Close, as_many, check_sides
from core.training.start import load_start

EMPTY_PROMPTS = 0.3  # so that the ControlNet learns to read the hint without being told what it shows


@dataclass(frozen=True, slots=True)
class ControlBatch:
    """What one step of ControlNet training sees.

    ``x_0`` (B, C, h, w) scaled latents, ``context`` (B, tokens, width), ``hint`` (B, 3, H, W) in [0, 1].
    """

    x_0: Tensor
    context: Tensor
    hint: Tensor


def control_prediction(unet: UNet, net: AnyControlNet, batch: ControlBatch, x_t: Tensor, t: Tensor) -> Tensor:
    """Return the locked UNet's prediction under the residuals of the trainable copy."""
    residuals = net(x_t, t, batch.context, net.embed_hint(batch.hint))
    return unet(x_t, t, batch.context, residuals)


def control_loss(
    criterion: DiffusionLoss, unet: UNet, net: AnyControlNet, batch: ControlBatch, generator: torch.Generator
) -> Tensor:
    """Return the denoising loss of a batch, with noise and time steps that ``generator`` draws."""
    device = batch.x_0.device
    noise, t = draw(tuple(batch.x_0.shape), criterion.timesteps, generator, device=device)
    x_t = criterion.noised(batch.x_0, noise, t)
    with autocast(device.type), training_attention(device.type):
        prediction = control_prediction(unet, net, batch, x_t, t)
    return criterion(prediction, batch.x_0, noise, t)


def close_squares(data: Path, scenes: LatentScenes, batch_size: int, sides: Sequence[int]) -> list[Close]:
    """Return squares of each of ``sides`` pixels of the scenes in ``data``, as many as hold a batch's pixels.

    Raises:
        ValueError: a side is no multiple of what the networks reduce, or larger than the scenes.
        FileNotFoundError: the scenes are of an earlier render.
    """
    whole, shown = scenes.scenes.images.shape[1], shown_things(data)
    check_sides(sides, whole)
    return [Close(as_many(batch_size, whole, side), side, shown) for side in sides]


class SceneControlBatches:
    """Draws batches of latents, captions and hints: cached ones, or edges made anew for "canny".

    They lie where the text encoder computes.
    """

    def __init__(
        self,
        data: Path,
        text: TextEncoder,
        control: str,
        size: int,
        crop: int | None = None,
        scenes: LatentScenes | None = None,
        close: Sequence[Close] = (),
    ) -> None:
        """Read the cached scenes of ``data`` for the ControlNet ``control``, ``size`` samples a batch.

        ``crop`` trains on random squares of so many pixels, a multiple of the autoencoder's factor.
        ``scenes`` are those of ``data``, where they are open: several controls need their latents once.
        With ``close`` half of the batches are of squares that show a thing from near by, of one of those.
        """
        if control not in CONTROLS:
            raise ValueError(f"control is {control!r}: give one of {', '.join(CONTROLS)}.")
        self.device = text.positional_embedding.device
        self.dataset = LatentScenes.open(data, self.device) if scenes is None else scenes
        self.text = text
        self.cached = CachedHints.open(data, control) if control in HINT_MAKERS else None
        self.size, self.close = size, close
        side, cells = self.dataset.scenes.images.shape[1], self.dataset.latents.shape[-1]
        self.factor = side // cells
        self.cells = cells if crop is None else crop // self.factor

    def __call__(self, generator: torch.Generator) -> ControlBatch:
        """Draw one batch."""
        latents = self.dataset.latents
        rng = random.Random(int(torch.randint(2**31, (1,), generator=generator)))
        near = rng.choice(self.close) if self.close and rng.random() < CLOSE_SHARE else None
        size, cells = (self.size, self.cells) if near is None else (near.size, near.side // self.factor)
        if self.cached is None:
            which = torch.randint(len(latents), (size,), generator=generator).numpy()
            hints = [canny_hint(self.dataset.scenes.images[i], rng) for i in which]
        else:
            rows = self.cached.draw(size, len(latents), generator)
            which, hints = self.cached.scenes[rows], [self.cached.hints[i] for i in rows]
        captions = varied_captions([self.dataset.scenes.captions[i] for i in which], generator)
        captions = ["" if rng.random() < EMPTY_PROMPTS else caption for caption in captions]
        cut, maps = [], []
        for i, hint in zip(which, hints, strict=True):
            if near is None:
                y, x = (rng.randint(0, latents.shape[-1] - cells) for _ in range(2))
            else:
                y, x = near.corner(int(i), latents.shape[-1], cells, rng)
            cut.append(latents[i][:, y : y + cells, x : x + cells])
            rows_px, columns_px = (slice(a * self.factor, (a + cells) * self.factor) for a in (y, x))
            part = hint[rows_px, columns_px]
            maps.append(part if part.ndim == 3 else np.repeat(part[:, :, None], 3, axis=2))
        with torch.no_grad(), autocast(self.device.type):
            context = self.text.encode(captions)
        pictures = torch.from_numpy(np.stack(maps)).to(self.device)
        hint_tensor = pictures.permute(0, 3, 1, 2).float().div_(255.0)
        return ControlBatch(torch.stack(cut).float(), context, hint_tensor)


def trained_over(net: AnyControlNet, name: str) -> bool:
    """Tell whether a parameter learns where a ControlNet takes over the trunk of another one.

    That are the hint block, the zero convolutions, and all vectors: a tenth of the parameters.
    """
    parameter = net.get_parameter(name)
    return parameter.ndim == 1 or name.startswith(("input_hint_block", "zero_convs", "middle_block_out"))


def train_control(
    config: ModelConfig,
    unet: UNet,
    draw_batch: Callable[[torch.Generator], ControlBatch],
    loop: LoopConfig,
    *,
    batch_size: int,
    over: bool = False,
    device: torch.device = CPU,
) -> AnyControlNet:
    """Train a ControlNet on the locked ``unet``; resumes from ``loop.output``; returns the moving average.

    It is of the variant that ``config.control`` names. ``over`` keeps the trunk that it starts with and
    trains what ``trained_over`` says. The batches must lie on ``device``.
    """
    torch.manual_seed(loop.seed)
    unet.requires_grad_(False).float()
    net = control_class(config.control).from_unet(unet, config.control)
    load_start(net, loop.output)
    for_training(unet, device)
    for_training(net, device)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(not over or trained_over(net, name))
    criterion = DiffusionLoss(config.schedule)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        return control_loss(criterion, unet, net, draw_batch(generator), generator)

    trainer = Trainer(net.named_parameters(), loop)
    trainer.run(loss, batch_size)
    trainer.use_average()
    return net.requires_grad_(False)
