"""Latents as the model draws them, of pictures that are known: what the decoder should turn into those."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from core.config import ModelConfig
from core.models.text_encoder import TextEncoder
from core.models.unet import UNet
from core.models.variants import AnyControlNet
from core.runtime.device import CPU, autocast, training_attention
from core.training.control import ControlBatch, control_prediction
from core.training.data import LatentScenes, Redrawn
from core.training.diffusion import DiffusionLoss
from core.training.hints import canny_hint, in_colour
from core.training.loop import step_generator
from core.weights.checkpoint import load_base, load_control

CONTROL = "canny"  # holds everything where the picture has it
BEGIN = (0.2, 0.6)  # share of the schedule at which drawing begins: under a little noise, or under much
STEPS = 4


@dataclass(frozen=True, slots=True)
class Told:
    """What is to be drawn: ``context`` of the captions and of none, (B, tokens, width), hint (B, 3, H, W)."""

    context: Tensor
    without: Tensor
    hint: Tensor


class Artist:
    """Draws as the page does: with a map, a caption and guidance."""

    def __init__(self, config: ModelConfig, unet: UNet, text: TextEncoder, net: AnyControlNet) -> None:
        """Take the networks, which lie on one device."""
        self.unet, self.text, self.net = unet, text, net
        self.criterion, self.scale = DiffusionLoss(config.schedule), config.cfg_scale

    @torch.no_grad()
    def told(self, captions: list[str], hint: Tensor) -> Told:
        """Read captions; ``hint`` (B, 3, H, W) in [0, 1] lies on the networks' device."""
        with autocast(hint.device.type):
            context = self.text.encode([*captions, ""]).float()
        return Told(context[:-1], context[-1:].expand(len(captions), -1, -1), hint)

    def predict(self, told: Told, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the guided prediction from ``x_t`` (B, C, h, w) at ``t`` (B,).

        Gradients go through the half that knows the caption alone.
        """
        learning = torch.is_grad_enabled()
        attention = training_attention(x_t.device.type) if learning else nullcontext()
        with autocast(x_t.device.type), attention:
            known = ControlBatch(x_t, told.context, told.hint)
            with_words = control_prediction(self.unet, self.net, known, x_t, t).float()
            with torch.no_grad():
                unknown = ControlBatch(x_t, told.without, told.hint)
                without = control_prediction(self.unet, self.net, unknown, x_t, t).float()
        return without + self.scale * (with_words - without)

    @torch.no_grad()
    def draw(self, told: Told, x_t: Tensor, times: Sequence[Tensor]) -> Tensor:
        """Go from ``x_t`` at the first of ``times``, each (B,), to the last, by DDIM; 0 is free of noise."""
        for t, following in pairwise(times):
            x_0, eps = self.criterion.parts(x_t, self.predict(told, x_t, t), t)
            done = (following == 0)[:, None, None, None]
            x_t = torch.where(done, x_0, self.criterion.noised(x_0, eps, following))
        return x_t


def redraw(
    config: ModelConfig, data: Path, ckpts: Path, count: int, *, batch: int = 8, device: torch.device = CPU
) -> None:
    """Draw ``count`` of the scenes in ``data``, evenly spread, anew with the model in ``ckpts``; keep them.

    Raises:
        ValueError: ``count`` is more than there are latents.
    """
    dataset = LatentScenes.open(data, device)
    if count > len(dataset.latents):
        raise ValueError(f"count is {count}: {data} holds the latents of {len(dataset.latents)} scenes.")
    base = load_base(config, ckpts / "base.safetensors", device=device, dtype=torch.float32)
    net = load_control(
        config, ckpts / f"{CONTROL}.safetensors", device=device, dtype=torch.float32,
        base=ckpts / "base.safetensors",
    )  # fmt: skip
    artist = Artist(config, base.unet, base.text, net)
    scenes = np.arange(count, dtype=np.int64) * len(dataset.latents) // count
    made = np.empty((count, *dataset.latents.shape[1:]), np.float16)
    for first in tqdm(range(0, count, batch), desc="redraw", mininterval=10):
        some = scenes[first : first + batch]
        generator, rng = step_generator(0, first), random.Random(first)
        hints = [in_colour(canny_hint(dataset.scenes.images[i], rng)) for i in some]
        hint = torch.from_numpy(np.stack(hints)).permute(0, 3, 1, 2).float().div_(255.0)
        latents = dataset.latents[some].float()
        low, high = (round(share * artist.criterion.timesteps) for share in BEGIN)
        begin = torch.randint(low, high, (len(some),), generator=generator)
        noise = torch.randn(latents.shape, generator=generator)
        captions = [dataset.scenes.captions[i] for i in some]
        told, begin = artist.told(captions, hint.to(device)), begin.to(device)
        times = [begin * (STEPS - i) // STEPS for i in range(STEPS + 1)]
        drawn = artist.draw(told, artist.criterion.noised(latents, noise.to(device), begin), times)
        made[first : first + len(some)] = drawn.half().cpu().numpy()
    Redrawn(made, scenes).save(data)
