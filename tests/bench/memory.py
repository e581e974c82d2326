"""Measure the most resident memory of a process that loads a model and draws a picture (Linux)."""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

CHILD = """
import sys, time
import numpy as np
from core import ControlUnit, Request, load_pipeline
from tests.bench.memory import resident

model, dtype, pixels, steps = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
print(f"imports: {resident('VmHWM'):.2f} GB")
began = time.perf_counter()
pipe = load_pipeline(model, dtype=dtype)
print(f"base loaded: peak {resident('VmHWM'):.2f} GB, {time.perf_counter() - began:.1f} s")
hint = np.zeros((pixels, pixels, 3), np.uint8)
hint[pixels // 4] = 255
request = Request(prompt="a dog", controls=(ControlUnit("canny", hint),), steps=steps)
for name in ("first", "second"):
    began = time.perf_counter()
    pipe(request)
    took = time.perf_counter() - began
    print(f"{name} picture, {steps} steps: peak {resident('VmHWM'):.2f} GB, {took:.1f} s")
"""
WRITER = """
import sys
from pathlib import Path
from tests.bench.random_model import write_random_model

write_random_model(sys.argv[1], Path(sys.argv[2]))
"""


def resident(field: str, process: int | str = "self") -> float:
    """Return ``field`` (VmHWM: the peak, VmRSS: now) of a process in GB of 10^9 bytes (Linux)."""
    path = Path(f"/proc/{process}/status")
    for line in path.read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024 / 1e9
    raise RuntimeError(f"no {field} in {path}")


@contextlib.contextmanager
def model_path(name: str, weights: str) -> Iterator[str]:
    """Yield what load_pipeline takes: the name itself, or the YAML file of a random model like it."""
    if weights == "bundled":
        yield name
        return
    with tempfile.TemporaryDirectory() as folder:
        # In a process of its own, so that what it takes to make is given back.
        subprocess.run([sys.executable, "-c", WRITER, name, folder], check=True)
        yield f"{folder}/{name}.yaml"


def run(args: argparse.Namespace) -> None:
    """Print the peak after the imports, after loading and after each of two pictures."""
    with model_path(args.model, args.weights) as path:
        arguments = [path, args.dtype, str(args.pixels), str(args.steps)]
        subprocess.run([sys.executable, "-c", CHILD, *arguments], check=True)
