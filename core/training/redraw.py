"""Latents as the model draws them, of pictures that are known: what the decoder should turn into those."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from core.config import ModelConfig
from core.models.text_encoder import TextEncoder
from core.models.unet import UNet
from core.models.variants import AnyControlNet
from core.runtime.device import CPU, autocast
from core.training.control import ControlBatch, control_prediction
from core.training.data import LatentScenes, Redrawn
from core.training.diffusion import DiffusionLoss
from core.training.hints import canny_hint, in_colour
from core.training.loop import step_generator
from core.weights.checkpoint import load_base, load_control

CONTROL = "canny"  # holds everything where the picture has it
BEGIN = (0.2, 0.6)  # share of the schedule at which drawing begins: under a little noise, or under much
STEPS = 4


class Artist:
    """Draws what is left of noised latents anew, as the page does: with a map, a caption and guidance."""

    def __init__(self, config: ModelConfig, unet: UNet, text: TextEncoder, net: AnyControlNet) -> None:
        """Take the networks, which lie on one device."""
        self.unet, self.text, self.net = unet, text, net
        self.criterion, self.scale = DiffusionLoss(config.schedule), config.cfg_scale

    @torch.no_grad()
    def __call__(
        self, latents: Tensor, captions: list[str], hint: Tensor, begin: Tensor, noise: Tensor
    ) -> Tensor:
        """Noise ``latents`` (B, C, h, w) up to the time steps ``begin`` (B,); draw them in ``STEPS`` steps.

        ``hint`` is (B, 3, H, W) in [0, 1]. Everything lies on the networks' device.
        """
        x_t = self.criterion.noised(latents, noise, begin)
        with autocast(latents.device.type):
            context = self.text.encode([*captions, *[""] * len(captions)])
            both = ControlBatch(latents, context.float(), torch.cat([hint, hint]))
        for step in range(STEPS):
            t, following = (begin * (STEPS - i) // STEPS for i in (step, step + 1))
            with autocast(latents.device.type):
                v = control_prediction(self.unet, self.net, both, torch.cat([x_t, x_t]), torch.cat([t, t]))
            with_words, without = v.float().chunk(2)
            v = without + self.scale * (with_words - without)
            x_0, eps = self.criterion.parts(x_t, v, t)
            x_t = x_0 if step == STEPS - 1 else self.criterion.noised(x_0, eps, following)
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
        drawn = artist(latents, captions, hint.to(device), begin.to(device), noise.to(device))
        made[first : first + len(some)] = drawn.half().cpu().numpy()
    Redrawn(made, scenes).save(data)
