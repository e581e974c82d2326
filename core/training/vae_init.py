"""Fit the autoencoder in closed form, as a wavelet pyramid with principal components at its end.

From torch's own initialisation hues are still missing after a thousand steps (measured: 19 dB); from here
the very first decoder gives 24 dB. The trunk of skips, which is linear, carries a Haar pyramid of the
picture down and a smooth picture back up; every residual branch starts at zero. ``silu(x) - silu(-x) = x``
lets pairs of channels of opposite sign pass the last nonlinearity unharmed; a pair of constant channels
keeps the last GroupNorm from dividing each picture by its own contrast.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.models.vae import (
    AttnBlock,
    AutoencoderKL,
    Decoder,
    Downsample,
    Encoder,
    Level,
    ResnetBlock,
    Upsample,
)

REFERENCE = 2.0  # the constant channels, about three times the picture's spread
HAAR = torch.tensor([[[1, 1], [1, 1]], [[1, -1], [1, -1]], [[1, 1], [-1, -1]], [[1, -1], [-1, 1]]]) / 2.0


@torch.no_grad()
def init_as_pyramid(vae: AutoencoderKL, images: Tensor) -> None:
    """Set the weights of ``vae``; ``images`` (N, 3, H, W) in [-1, 1] is the sample to fit the readouts on."""
    for module in vae.modules():
        if isinstance(module, ResnetBlock):
            _zeroed(module.conv2)
            if isinstance(module.nin_shortcut, nn.Conv2d):
                _pass_through(module.nin_shortcut)
        elif isinstance(module, AttnBlock):
            _zeroed(module.proj_out)
    _init_encoder(vae.encoder, images)
    for conv in (vae.quant_conv, vae.post_quant_conv):
        weight, _ = _zeroed(conv)
        weight[:, :, 0, 0] = torch.eye(len(weight))
    _init_decoder(vae, images)


def without_idle_branches(encoder: Encoder) -> Encoder:
    """Return ``encoder``'s layers without the residual branches that add nothing: the same output, sooner."""
    lean = copy.copy(encoder)
    lean._modules = dict(encoder._modules)
    levels = [level for level in encoder.down if isinstance(level, Level)]
    lean.down = nn.ModuleList(
        Level([_lean(block) for block in level.block.children()], downsample=level.downsample)
        for level in levels
    )
    lean.mid = copy.copy(encoder.mid)
    lean.mid._modules = {name: _lean(block) for name, block in encoder.mid.named_children()}
    return lean


def _lean(block: nn.Module) -> nn.Module:
    if isinstance(block, ResnetBlock) and not _adds(block.conv2):
        return block.nin_shortcut
    if isinstance(block, AttnBlock) and not _adds(block.proj_out):
        return nn.Identity()
    return block


def _adds(conv: nn.Conv2d) -> bool:
    return bool(conv.weight.any()) or (conv.bias is not None and bool(conv.bias.any()))


