"""How long and how fast a network is trained, and which random numbers each step has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True, slots=True)
class LoopConfig:
    """How long and how fast to train.

    ``steps`` is the total over all runs; ``minutes``, where given, ends this run earlier. The learning rate
    rises over ``warmup`` steps, stays, and falls linearly to zero over the last ``decay`` steps. A step adds
    up the gradients of ``accumulate`` batches. ``ema_decay`` 0 keeps no moving average, ``clip_norm`` 0 clips
    nothing. ``keep`` is how many numbered checkpoints stay; 0 is for a single one. ``offload`` keeps the
    weights that are optimised, and the optimiser's state, in main memory. ``fall`` is the share of the
    ``minutes``, at their end, over which the rate falls to zero, for a run that ends by the clock; then it is
    over, whatever ``steps`` say.
    """

    output: Path
    steps: int
    minutes: float | None = None
    fall: float = 0.0
    learning_rate: float = 5e-4
    weight_decay: float = 0.01
    warmup: int = 100
    decay: int = 0
    ema_decay: float = 0.999
    clip_norm: float = 1.0
    save_every: int = 200
    seed: int = 0
    accumulate: int = 1
    keep: int = 0
    offload: bool = False
    loss_scale: float = 1.0  # above 1 where gradients are computed in float16, which loses small ones
    muon: bool = False  # Muon for matrices and convolutions instead of AdamW
    epsilon: float = 1e-12  # gradients of the demo's text encoder are of the order of the usual 1e-8

    def rate(self, step: int) -> float:
        """Return the learning rate of ``step``, counted from 0."""
        rate = self.learning_rate * min(1.0, (step + 1) / max(1, self.warmup))
        if self.decay:
            rate *= min(1.0, max(0.0, (self.steps - step) / self.decay))
        return rate


def step_generator(seed: int, step: int, stream: int = 0) -> torch.Generator:
    """Return the random stream of one step: a resumed run draws what the unbroken one would have drawn."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) * 16 + stream)


def plain_rate(name: str) -> float:
    """Let every parameter learn at the run's rate."""
    return 1.0
