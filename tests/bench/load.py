"""How long loading takes beside reading the same files once, and what memory it takes beyond the weights."""

from __future__ import annotations

import argparse
import gc
import os
import time
from pathlib import Path

from core.loading import load_pipeline
from tests.bench.compare import in_own_process, random_files
from tests.bench.memory import resident
from tests.bench.random_model import CONTROL


def run(args: argparse.Namespace) -> None:
    """Print a Markdown table: reading, loading, their ratio and the memory, for each number format."""
    print("| | reading the files once | loading | ratio | resident after it | peak above that |")
    print("|---|---|---|---|---|---|")
    with random_files(args.model, with_diffusers=False) as files:
        for dtype in args.dtype:
            given = (files.ours, dtype, args.threads, args.cold)
            found = [in_own_process(measure, *given) for _ in range(args.rounds)]
            reading, loading = (min(values) for values in list(zip(*found, strict=True))[:2])
            _, _, after, above = min(found, key=lambda one: one[1])
            cells = (f"{reading:.2f} s", f"{loading:.2f} s", f"{loading / reading:.1f}")
            print(f"| {dtype} | {' | '.join(cells)} | {after:.2f} GB | {above:.2f} GB |", flush=True)


def measure(
    model: Path, dtype: str, threads: int | None, cold: bool = False
) -> tuple[float, float, float, float]:
    """Read all files once, then load them; return both times, the memory after it and the peak above that.

    The files are in the system's cache or, if it is to be ``cold``, read from the disk each time. To be
    called in a process of its own.
    """
    import torch

    if threads:
        torch.set_num_threads(threads)
    files = sorted(model.parent.glob("*.safetensors"))
    reading = min(_read(files, cold) for _ in range(1 if cold else 3))
    if cold:
        _forget(files)
    gc.collect()  # of what imports left, which would else fall into loading or not, as it comes
    began = time.perf_counter()
    pipe = load_pipeline(model, device="cpu", dtype=dtype)
    with torch.inference_mode():
        pipe._cache.get([CONTROL])
    loading = time.perf_counter() - began
    after = resident("VmRSS")
    return reading, loading, after, resident("VmHWM") - after


def _read(files: list[Path], cold: bool) -> float:
    """Read files into main memory, one after the other; return the seconds."""
    if cold:
        _forget(files)
    began = time.perf_counter()
    for path in files:
        path.read_bytes()
    return time.perf_counter() - began


def _forget(files: list[Path]) -> None:
    """Have the system drop files from its cache, so that the next reading is from the disk."""
    if not hasattr(os, "posix_fadvise"):
        raise ValueError("--cold needs Linux: other systems cannot be told to forget a file.")
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())  # what is not written yet stays
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
