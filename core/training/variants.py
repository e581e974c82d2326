"""Train the variants of a ControlNet on the same base, scenes, order and noise, and compare them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import torch

from core.config import ModelConfig, with_variant
from core.models.vae import AutoencoderKL
from core.runtime.device import CPU, resolve_dtype
from core.training.control import SceneControlBatches, train_control
from core.training.data import cache_latents
from core.training.evaluate_variants import (
    file_parameters,
    measure,
    sheet,
    table,
    training_seconds,
    variants_pipeline,
)
from core.training.export import export_control
from core.training.loop import LoopConfig
from core.training.toyworld.scene import held_out_scenes
from core.training.toyworld.sprites import SpriteLibrary
from core.weights.checkpoint import load_base

log = logging.getLogger(__name__)

EMA_DECAY = 0.99  # a short run's own average, over its last hundred steps
CONTROL = "canny"


def exported(folder: Path, variant: str) -> Path:
    """Return where the trained file of a variant goes."""
    return folder / f"{CONTROL}-{variant}.safetensors"


def ensure_latents(vae: AutoencoderKL, data: Path) -> None:
    """Encode the scenes of ``data`` with ``vae``, unless that has been done."""
    if not (data / "latents.npy").exists():
        cache_latents(vae, data)


def train_variants(
    config: ModelConfig,
    base: Path,
    data: Path,
    loop: LoopConfig,
    variants: Sequence[str],
    *,
    batch_size: int,
    crop: int | None = None,
) -> None:
    """Train a Canny control of each of ``variants`` and write its file to ``loop.output``.

    Every one has ``loop.steps`` steps and resumes where it stopped. Step n draws the same scenes, captions,
    crops, time steps and noise for all, since its random stream follows from ``loop.seed`` and n alone.
    """
    networks = load_base(config, base, device=CPU, dtype=torch.float32)
    ensure_latents(networks.vae, data)
    batches = SceneControlBatches(data, networks.text, CONTROL, batch_size, crop)
    for variant in variants:
        own = with_variant(config, variant)
        run = replace(loop, output=loop.output / variant, ema_decay=EMA_DECAY)
        net = train_control(own, networks.unet, batches, run, batch_size=batch_size)
        export_control(own, net, exported(loop.output, variant))


def compare_variants(
    config: ModelConfig,
    base: Path,
    folder: Path,
    variants: Sequence[str],
    *,
    count: int,
    batch_size: int,
    crop: int | None,
    picture: Path | None,
) -> str:
    """Measure the trained files in ``folder`` on ``count`` held-out scenes; return a Markdown table.

    ``picture`` is where the sheet of the first scenes goes, a PNG or JPEG.
    """
    files = {variant: exported(folder, variant) for variant in variants}
    networks = load_base(config, base, device=CPU, dtype=resolve_dtype("auto", CPU))
    pipe = variants_pipeline(config, networks, files)
    library = SpriteLibrary.load()
    scenes = held_out_scenes(library, count, config.resolution)
    found, hints = measure(pipe, [(scene.image, scene.caption) for scene in scenes])
    trained = load_base(config, base, device=CPU, dtype=torch.float32).unet
    seconds = training_seconds(config, trained, variants, batch_size, crop or config.resolution)
    for variant in variants:
        found[variant].step_seconds = seconds[variant]
        found[variant].parameters = file_parameters(files[variant])
    if picture is not None:
        cv2.imwrite(str(picture), sheet(found, hints)[:, :, ::-1])
    return table(found)
