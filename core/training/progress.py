"""What a person sees of a run: the bar with loss, speed, remaining time and memory, and loss.csv."""

from __future__ import annotations

import csv
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from core.training.processes import Processes

log = logging.getLogger(__name__)

SMOOTHING = 0.98
CSV = "loss.csv"


def peak_memory(device: torch.device) -> str:
    """Return the most memory used so far in GB: the GPU's, or this process's where it computes on the CPU."""
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_reserved(device) / 2**30:.1f}GB"
    try:
        import resource
    except ImportError:  # Windows
        return "unknown"
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f}GB"


class Progress:
    """Draws the bar and writes loss.csv; only the first of several processes does."""

    def __init__(
        self, output: Path, step: int, steps: int, step_samples: int, processes: Processes, every: int
    ) -> None:
        """Go on from ``step`` of ``steps``, each of ``step_samples``; the file is flushed ``every`` steps."""
        self.path, self.begin, self.samples, self.every = output / CSV, step, step_samples, every
        self.processes = processes
        self.smooth: float | None = None
        self.bar = tqdm(
            total=steps,
            initial=step,
            desc=output.name,
            mininterval=5,
            disable=not processes.first,
            unit="step",
        )
        self.began = time.monotonic()
        self.file: TextIO | None = None
        self.redirect = logging_redirect_tqdm()

    def __enter__(self) -> Progress:
        """Open the file."""
        if self.processes.first:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._guarded(self._open)
        self.redirect.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        """Close it, and the bar."""
        self.redirect.__exit__(None, None, None)
        self.bar.close()
        if self.file is not None:
            self._guarded(self.file.close)

    def _open(self) -> None:
        self.file = self.path.open("a", newline="")

    def __call__(self, step: int, loss: float, norm: float) -> None:
        """Take in the figures of one step."""
        self.smooth = loss if self.smooth is None else SMOOTHING * self.smooth + (1 - SMOOTHING) * loss
        if not self.processes.first:
            return
        self._guarded(lambda: self._write(step, loss, norm))
        rate = (step - self.begin) * self.samples / (time.monotonic() - self.began)
        self.bar.set_postfix(
            loss=f"{self.smooth:.4f}",
            samples_s=f"{rate:.2f}",
            memory=peak_memory(self.processes.device),
            refresh=False,
        )
        self.bar.update()

    def _write(self, step: int, loss: float, norm: float) -> None:
        if self.file is not None:
            csv.writer(self.file).writerow([step, f"{loss:.6f}", f"{norm:.4f}"])
            if step % self.every == 0:
                self.file.flush()

    def _guarded(self, write: Callable[[], None]) -> None:
        """Write, or go on without the file: a full disk should not end a run that only lacks its figures."""
        try:
            write()
        except OSError as error:
            log.warning("%s cannot be written (%s): training goes on without it.", self.path, error.strerror)
            self.file = None
