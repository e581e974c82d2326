"""Print what loading a ControlNet costs: ``python -m tests.weights.measure_peak FILE DTYPE MODEL_CHANNELS``.

Prints one JSON line: the bytes of the loaded weights, and the most resident memory, in bytes, above what was
resident before (Linux).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from core.config import ModelConfig, load_config
from core.weights.checkpoint import load_control


def config_of(model_channels: int) -> ModelConfig:
    """SD 1.5's shape at another width: 320 is the published one, of 1.44 GB in float32."""
    config = load_config("sd15")
    config.unet.model_channels = model_channels
    config.unet.context_dim = config.text.width = 64 if model_channels < 320 else 768
    return config


def resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field} in /proc/self/status")


def main(path: str, dtype: str, model_channels: str) -> None:
    config = config_of(int(model_channels))
    Path("/proc/self/clear_refs").write_text("5")  # start the high-water mark anew
    before = resident("VmRSS")
    net = load_control(config, Path(path), device=torch.device("cpu"), dtype=getattr(torch, dtype))
    weights = sum(p.numel() * p.element_size() for p in net.parameters())
    print(json.dumps({"weights": weights, "peak": resident("VmHWM") - before}))


if __name__ == "__main__":
    main(*sys.argv[1:])