def _tensors(conv: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Return weight and bias, to be changed in place."""
    assert conv.bias is not None
    return conv.weight.data, conv.bias.data


def _zeroed(conv: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Set weight and bias to zero and return them."""
    weight, bias = _tensors(conv)
    return weight.zero_(), bias.zero_()


def _pass_through(conv: nn.Conv2d) -> None:
    """Keep the first channels; where there are twice as many as before, append them with opposite sign."""
    weight, _ = _zeroed(conv)
    n = min(conv.in_channels, conv.out_channels)
    weight[:n, :n, 0, 0] = torch.eye(n)
    if conv.out_channels >= 2 * conv.in_channels:
        weight[n : 2 * n, :n, 0, 0] = -torch.eye(n)


def _init_encoder(encoder: Encoder, images: Tensor) -> None:
    """Carry colours, then all bands that fit, down the trunk; read the principal components at the end."""
    weight, bias = _tensors(encoder.conv_in)
    bands = weight.shape[1]
    weight[: bands + 1], bias[: bands + 1] = 0.0, 0.0
    weight[torch.arange(bands), torch.arange(bands), 1, 1] = 1.0
    bias[bands] = REFERENCE
    for level in encoder.down:
        if not isinstance(level.downsample, Downsample):
            break
        weight, bias = _zeroed(level.downsample.conv)
        wanted = [(band, haar) for haar in range(4) for band in range(bands)][: len(bias) - 1]
        for out, (band, haar) in enumerate(wanted):
            weight[out, band, :2, :2] = HAAR[haar] / 2.0 if haar == 0 else HAAR[haar]
        bands = len(wanted)
        bias[bands] = REFERENCE
    features = _features(encoder, images)
    mean = features.mean(0)
    _, axes = torch.linalg.eigh(torch.cov(features.T))
    weight, bias = _zeroed(encoder.conv_out)
    channels = len(bias) // 2
    main = axes[:, -channels:].T
    weight[:channels, :, 1, 1] = main.float()
    bias[:channels] = -(main @ mean).float()
    bias[channels:] = -6.0  # log-variance: little noise


def _features(net: Encoder | Decoder, inputs: Tensor) -> Tensor:
    """Return what ``conv_out`` sees, (pixels, channels) float64."""
    seen: list[Tensor] = []
    hook = net.conv_out.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    net(inputs)
    hook.remove()
    return _pixels(seen[0]).double()


def _pixels(x: Tensor) -> Tensor:
    """Map (B, C, h, w) to (B * h * w, C)."""
    return x.permute(0, 2, 3, 1).flatten(0, 2)


def _init_decoder(vae: AutoencoderKL, images: Tensor) -> None:
    """Pass colours, with both signs, and latents up the trunk, smoothly; fit the last readout."""
    decoder = vae.decoder
    latents = vae.encode(images) / vae.config.scale_factor
    colors = _pixels(F.avg_pool2d(images, vae.factor))
    flat = _pixels(latents)
    fit = torch.linalg.lstsq(torch.cat([flat, torch.ones(len(flat), 1)], 1), colors).solution
    signs = torch.cat([fit, -fit], dim=1).T  # (6, latent channels + 1): colours, and their opposites
    weight, bias = _tensors(decoder.conv_in)
    rest = min(weight.shape[1], len(weight) - 8)
    weight[: 8 + rest] = 0.0
    weight[:6, :, 1, 1], bias[:6] = signs[:, :-1], signs[:, -1]
    bias[6], bias[7] = REFERENCE, -REFERENCE
    weight[torch.arange(8, 8 + rest), torch.arange(rest), 1, 1] = 0.3
    smooth = torch.tensor([1.0, 2.0, 1.0]) / 4.0
    for level in decoder.up:
        if isinstance(level.upsample, Upsample):
            weight, _ = _zeroed(level.upsample.conv)
            weight[torch.arange(len(weight)), torch.arange(len(weight))] = torch.outer(smooth, smooth)
    features = _features(decoder, latents)
    system = torch.cat([features, torch.ones(len(features), 1, dtype=torch.float64)], 1)
    ridge = 1e-3 * len(system) * torch.eye(system.shape[1], dtype=torch.float64)
    readout = torch.linalg.solve(system.T @ system + ridge, system.T @ _pixels(images).double()).float()
    weight, bias = _zeroed(decoder.conv_out)
    weight[:, :, 1, 1] = readout[:-1].T
    bias.copy_(readout[-1])


@torch.no_grad()
def whiten(vae: AutoencoderKL, images: Tensor) -> None:
    """Fold a shift and a rotation into the two 1x1 convolutions: latents get zero mean and unit covariance.

    The mapping from picture to picture stays the same; only the latents between are expressed in principal
    axes. ``images`` (N, 3, H, W) in [-1, 1] is the sample to measure. Log-variances are only shifted by the
    mean scale: latents are taken from the mode.
    """
    mean, _ = vae.moments(images)
    channels = mean.shape[1]
    flat = _pixels(mean).double()
    centre = flat.mean(0)
    values, axes = torch.linalg.eigh(torch.cov((flat - centre).T))
    forward = axes / values.sqrt()  # (channels, channels): latent @ forward is white
    backward = (axes * values.sqrt()).T
    weight, bias = _tensors(vae.quant_conv)
    weight[:channels, :, 0, 0] = (forward.T @ weight[:channels, :, 0, 0].double()).float()
    bias[:channels] = ((bias[:channels] - centre) @ forward).float()
    bias[channels:] -= values.log().mean().float()
    weight, bias = _tensors(vae.post_quant_conv)
    old = weight[:, :, 0, 0].double()
    bias.copy_(bias + old @ centre)
    weight.copy_((old @ backward.T)[:, :, None, None])
