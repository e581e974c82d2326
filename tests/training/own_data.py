"""A base small enough for any test, as files, and a small data set of one's own.

As a program it trains: BASE DATA OUTPUT and the options of the run as JSON.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from core.training.circles import write_circles
from core.training.controlnet import ADAM_EPSILON, ControlRun, train_controlnet
from core.training.export import export_base
from core.training.loop import LoopConfig
from tests.tiny_model import tiny_config, tiny_networks


def write_base(folder: Path) -> Path:
    """Write the tiny base and its YAML to ``folder``; return the latter's path."""
    config = tiny_config()
    networks = tiny_networks(config)
    export_base(config, networks.unet, networks.vae, networks.text, folder / "base.safetensors")
    config.weights, config.controls = "base.safetensors", {}
    OmegaConf.save(OmegaConf.structured(config), folder / "tiny.yaml")
    return folder / "tiny.yaml"


def write_data(folder: Path, count: int = 6) -> Path:
    """Write ``count`` circles of 64 px to ``folder``; return it."""
    write_circles(folder, count, side=64)
    return folder


def own_run(base: Path, data: Path, output: Path, **changes: Any) -> ControlRun:
    """Return a run of 4 steps of 2 samples in float32; ``changes`` may be of the run or of its loop."""
    of_loop = {key: changes.pop(key) for key in list(changes) if key in LoopConfig.__dataclass_fields__}
    loop = LoopConfig(
        output=output, steps=4, learning_rate=1e-3, warmup=0, ema_decay=0.0, keep=2, epsilon=ADAM_EPSILON
    )
    run = ControlRun(
        base=str(base), data=data, name="own", loop=replace(loop, **of_loop), batch=2, device="cpu"
    )
    return replace(run, **changes)


if __name__ == "__main__":
    base, data, output = map(Path, sys.argv[1:4])
    train_controlnet(own_run(base, data, output, **json.loads(sys.argv[4])))
