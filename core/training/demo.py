"""The demo model's stages in order: latents, base, control, export, evaluate."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch

from core.config import ModelConfig
from core.models.vae import AutoencoderKL
from core.training.base import START, Denoiser, load_text
from core.training.control import SceneControlBatches, train_control
from core.training.data import cache_latents
from core.training.evaluate import Report, evaluate
from core.training.export import export_base, export_control, load_average
from core.training.loop import LoopConfig
from core.training.start import begin_with, load_start
from core.training.toyworld.objects import all_objects
from core.training.toyworld.sprites import SpriteLibrary
from core.training.vae import load_fitted

BASE_OBJECTS = 126  # the bundled base was trained on the first rows of objects.csv; it knows no other things


def known_sprites() -> SpriteLibrary:
    """Return the sprites that the bundled base has seen."""
    return SpriteLibrary.load(objects=all_objects()[:BASE_OBJECTS])


def make_latents(config: ModelConfig, data: Path, vae_run: Path, count: int | None) -> None:
    """Encode the first ``count`` scenes of ``data`` with the fitted encoder."""
    cache_latents(load_fitted(config, vae_run), data, count=count)


def load_vae(config: ModelConfig, vae_run: Path) -> AutoencoderKL:
    """Return the fitted encoder with the trained decoder, or the fitted one where none is trained yet."""
    vae = load_fitted(config, vae_run)
    checkpoint = vae_run / "checkpoint.pt"
    if checkpoint.exists():
        average = torch.load(checkpoint, map_location="cpu", weights_only=True)["ema"]
        vae.load_state_dict(vae.state_dict() | average)
    return vae


def load_denoiser(config: ModelConfig, base_run: Path) -> Denoiser:
    """Return UNet and text encoder with the moving average of a training run."""
    model = Denoiser(config).requires_grad_(False)
    if (base_run / START).exists() and not (base_run / "checkpoint.pt").exists():
        load_start(model.unet, base_run)
    else:
        load_average(model.unet, base_run / "checkpoint.pt", prefix="unet.")
    load_text(model, base_run)
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
    crop: int | None = None,
    over: Path | None = None,
) -> None:
    """Train the ControlNet named ``control`` on the trained base and write it to ``output``.

    ``over`` is the file of another ControlNet, whose trunk it takes over; ``crop`` is as for the batches.
    """
    base = load_denoiser(config, base_run)
    batches = SceneControlBatches(data, base.text, control, batch_size, crop)
    if over is not None:
        begin_with(over, loop.output)
    net = train_control(config, base.unet, batches, loop, batch_size=batch_size, over=over is not None)
    export_control(config, net, output, over)


def export_demo_base(config: ModelConfig, vae_run: Path, base_run: Path, output: Path) -> None:
    """Write the base file that ships in ckpts/demo."""
    base = load_denoiser(config, base_run)
    export_base(config, base.unet, load_vae(config, vae_run), base.text, output)


def evaluate_demo(count: int, steps: int, sheet: Path | None) -> Report:
    """Evaluate the bundled demo model; ``sheet`` is where a picture of the first scenes goes."""
    from core.loading import load_pipeline

    report = evaluate(load_pipeline("demo"), known_sprites(), count, steps=steps)
    if sheet is not None:
        rows = [np.hstack([s.image, 255 - hint_rgb(h), p]) for s, h, p in report.examples]
        half = (len(rows) + 1) // 2
        rows += [np.full_like(rows[0], 255)] * (2 * half - len(rows))
        picture = np.hstack([np.vstack(rows[:half]), np.vstack(rows[half:])])
        cv2.imwrite(str(sheet), picture[:, :, ::-1])
    return report


def evaluate_control(control: str, count: int, steps: int, picture: Path | None) -> str:
    """Return a Markdown table that tells how well ``control`` of the bundled demo model is obeyed."""
    from core.loading import load_pipeline
    from core.training.evaluate_controls import HEADER, obedience, sheet

    found = obedience(load_pipeline("demo"), known_sprites(), control, count, steps=steps)
    if picture is not None:
        cv2.imwrite(str(picture), sheet(found.examples)[:, :, ::-1])
    return f"{HEADER}\n{found.row()}"


def evaluate_detector(detector: str, count: int, picture: Path | None) -> str:
    """Return a Markdown table that tells how well a detector does on held-out scenes."""
    from core.training.detectors.evaluate import measure
    from core.training.evaluate_controls import triples_sheet

    found = measure(detector, SpriteLibrary.load(), count)
    if picture is not None:
        cv2.imwrite(str(picture), triples_sheet(found.examples)[:, :, ::-1])
    return found.table()


def hint_rgb(hint: np.ndarray) -> np.ndarray:
    """Return (H, W, 3) uint8 of a one-channel hint (H, W)."""
    return np.repeat(hint[:, :, None], 3, axis=2)
