"""The demo model's stages in order: latents, base, control, export, evaluate."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.torch import load_file, save_file

from core.config import ModelConfig
from core.models.vae import AutoencoderKL
from core.training.base import Denoiser, cache_latents
from core.training.control import SceneControlBatches, train_control
from core.training.data import Scenes, to_tensor
from core.training.evaluate import Report, evaluate
from core.training.export import export_base, export_control, load_average
from core.training.loop import LoopConfig
from core.training.vae import whiten

WHITENED = "vae.safetensors"


def make_latents(config: ModelConfig, data: Path, vae_run: Path) -> None:
    """Whiten the trained autoencoder, keep it beside its checkpoint, and encode every scene of ``data``."""
    vae = AutoencoderKL(config.vae).to(memory_format=torch.channels_last).requires_grad_(False)
    load_average(vae, vae_run / "checkpoint.pt")
    images = Scenes.open(data).images
    sample = images[:: max(1, len(images) // 128)][:128]
    whiten(vae, to_tensor(sample).contiguous(memory_format=torch.channels_last))
    save_file({k: v.contiguous() for k, v in vae.state_dict().items()}, vae_run / WHITENED)
    cache_latents(vae, data)


def load_vae(config: ModelConfig, vae_run: Path) -> AutoencoderKL:
    """Return the whitened autoencoder that ``make_latents`` kept."""
    vae = AutoencoderKL(config.vae).requires_grad_(False)
    vae.load_state_dict(load_file(vae_run / WHITENED))
    return vae


def load_denoiser(config: ModelConfig, base_run: Path) -> Denoiser:
    """Return UNet and text encoder with the moving average of a training run."""
    model = Denoiser(config).requires_grad_(False)
    load_average(model, base_run / "checkpoint.pt")
    return model


def train_demo_control(
    config: ModelConfig,
    data: Path,
    base_run: Path,
    loop: LoopConfig,
    *,
    control: str,
    batch_size: int,
    output: Path,
) -> None:
    """Train the ControlNet named ``control`` on the trained base and write it to ``output``."""
    base = load_denoiser(config, base_run)
    batches = SceneControlBatches(data, base.text, control, batch_size)
    export_control(config, train_control(config, base.unet, batches, loop, batch_size=batch_size), output)


def export_demo_base(config: ModelConfig, vae_run: Path, base_run: Path, output: Path) -> None:
    """Write the base file that ships in ckpts/demo."""
    base = load_denoiser(config, base_run)
    export_base(config, base.unet, load_vae(config, vae_run), base.text, output)


def evaluate_demo(count: int, steps: int, sheet: Path | None) -> Report:
    """Evaluate the bundled demo model; ``sheet`` is where a picture of the first scenes goes."""
    from core.loading import load_pipeline
    from core.training.toyworld.sprites import SpriteLibrary

    report = evaluate(load_pipeline("demo"), SpriteLibrary.load(), count, steps=steps)
    if sheet is not None:
        rows = [np.hstack([s.image, 255 - hint_rgb(h), p]) for s, h, p in report.examples]
        half = (len(rows) + 1) // 2
        rows += [np.full_like(rows[0], 255)] * (2 * half - len(rows))
        picture = np.hstack([np.vstack(rows[:half]), np.vstack(rows[half:])])
        cv2.imwrite(str(sheet), picture[:, :, ::-1])
    return report


def hint_rgb(hint: np.ndarray) -> np.ndarray:
    """Return (H, W, 3) uint8 of a one-channel hint (H, W)."""
    return np.repeat(hint[:, :, None], 3, axis=2)
