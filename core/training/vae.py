"""The demo model's autoencoder: an encoder fitted in closed form, and a decoder that is trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from core.config import ModelConfig
from core.models.vae import AutoencoderKL
from core.runtime.device import CPU, autocast, for_training
from core.training.adversary import ADVERSARY, Adversary
from core.training.data import LatentScenes, Redrawn, Scenes, to_tensor
from core.training.detectors.critics import Detectors, EdgeCritic, seen_by
from core.training.loop import LoopConfig, Trainer
from core.training.vae_init import init_as_pyramid, whiten

EDGE_WEIGHT = 0.5  # L1 on the differences of neighbouring pixels: keeps outlines crisp
SQUARE_WEIGHT = 3.0
REDRAWN_EVERY = 2  # crops, one is of what the model drew
PLACES = 2  # for a crop, of which the busier is taken: skies are learned soon
COARSE = 8  # pixels: what is redrawn is never quite in its place, and would blur what is smaller
DETECTORS_WEIGHT = 0.06
ADVERSARY_WEIGHT = 0.12
ADVERSARY_RATE = 4.0  # times the decoder's: it has to know before it can tell
LATENT_NOISE = 0.08  # the decoder meets sampled latents, which are never quite those of a picture
FITTED = "fitted.safetensors"


def fit_autoencoder(config: ModelConfig, data: Path, run: Path) -> None:
    """Fit the encoder, and a first decoder, on a sample of the scenes in ``data``; write them to ``run``."""
    torch.manual_seed(0)
    images = Scenes.open(data).images
    sample = to_tensor(images[:: max(1, len(images) // 64)][:64])
    vae = AutoencoderKL(config.vae).requires_grad_(False)
    init_as_pyramid(vae, sample[:32])
    whiten(vae, sample)
    run.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in vae.state_dict().items()}, run / FITTED)


def load_fitted(config: ModelConfig, run: Path) -> AutoencoderKL:
    """Return what ``fit_autoencoder`` wrote.

    Raises:
        FileNotFoundError: with the command that fits it.
    """
    if not (run / FITTED).exists():
        raise FileNotFoundError(f"{run / FITTED} is not there. Run: python -m core.training encoder")
    vae = AutoencoderKL(config.vae).requires_grad_(False)
    vae.load_state_dict(load_file(run / FITTED))
    return vae


def aligned_crops(
    dataset: LatentScenes,
    count: int,
    crop: int,
    factor: int,
    generator: torch.Generator,
    redrawn: Redrawn | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw latents (count, C, crop/factor, crop/factor) and their pictures (count, 3, crop, crop).

    With ``redrawn`` one of every ``REDRAWN_EVERY`` is of latents that the model drew.
    """
    side = dataset.latents.shape[-1]
    cells = crop // factor
    which = torch.randint(len(dataset.latents), (count,), generator=generator).tolist()
    corners = torch.randint(side - cells + 1, (count, PLACES, 2), generator=generator).tolist()
    latents, images = [], []
    for n, (i, places) in enumerate(zip(which, corners, strict=True)):
        source = dataset.latents[i]
        if redrawn is not None and is_redrawn(n):
            row = i % len(redrawn.scenes)
            source, i = torch.from_numpy(redrawn.latents[row]).to(source.device), redrawn.scenes[row]
        picture = dataset.scenes.images[i]
        crops = [picture[y * factor :, x * factor :][:crop, :crop] for y, x in places]
        busiest = max(range(PLACES), key=lambda place: busyness(crops[place]))
        y, x = places[busiest]
        latents.append(source[:, y : y + cells, x : x + cells])
        images.append(crops[busiest])
    return torch.stack(latents).float(), to_tensor(np.stack(images)).to(dataset.latents.device)


def busyness(picture: NDArray[np.uint8]) -> float:
    """Return by how much neighbouring pixels of (H, W, 3) differ, on the average."""
    signed = picture.astype(np.int16)
    return float(sum(np.abs(np.diff(signed, axis=axis)).mean() for axis in (0, 1)))


