from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from core.models.controlnet import ControlNet
from tests.weights.files import write
from tests.weights.measure_peak import config_of

WIDTH = 128  # a ControlNet of about 58 million weights: 230 MB in float32
# Modules, what torch loads at first use, and for each of two threads a buffer, a weight and its own heap.
# As the threads happen to take turns, 10 to 48 MB, at this width and at the published one.
FIXED_BYTES = 48 * 10**6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("peak")
    config = config_of(WIDTH)
    with torch.device("meta"):
        shapes = ControlNet(config.unet, config.control).state_dict()
    state = {key: torch.rand(value.shape) for key, value in shapes.items()}
    write(folder / "control.safetensors", state)
    write(folder / "control.pth", state, wrappers=1)
    return folder


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize("name", ["control.safetensors", "control.pth"])
def test_loading_takes_at_most_a_tenth_more_than_the_weights(folder: Path, name: str) -> None:
    command = [sys.executable, "-m", "tests.weights.measure_peak", str(folder / name), "bfloat16", str(WIDTH)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True, timeout=300)
    measured = json.loads(done.stdout)
    assert measured["weights"] > 10**8
    assert measured["peak"] <= 1.1 * measured["weights"] + FIXED_BYTES
