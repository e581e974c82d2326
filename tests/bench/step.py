"""Time one sampling step: UNet and one ControlNet on a batch of two (guidance), random weights."""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from core.config import ModelConfig, load_config
from core.models.controlnet import ControlNet
from core.models.packing import pack_weights
from core.models.unet import UNet
from tests.bench.random_model import materialise

Step = Callable[[], Tensor]
Clock = Callable[[], float]
# The processor's time, with one thread, is fair on a machine that does other work too.
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}
BATCH, TOKENS = 2, 77


@dataclass
class Case:
    """What a step is given. ``pixels`` is the side of the picture."""

    config: ModelConfig
    dtype: torch.dtype
    pixels: int

    def tensors(self, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return latents, time steps, context and hint."""
        side, unet = self.pixels // 8, self.config.unet
        shapes = [
            (BATCH, unet.in_channels, side, side),
            (BATCH, TOKENS, unet.context_dim),
            (BATCH, 3, self.pixels, self.pixels),
        ]
        x, context, hint = (torch.rand(s, dtype=torch.float32, device=device).to(self.dtype) for s in shapes)
        t = torch.full((BATCH,), 500, device=device)
        last = torch.channels_last
        return x.contiguous(memory_format=last), t, context, hint.contiguous(memory_format=last)


def networks(case: Case, *, packed: bool = True) -> tuple[UNet, ControlNet]:
    """Return a UNet and a ControlNet of random weights, ready as in the pipeline."""
    with torch.device("meta"):
        unet, control = UNet(case.config.unet), ControlNet(case.config.unet, case.config.control)
    for net in (unet, control):
        materialise(net, case.dtype).to(memory_format=torch.channels_last)
        if packed:
            pack_weights(net)
    return unet, control


def our_step(case: Case, *, packed: bool) -> Step:
    """Return our step; as in the pipeline, the hint and the text are embedded once."""
    unet, control = networks(case, packed=packed)
    x, t, context, hint = case.tensors("cpu")
    embedded = control.embed_hint(hint)
    kv, control_kv = unet.project_context(context), control.project_context(context)
    return lambda: unet(x, t, kv, control(x, t, control_kv, embedded))


def diffusers_step(case: Case) -> Step:
    """Return the same step by diffusers, on networks of the same sizes."""
    from diffusers import ControlNetModel, UNet2DConditionModel

    u = case.config.unet
    sizes: dict[str, Any] = {
        "block_out_channels": tuple(u.model_channels * m for m in u.channel_mult),
        "cross_attention_dim": u.context_dim,
        "attention_head_dim": u.num_heads,
    }
    with torch.device("meta"):
        unet, control = UNet2DConditionModel(**sizes), ControlNetModel(**sizes)
    for net in (unet, control):
        materialise(net, case.dtype).to(memory_format=torch.channels_last)
    x, t, context, hint = case.tensors("cpu")

    def step() -> Tensor:
        down, mid = control(x, t, context, controlnet_cond=hint, return_dict=False)
        return unet(
            x,
            t,
            context,
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
            return_dict=False,
        )[0]

    return step


def count_flops(case: Case) -> int:
    """Count the floating point operations of a step's products, without computing."""
    with torch.device("meta"):
        unet, control = UNet(case.config.unet), ControlNet(case.config.unet, case.config.control)
    x, t, context, hint = (tensor.float() for tensor in case.tensors("meta"))
    with FlopCounterMode(display=False) as counter:
        unet(x, t, context, control(x, t, context, control.embed_hint(hint)))
    return int(counter.get_total_flops())


def matrix_peak(dtype: torch.dtype, clock: Clock, side: int = 4096, device: str = "cpu") -> float:
    """Return the floating point operations a second of the best of five large matrix products."""
    a = torch.rand(side, side, device=device).to(dtype)

    def product() -> Tensor:
        made = a @ a
        if made.is_cuda:
            torch.cuda.synchronize(made.device)
        return made

    product()
    return 2 * side**3 / min(seconds(product, clock) for _ in range(5))


def seconds(step: Step, clock: Clock) -> float:
    """Return the time of one call."""
    began = clock()
    step()
    return clock() - began


def compare(steps: dict[str, Step], rounds: int, clock: Clock) -> dict[str, list[float]]:
    """Time the steps in turn, so that what else the machine does meets all alike."""
    for step in steps.values():
        step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            times[name].append(seconds(step, clock))
    return times


@torch.inference_mode()
def run(args: argparse.Namespace) -> None:
    """Print a line for each size and number type."""
    if args.threads:
        torch.set_num_threads(args.threads)
    for name in args.dtype:
        dtype = getattr(torch, name)
        for pixels in args.pixels:
            case = Case(load_config("sd15"), dtype, pixels)
            steps = {"ours": our_step(case, packed=not args.plain)}
            if args.against == "plain":
                steps["plain"] = our_step(case, packed=False)
            elif args.against == "diffusers":
                steps["diffusers"] = diffusers_step(case)
            clock = CLOCKS[args.clock]
            threads = torch.get_num_threads()
            print(f"SD 1.5 + ControlNet, {pixels} px, {name}, batch {BATCH}, {threads} threads")
            report(case, compare(steps, args.rounds, clock), matrix_peak(dtype, clock))
            del steps
            gc.collect()


def report(case: Case, times: dict[str, list[float]], peak: float) -> None:
    """Print least and median seconds, the ratio round by round, and the share of the matrix peak."""
    flops = count_flops(case)
    for name, values in times.items():
        best = min(values)
        share = flops / best / peak
        print(f"  {name:10} best {best:.3f} s  median {statistics.median(values):.3f} s  ", end="")
        print(f"{flops / best / 1e9:.0f} GFLOP/s, {share:.0%} of the matrix peak {peak / 1e9:.0f}")
    ours, *others = times.values()
    for name, other in zip(list(times)[1:], others, strict=True):
        ratios = [a / b for a, b in zip(ours, other, strict=True)]
        best, median = min(ours) / min(other), statistics.median(ratios)
        print(f"  ours / {name}: {best:.2f} (best), {median:.2f} (median of the rounds)")
