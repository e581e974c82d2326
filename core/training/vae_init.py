"""Fit the autoencoder in closed form, as a wavelet pyramid with principal components at its end.

From torch's own initialisation hues are still missing after a thousand steps (measured: 19 dB); from here the
very first decoder gives 24 dB. The trunk of skips, which is linear, carries a Haar pyramid of the picture down
and a smooth picture back up; every residual branch starts at zero. ``silu(x) - silu(-x) = x`` lets pairs of
channels of opposite sign pass the last nonlinearity unharmed; a pair of constant channels keeps the last
GroupNorm from dividing each picture by its own contrast.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.models.vae import AttnBlock, AutoencoderKL, Decoder, Encoder, ResnetBlock

REFERENCE = 2.0  # the constant channels, about three times the picture's spread
HAAR = torch.tensor([[[1, 1], [1, 1]], [[1, -1], [1, -1]], [[1, 1], [-1, -1]], [[1, -1], [-1, 1]]]) / 2.0


@torch.no_grad()
def init_as_pyramid(vae: AutoencoderKL, images: Tensor) -> None:
    """Set the weights of ``vae``; ``images`` (N, 3, H, W) in [-1, 1] is the sample to fit the readouts on."""
    for module in vae.modules():
        if isinstance(module, ResnetBlock):
            _zero(module.conv2)
            if isinstance(module.nin_shortcut, nn.Conv2d):
                _pass_through(module.nin_shortcut)
        elif isinstance(module, AttnBlock):
            _zero(module.proj_out)
    _init_encoder(vae.encoder, images)
    _identity(vae.quant_conv)
    _identity(vae.post_quant_conv)
    _init_decoder(vae, images)


def _zero(conv: nn.Conv2d) -> None:
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)


def _identity(conv: nn.Conv2d) -> None:
    _zero(conv)
    conv.weight.copy_(torch.eye(conv.out_channels)[:, :, None, None])


def _pass_through(conv: nn.Conv2d) -> None:
    """Keep the first channels; where there are more channels than before, append the same with opposite sign."""
    _zero(conv)
    n = min(conv.in_channels, conv.out_channels)
    conv.weight[:n, :n, 0, 0] = torch.eye(n)
    if conv.out_channels >= 2 * conv.in_channels:
        conv.weight[n : 2 * n, :n, 0, 0] = -torch.eye(n)


def _init_encoder(encoder: Encoder, images: Tensor) -> None:
    """Carry colours, then all the bands that fit, down the trunk; read the principal components at the end."""
    conv = encoder.conv_in
    bands = conv.in_channels
    conv.weight[: bands + 1] = 0.0
    conv.weight[torch.arange(bands), torch.arange(bands), 1, 1] = 1.0
    conv.bias[: bands + 1] = 0.0
    conv.bias[bands] = REFERENCE
    for level in encoder.down:
        if isinstance(level.downsample, nn.Identity):
            break
        conv = level.downsample.conv
        wanted = [(band, haar) for haar in range(4) for band in range(bands)][: conv.out_channels - 1]
        _zero(conv)
        for out, (band, haar) in enumerate(wanted):
            conv.weight[out, band, :2, :2] = HAAR[haar] / 2.0 if haar == 0 else HAAR[haar]
        conv.bias[len(wanted)] = REFERENCE
        bands = len(wanted)
    features = _features(encoder, images)
    mean = features.mean(0)
    _, axes = torch.linalg.eigh(torch.cov(features.T))
    out = encoder.conv_out
    channels = out.out_channels // 2
    main = axes[:, -channels:].T.float()
    _zero(out)
    out.weight[:channels, :, 1, 1] = main
    out.bias[:channels] = -(main @ mean.float())
    out.bias[channels:] = -6.0  # little noise to begin with


def _features(net: Encoder | Decoder, inputs: Tensor) -> Tensor:
    """Return what ``conv_out`` sees, (pixels, channels) float64."""
    seen: list[Tensor] = []
    hook = net.conv_out.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    net(inputs)
    hook.remove()
    return seen[0].permute(0, 2, 3, 1).flatten(0, 2).double()


def _init_decoder(vae: AutoencoderKL, images: Tensor) -> None:
    """Pass colours, with both signs, and latents up the trunk, smoothly; fit the last readout."""
    decoder = vae.decoder
    latents = vae.encode(images) / vae.config.scale_factor
    colors = F.avg_pool2d(images, vae.factor).permute(0, 2, 3, 1).flatten(0, 2)
    flat = latents.permute(0, 2, 3, 1).flatten(0, 2)
    ones = torch.ones(len(flat), 1)
    fit = torch.linalg.lstsq(torch.cat([flat, ones], 1), colors).solution  # (latent channels + 1, 3)
    conv = decoder.conv_in
    signs = torch.cat([fit, -fit], dim=1).T
    conv.weight[:8] = 0.0
    conv.weight[:6, :, 1, 1] = signs[:, :-1]
    conv.bias[:6] = signs[:, -1]
    conv.bias[6], conv.bias[7] = REFERENCE, -REFERENCE
    rest = min(conv.in_channels, conv.out_channels - 8)
    conv.weight[8 : 8 + rest] = 0.0
    conv.weight[torch.arange(8, 8 + rest), torch.arange(rest), 1, 1] = 0.3
    smooth = torch.tensor([1.0, 2.0, 1.0])
    kernel = smooth[:, None] * smooth[None, :] / 16.0
    for level in decoder.up:
        if not isinstance(level.upsample, nn.Identity):
            conv = level.upsample.conv
            _zero(conv)
            conv.weight[torch.arange(conv.in_channels), torch.arange(conv.in_channels)] = kernel
    features = _features(decoder, latents)
    target = images.permute(0, 2, 3, 1).flatten(0, 2).double()
    system = torch.cat([features, torch.ones(len(features), 1, dtype=torch.float64)], 1)
    ridge = 1e-3 * len(system) * torch.eye(system.shape[1], dtype=torch.float64)
    solution = torch.linalg.solve(system.T @ system + ridge, system.T @ target).float()
    _zero(decoder.conv_out)
    decoder.conv_out.weight[:, :, 1, 1] = solution[:-1].T
    decoder.conv_out.bias.copy_(solution[-1])


@torch.no_grad()
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
    assert quant.bias is not None and post.bias is not None
    weight, bias = quant.weight.double(), quant.bias.double()
    weight[:channels, :, 0, 0] = forward.T @ weight[:channels, :, 0, 0]
    bias[:channels] = (bias[:channels] - centre) @ forward
    bias[channels:] -= values.log().mean()
    quant.weight.copy_(weight)
    quant.bias.copy_(bias)
    old = post.weight.double()[:, :, 0, 0]
    post.bias.copy_(post.bias.double() + old @ centre)
    post.weight.copy_((old @ backward.T)[:, :, None, None])
