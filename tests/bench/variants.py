"""Time whole pictures with each variant of a ControlNet, and with none, on random weights."""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace

import numpy as np
import torch

from core.config import CONTROL_VARIANTS, load_config, with_variant
from core.models.packing import pack_weights
from core.models.text_encoder import TextEncoder
from core.models.unet import UNet
from core.models.vae import AutoencoderKL
from core.models.variants import AnyControlNet, control_class
from core.pipeline import ControlNetPipeline
from core.request import ControlUnit, Request
from core.weights.checkpoint import BaseNetworks
from tests.bench.random_model import materialise
from tests.bench.step import CLOCKS

NONE = "none"


def random_pipeline(model: str, dtype: torch.dtype) -> ControlNetPipeline:
    """Return a pipeline of random weights, whose ControlNets are called as their variants."""
    config = load_config(model)
    with torch.device("meta"):
        networks = BaseNetworks(UNet(config.unet), AutoencoderKL(config.vae), TextEncoder(config.text))
    for net in (networks.unet, networks.vae, networks.text):
        materialise(net, dtype)
        pack_weights(net)

    def load(variant: str) -> AnyControlNet:
        control = with_variant(config, variant).control
        with torch.device("meta"):
            net = control_class(control)(config.unet, control)
        materialise(net, dtype)
        pack_weights(net)
        return net

    return ControlNetPipeline(
        config, networks, load, controls=CONTROL_VARIANTS, max_controls=len(CONTROL_VARIANTS)
    )


def request(control: str, pixels: int, steps: int) -> Request:
    """Return a request for one picture with a control, or with none."""
    size = (pixels, pixels)
    lines = np.random.default_rng(0).integers(0, 2, (*size, 3), dtype=np.uint8) * 255
    units = () if control == NONE else (ControlUnit(control, lines),)
    return Request("a house", units, size=size, steps=steps)


def run(args: argparse.Namespace) -> None:
    """Print a line for each variant: seconds a picture, and how many more pictures than with the full one."""
    if args.threads:
        torch.set_num_threads(args.threads)
    pipe = random_pipeline(args.model, getattr(torch, args.dtype))
    asked = {name: request(name, args.pixels, args.steps) for name in (NONE, *args.variants)}
    for one in asked.values():  # loads the networks, and warms up
        pipe(replace(one, steps=1))
    clock = CLOCKS[args.clock]
    times: dict[str, list[float]] = {name: [] for name in asked}
    for _ in range(args.rounds):  # in turn, so that what else the machine does meets all alike
        for name, one in asked.items():
            began = clock()
            pipe(one)
            times[name].append(clock() - began)
    print(f"{args.model}, {args.pixels} px, {args.steps} steps, {args.dtype}, {args.clock} time, ", end="")
    print(f"{torch.get_num_threads()} threads, median of {args.rounds}")
    full = statistics.median(times["full"]) if "full" in times else float("nan")
    for name, values in times.items():
        median = statistics.median(values)
        saved, more = 1 - median / full, full / median - 1
        print(f"  {name:12} {median:7.2f} s a picture, {saved:4.0%} less time, {more:4.0%} more pictures")
