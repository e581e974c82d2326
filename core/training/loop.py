"""The training loop of every network here: AdamW, a moving average, exact resume, whole checkpoints."""

from __future__ import annotations

import csv
import logging
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

log = logging.getLogger(__name__)

LossFunction = Callable[[int, torch.Generator], Tensor]


@dataclass(frozen=True, slots=True)
class LoopConfig:
    """How long and how fast to train.

    ``steps`` is the total over all runs; ``minutes``, where given, ends this run earlier. The learning rate
    rises over ``warmup`` steps, stays, and falls linearly to zero over the last ``decay`` steps.
    """

    output: Path
    steps: int
    minutes: float | None = None
    learning_rate: float = 5e-4
    weight_decay: float = 0.01
    warmup: int = 100
    decay: int = 0
    ema_decay: float = 0.999
    clip_norm: float = 1.0
    save_every: int = 200
    seed: int = 0

    def rate(self, step: int) -> float:
        """Return the learning rate of ``step``, counted from 0."""
        rate = self.learning_rate * min(1.0, (step + 1) / max(1, self.warmup))
        if self.decay:
            rate *= min(1.0, max(0.0, (self.steps - step) / self.decay))
        return rate


def step_generator(seed: int, step: int, stream: int = 0) -> torch.Generator:
    """Return the random stream of one step: a resumed run draws what the unbroken one would have drawn."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) * 16 + stream)


class Trainer:
    """Trains named parameters and keeps their moving average; saves all that decides the next step."""

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]], config: LoopConfig) -> None:
        """Take the parameters to optimise; resume from ``config.output`` where a checkpoint is there."""
        self.config = config
        self.params = {name: p for name, p in parameters if p.requires_grad}
        self.ema = {name: p.detach().clone() for name, p in self.params.items()}
        self.optimizer = torch.optim.AdamW(
            self.params.values(),
            lr=config.learning_rate,
            eps=1e-12,  # gradients of the text encoder are of the order of the usual 1e-8
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.step = 0
        self.path = config.output / "checkpoint.pt"
        if self.path.exists():
            self._resume()

    def _resume(self) -> None:
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        for name, p in self.params.items():
            p.data.copy_(state["params"][name])
            self.ema[name].copy_(state["ema"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        log.info("resumed %s at step %d", self.path, self.step)

    def save(self) -> None:
        """Write the checkpoint beside the last good one and put it in its place in one move."""
        self.config.output.mkdir(parents=True, exist_ok=True)
        state = {
            "params": {name: p.detach() for name, p in self.params.items()},
            "ema": self.ema,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }
        partial = self.path.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self.path)

    def one_step(self, loss_function: LossFunction) -> tuple[float, float]:
        """Take one optimiser step; return the loss and the gradient norm."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.rate(self.step)
        loss = loss_function(self.step, step_generator(self.config.seed, self.step))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.params.values(), self.config.clip_norm)
        if not torch.isfinite(norm):
            raise FloatingPointError(
                f"step {self.step}: the gradient is not finite. Lower the learning rate and run the command "
                f"again: it resumes from {self.path}."
            )
        self.optimizer.step()
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.values()), [p.data for p in self.params.values()], 1 - decay)
        self.step += 1
        return float(loss.detach()), float(norm)

    def run(self, loss_function: LossFunction, batch_size: int) -> None:
        """Train until ``steps`` or ``minutes`` are over; saves every ``save_every`` steps and at the end."""
        config, start, first = self.config, time.monotonic(), self.step
        config.output.mkdir(parents=True, exist_ok=True)
        smooth: float | None = None
        with (config.output / "loss.csv").open("a", newline="") as file:
            writer = csv.writer(file)
            bar = tqdm(total=config.steps, initial=first, desc=config.output.name, mininterval=10)
            while self.step < config.steps:
                loss, norm = self.one_step(loss_function)
                smooth = loss if smooth is None else 0.98 * smooth + 0.02 * loss
                writer.writerow([self.step, f"{loss:.6f}", f"{norm:.4f}"])
                rate = (self.step - first) * batch_size / (time.monotonic() - start)
                bar.set_postfix(loss=f"{smooth:.4f}", samples_s=f"{rate:.1f}", refresh=False)
                bar.update()
                if self.step % config.save_every == 0:
                    file.flush()
                    self.save()
                if config.minutes is not None and time.monotonic() - start > config.minutes * 60:
                    break
            bar.close()
        self.save()

    def use_average(self) -> None:
        """Put the moving average in the parameters' place, for evaluation and export."""
        for name, p in self.params.items():
            p.data.copy_(self.ema[name])
