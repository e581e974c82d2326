"""Train the demo model's autoencoder, and whiten its latents."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from core.config import ModelConfig
from core.models.vae import AutoencoderKL
from core.training.data import Scenes, to_tensor
from core.training.loop import LoopConfig, Trainer

KL_WEIGHT = 1e-5  # holds the latents' spread down without blurring the picture
EDGE_WEIGHT = 0.5  # L1 on the differences of neighbouring pixels: keeps outlines crisp
SQUARE_WEIGHT = 3.0  # squared error pulls wrong colours right sooner than L1 alone


def random_crops(scenes: Scenes, count: int, crop: int, generator: torch.Generator) -> Tensor:
    """Draw ``count`` random crops (count, 3, crop, crop) in [-1, 1]."""
    size = scenes.images.shape[1]
    which = torch.randint(len(scenes), (count,), generator=generator).tolist()
    corner = torch.randint(size - crop + 1, (count, 2), generator=generator).tolist()
    cut = [scenes.images[i, y : y + crop, x : x + crop] for i, (y, x) in zip(which, corner, strict=True)]
    return to_tensor(np.stack(cut))


def edge_loss(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean absolute difference of the horizontal and vertical gradients of two (B, 3, H, W)."""
    d = a - b
    return (d[..., 1:] - d[..., :-1]).abs().mean() + (d[..., 1:, :] - d[..., :-1, :]).abs().mean()


def vae_loss(vae: AutoencoderKL, images: Tensor, generator: torch.Generator) -> Tensor:
    """Return pixel, edge and KL loss of one batch ``images`` (B, 3, H, W) in [-1, 1]."""
    with torch.autocast(images.device.type, torch.bfloat16):
        mean, logvar = vae.moments(images)
        noise = torch.randn(mean.shape, generator=generator).to(mean)
        out = vae.decoder(vae.post_quant_conv(mean + (0.5 * logvar).exp() * noise))
    out, mean, logvar = out.float(), mean.float(), logvar.float()
    kl = 0.5 * (mean.pow(2) + logvar.exp() - 1.0 - logvar).mean()
    pixels = F.l1_loss(out, images) + SQUARE_WEIGHT * F.mse_loss(out, images)
    return pixels + EDGE_WEIGHT * edge_loss(out, images) + KL_WEIGHT * kl


def train_vae(
    config: ModelConfig, data: Path, loop: LoopConfig, *, batch_size: int = 16, crop: int = 128
) -> None:
    """Train the autoencoder on random crops of the rendered scenes in ``data``; resumes from ``loop.output``."""
    scenes = Scenes.open(data)
    torch.manual_seed(loop.seed)
    vae = AutoencoderKL(
        config.vae
    )  # not channels_last: its GroupNorm gradient is several times slower on a CPU
    trainer = Trainer(vae.named_parameters(), loop)
    trainer.run(lambda step, g: vae_loss(vae, random_crops(scenes, batch_size, crop, g), g), batch_size)


@torch.inference_mode()
def whiten(vae: AutoencoderKL, images: Tensor) -> None:
    """Fold a shift and a rotation into the two 1x1 convolutions: latents get zero mean and unit covariance.

    The mapping from picture to picture stays the same; only the latents between are expressed in principal
    axes. ``images`` (N, 3, H, W) in [-1, 1] is the sample to measure. Log-variances are only shifted by the
    mean scale: latents are taken from the mode.
    """
    mean, _ = vae.moments(images)
    channels = mean.shape[1]
    flat = mean.permute(0, 2, 3, 1).reshape(-1, channels).double()
    centre = flat.mean(0)
    values, axes = torch.linalg.eigh(torch.cov((flat - centre).T))
    forward = axes / values.sqrt()  # (channels, channels): latent @ forward is white
    backward = (axes * values.sqrt()).T
    quant, post = vae.quant_conv, vae.post_quant_conv
    weight, bias = quant.weight.data.double(), quant.bias.data.double()
    means = weight[:channels, :, 0, 0]
    weight[:channels, :, 0, 0] = forward.T @ means
    bias[:channels] = (bias[:channels] - centre) @ forward
    bias[channels:] -= values.log().mean()
    quant.weight.data.copy_(weight)
    quant.bias.data.copy_(bias)
    old = post.weight.data.double()[:, :, 0, 0]
    post.bias.data.copy_(post.bias.data.double() + old @ centre)
    post.weight.data.copy_((old @ backward.T)[:, :, None, None])