def is_redrawn(number: int) -> bool:
    """Say whether the crop of this number, in a batch with redrawn ones, is of those."""
    return number % REDRAWN_EVERY == 1


def edge_loss(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean absolute difference of the horizontal and vertical gradients of two (B, 3, H, W)."""
    d = a - b
    return (d[..., 1:] - d[..., :-1]).abs().mean() + (d[..., 1:, :] - d[..., :-1, :]).abs().mean()


def decode_noised(vae: AutoencoderKL, latents: Tensor, generator: torch.Generator) -> Tensor:
    """Decode ``latents`` (B, C, h, w), slightly noised, to float32 (B, 3, H, W)."""
    noised = latents + LATENT_NOISE * torch.randn(latents.shape, generator=generator).to(latents.device)
    with autocast(latents.device.type):
        return vae.decode(noised).float()


def pixel_loss(out: Tensor, images: Tensor) -> Tensor:
    """Return how far the pixels and edges of decoded pictures are from the true ones."""
    pixels = F.l1_loss(out, images) + SQUARE_WEIGHT * F.mse_loss(out, images)
    return pixels + EDGE_WEIGHT * edge_loss(out, images)


def coarse_loss(out: Tensor, images: Tensor) -> Tensor:
    """Return how far decoded pictures are from the true ones, where they are looked at from far away."""
    return F.l1_loss(F.avg_pool2d(out, COARSE), F.avg_pool2d(images, COARSE))


def train_decoder(
    config: ModelConfig,
    data: Path,
    loop: LoopConfig,
    *,
    batch_size: int,
    crop: int = 128,
    detectors: bool = False,
    adversary: bool = False,
    redrawn: Redrawn | None = None,
    device: torch.device = CPU,
) -> None:
    """Train the decoder on cached latents; resumes from ``loop.output``, where the fitted start lies too.

    With ``detectors`` it also learns what the apps' detectors look at, with ``adversary`` to be taken for
    true by a network that learns with it, with ``redrawn`` from what the model drew, too.

    Raises:
        ValueError: a batch of one cannot hold what was redrawn beside a whole picture.
        WeightsMissing: a detector is not on this computer; says how to get it.
    """
    if redrawn is not None and batch_size < 2:
        raise ValueError(f"batch is {batch_size}: with what was redrawn give 2 at least.")
    torch.manual_seed(loop.seed)
    vae = load_fitted(config, loop.output)
    for_training(vae, device)
    vae.decoder.requires_grad_(True)
    vae.post_quant_conv.requires_grad_(True)
    dataset = LatentScenes.open(data, device)
    learned = list(vae.named_parameters())
    critic = Detectors(dataset.scenes.images.shape[1]).to(device) if detectors else None
    judge = Adversary().to(device) if adversary else None
    eyes = critic.edges if critic is not None else EdgeCritic().to(device) if adversary else None
    if judge is not None:
        learned += judge.named_for_training()

    def loss(step: int, generator: torch.Generator) -> Tensor:
        latents, images = aligned_crops(dataset, batch_size, crop, vae.factor, generator, redrawn)
        out = decode_noised(vae, latents, generator)
        exact = torch.tensor([redrawn is None or not is_redrawn(n) for n in range(len(out))])
        total = pixel_loss(out[exact], images[exact])
        if redrawn is not None:
            total = total + coarse_loss(out[~exact], images[~exact])
        if eyes is None:
            return total
        found, wanted = seen_by(eyes, out, images)
        if critic is not None:
            total = total + DETECTORS_WEIGHT * critic(out, images, (found, wanted))
        if judge is not None:
            fooled, seen = judge.losses([out, *found], [images, *wanted])
            total = total + ADVERSARY_WEIGHT * fooled + seen
        return total

    Trainer(learned, loop, factor_of=rate_of).run(loss, batch_size)


def rate_of(name: str) -> float:
    """Return the factor by which a parameter of this name learns at another rate than the run's."""
    return ADVERSARY_RATE if name.startswith(ADVERSARY) else 1.0
