"""Add up what is on the device: weights by their sizes, activations measured.

With --low-vram in each phase; without it, when all networks stay, in float16. Nothing here needs a GPU or
real weights. A GPU computes in float16, and in the autoencoder in float32 where float16 is too narrow;
bfloat16, in which a CPU is measured, has float16's size. What kernels take for themselves does not count.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from core.config import ModelConfig, load_config
from core.models import attention, blocks
from core.models.controlnet import ControlNet
from core.models.strips import Strips, decode_in_strips
from core.models.text_encoder import TextEncoder
from core.models.unet import UNet
from core.models.vae import AutoencoderKL
from core.request import ControlUnit
from core.sampling.guidance import GuidedDenoiser, prepare_control, text_rows
from core.sampling.schedule import Schedule
from tests.bench.live import LiveBytes
from tests.bench.random_model import materialise

MB = 1e6
HALF, FULL = torch.bfloat16, torch.float32
NEVER = 2**62


def size(*modules: nn.Module, dtype: torch.dtype) -> float:
    """Return the MB that the weights take in ``dtype``."""
    return sum(p.numel() for module in modules for p in module.parameters()) * dtype.itemsize / MB


def peak(compute: Callable[[], object]) -> float:
    """Return the MB that tensors take at the most while this computes."""
    with LiveBytes() as counted:
        compute()
    return counted.peak / MB


@dataclass(frozen=True)
class Sum:
    """MB in 16 bits that a phase needs: of its own networks, and of tensors at their peak."""

    weights: float
    activations: float


def report(phase: str, networks: str, sums: Sum) -> None:
    """Print a line."""
    weights, activations = sums.weights, sums.activations
    total = weights + activations
    print(f"{phase:28} {networks:24} {weights:7.0f} + {activations:6.0f} = {total:6.0f} MB", flush=True)


@torch.inference_mode()
def run(args: argparse.Namespace) -> None:
    """Print a line for each phase, and one for all networks at once."""
    config = load_config(args.model)
    print(f"{config.title}, {args.pixels} px, {args.samples} pictures, {args.controls} controls")
    sums = [phase(config, args) for name, phase in PHASES.items() if args.only in (None, name)]
    if args.only is None and not args.no_plain:
        weights = sum(each.weights for each in sums)
        report("without --low-vram", "all, float16", Sum(weights, max(each.activations for each in sums)))


def text_phase(config: ModelConfig, args: argparse.Namespace) -> Sum:
    """Encode a prompt and a negative one."""
    with torch.device("meta"):
        text = TextEncoder(config.text)
    tokens = text.tokenize(["a dog", "rain"])
    weights = size(text, dtype=HALF)
    materialise(text, HALF)
    sums = Sum(weights, peak(lambda: text(tokens)))
    report("text", "text encoder", sums)
    return sums


def denoise_phase(config: ModelConfig, args: argparse.Namespace) -> Sum:
    """Take one guided step."""
    with torch.device("meta"):
        unet, control = UNet(config.unet), ControlNet(config.unet, config.control)
    weights = size(unet, *[control] * args.controls, dtype=HALF)
    for net in (unet, control):
        materialise(net, HALF).to(memory_format=torch.channels_last)
    side, hint = args.pixels // 8, torch.zeros(1, 3, args.pixels, args.pixels)
    unit = ControlUnit("canny", hint[0].permute(1, 2, 0).byte().numpy())
    x_t = torch.randn(args.samples, config.unet.in_channels, side, side)
    context = torch.randn(2, 77, config.unet.context_dim, dtype=HALF)

    def step() -> Tensor:
        prepared = [prepare_control(control, unit, hint, context, args.samples) for _ in range(args.controls)]
        kv = text_rows(unet, context, args.samples)
        denoiser = GuidedDenoiser(unet, Schedule(config.schedule), kv, prepared, 9.0, False, 20)
        return denoiser(x_t, 500, 0)

    names = "UNet, control" if args.controls == 1 else f"UNet, {args.controls} controls"
    with (  # what only a CPU does by strips and pieces
        mock.patch.object(attention, "MANY_TOKENS", NEVER),
        mock.patch.object(blocks, "REUSED_BYTES", NEVER),
    ):
        sums = Sum(weights, peak(step))
    report(f"denoising, batch {2 * args.samples}", names, sums)
    return sums


def decode_phase(config: ModelConfig, args: argparse.Namespace) -> Sum:
    """Decode one picture, plainly and in strips, which then rest in main memory: in float32, for the worst.

    Return the sum in 16 bits of decoding plainly, or in strips where that was not asked for.
    """
    with torch.device("meta"):
        vae = AutoencoderKL(config.vae)
    dtype = getattr(torch, args.vae_dtype)
    weights, scale = size(vae, dtype=FULL), FULL.itemsize / dtype.itemsize
    materialise(vae, dtype).to(memory_format=torch.channels_last)
    side = args.pixels // 8
    x_0 = torch.randn(1, config.unet.in_channels, side, side, dtype=dtype)
    made = []
    if not args.no_plain:
        made.append(Sum(weights, scale * peak(lambda: vae.decode(x_0))))
        report("decoding", "VAE, float32", made[-1])
    with resting_elsewhere():
        made.append(Sum(weights, scale * peak(lambda: decode_in_strips(vae, x_0))))
    report("decoding in strips", "VAE, float32", made[-1])
    return Sum(made[0].weights / 2, made[0].activations / 2)


@contextmanager
def resting_elsewhere() -> Iterator[None]:
    """Leave out of the count the strips that rest, as in main memory."""
    append = Strips.append

    def append_and_hide(strips: Strips, strip: Tensor) -> None:
        append(strips, strip)
        with _disable_current_modes():
            strips.rows[-1] = strip.clone()

    with mock.patch.object(Strips, "append", append_and_hide):
        yield


PHASES = {"text": text_phase, "denoise": denoise_phase, "decode": decode_phase}
