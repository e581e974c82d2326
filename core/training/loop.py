"""The training loop of every network here: AdamW, a moving average, exact resume, whole checkpoints."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import SuiteError
from core.training.checkpoints import Checkpoints
from core.training.muon import Muon
from core.training.plan import LoopConfig, plain_rate, step_generator
from core.training.processes import Processes, without_averaging
from core.training.progress import Progress
from core.training.stopping import StopSign

log = logging.getLogger(__name__)

LossFunction = Callable[[int, torch.Generator], Tensor]  # of the batch with this number, from 0
SCALE_UP_EVERY = 2000  # steps
ALONE = Processes(torch.device("cpu"))


class Trainer:
    """Trains named parameters and keeps their moving average; saves all that decides the next step."""

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        config: LoopConfig,
        *,
        factor_of: Callable[[str], float] = plain_rate,
        processes: Processes = ALONE,
        module: nn.Module | None = None,
    ) -> None:
        """Take the parameters to optimise; resume from ``config.output`` where a checkpoint is there.

        ``factor_of`` tells by which factor a parameter, by name, learns at another rate. ``module`` is what a
        step calls, where several ``processes`` share it.
        """
        self.config, self.processes, self.module = config, processes, module
        trained = [(name, p) for name, p in parameters if p.requires_grad]
        self.params = dict(sorted(trained, key=lambda pair: -factor_of(pair[0])))
        # What is optimised: the parameters, or copies of them in main memory.
        self.weights: dict[str, Tensor] = {name: self._optimised(p) for name, p in self.params.items()}
        self.ema = {n: p.detach().clone() for n, p in self.weights.items()} if config.ema_decay else {}
        self.optimizer = self._optimizer(self._groups(factor_of))
        self.step, self.loss_scale = 0, config.loss_scale
        self.stopped = False  # by Ctrl-C or SIGTERM
        self._fallen = 1.0  # what the clock leaves of the rate
        self._saved_step = -1
        self.checkpoints = Checkpoints(config.output, config.keep)
        found = self.checkpoints.read()
        if found is not None:
            self._resume(*found)

    def _groups(self, factor_of: Callable[[str], float]) -> list[dict[str, Any]]:
        groups: dict[float, list[Tensor]] = {}
        for name, p in self.weights.items():
            groups.setdefault(factor_of(name), []).append(p)
        return [{"params": group, "factor": factor} for factor, group in groups.items()]

    def _optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        lr, eps, decay = self.config.learning_rate, self.config.epsilon, self.config.weight_decay
        if self.config.muon:
            return Muon(groups, lr=lr, eps=eps, weight_decay=decay)
        return torch.optim.AdamW(groups, lr=lr, eps=eps, weight_decay=decay, fused=True)

    def _optimised(self, p: nn.Parameter) -> Tensor:
        return p.detach().to("cpu", torch.float32, copy=True) if self.config.offload else p

    def _resume(self, path: Path, state: dict[str, Any]) -> None:
        lost = [name for name in state["params"] if name not in self.params]
        if lost:
            raise ValueError(
                f"{path} holds {len(lost)} trained tensors that would stay locked now, such as {lost[0]}: "
                "unlock them as before, or give another output folder."
            )
        names = list(state["params"])
        moments = {name: state["optimizer"]["state"].get(i) for i, name in enumerate(names)}
        own = self.optimizer.state_dict()
        own["state"] = {i: moments[name] for i, name in enumerate(self.params) if moments.get(name)}
        self.optimizer.load_state_dict(own)
        for name, p in self.params.items():
            self.weights[name].data.copy_(state["params"].get(name, self.weights[name]))
            p.data.copy_(self.weights[name])
            if self.ema:
                self.ema[name].copy_(state["ema"].get(name, self.weights[name]))
        if self.config.loss_scale > 1.0:
            self.loss_scale = state.get("loss_scale", self.loss_scale)
        self.step = self._saved_step = state["step"]
        log.info("resumed %s at step %d", path, self.step)

    def save(self) -> Path:
        """Write a checkpoint.

        Raises:
            OSError: it cannot be written; the last good one is as it was.
        """
        state = {
            "params": {name: p.detach() for name, p in self.weights.items()},
            "ema": self.ema,
            "optimizer": self.optimizer.state_dict(),
            "loss_scale": self.loss_scale,
            "step": self.step,
        }
        path = self.checkpoints.write(self.step, state)
        self._saved_step = self.step
        return path

    def one_step(self, loss_function: LossFunction) -> tuple[float, float]:
        """Take one optimiser step; return the loss and the gradient norm."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.rate(self.step) * self._fallen * group["factor"]
        loss, norm = self._gradients(loss_function)
        while not math.isfinite(norm):
            if self.loss_scale <= 1.0:
                raise FloatingPointError(self._told("the gradient", norm))
            self.loss_scale /= 2.0  # float16 has overflowed: the same step once more
            loss, norm = self._gradients(loss_function)
        if self.config.clip_norm:
            total = torch.tensor(norm, device=self._given[0].device)
            nn.utils.clip_grads_with_norm_(self._given, self.config.clip_norm, total)
        self.optimizer.step()
        self._follow()
        self.step += 1
        if self.config.loss_scale > 1.0 and self.step % SCALE_UP_EVERY == 0:
            self.loss_scale *= 2.0
        return loss, norm

    @property
    def _given(self) -> list[Tensor]:
        """Those optimised weights that have a gradient."""
        return [p for p in self.weights.values() if p.grad is not None]

    def _gradients(self, loss_function: LossFunction) -> tuple[float, float]:
        """Add up the gradients of a step's batches; return the mean loss and the gradients' norm."""
        count, total = self.config.accumulate, 0.0
        for p in self.params.values():
            p.grad = None
        for part in range(count):
            batch = self.step * count + part
            with without_averaging(self.module) if part + 1 < count else nullcontext():
                loss = loss_function(batch, step_generator(self.config.seed, batch))
                (loss * (self.loss_scale / count)).backward()
            total += self.processes.mean(loss.detach()) / count
        if not math.isfinite(total):
            raise FloatingPointError(self._told("the loss", total))
        if self.config.offload:
            for name, p in self.params.items():
                self.weights[name].grad = (
                    None if p.grad is None else p.grad.to("cpu", torch.float32, copy=True)
                )
                p.grad = None
        grads = [p.grad for p in self._given if p.grad is not None]
        if self.loss_scale != 1.0:
            torch._foreach_div_(grads, self.loss_scale)
        return total, float(nn.utils.get_total_norm(grads))

    def _told(self, what: str, value: float) -> str:
        good = self.checkpoints.newest
        return (
            f"Step {self.step}: {what} is not finite ({value}). The step was not taken, nothing was saved. "
            "Lower the learning rate and give the same command again: it goes on from "
            f"{good or 'the beginning'}."
        )

    def _follow(self) -> None:
        """Let the parameters, where copies were optimised, and the moving average come after."""
        if self.config.offload:
            for name, p in self.params.items():
                p.data.copy_(self.weights[name])
        if self.ema:
            decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
            now = [p.data for p in self.weights.values()]
            with torch.no_grad():
                torch._foreach_lerp_(list(self.ema.values()), now, 1 - decay)

    def run(
        self,
        loss_function: LossFunction,
        batch_size: int,
        after_step: Callable[[int, dict[str, float]], None] | None = None,
    ) -> None:
        """Train until ``steps`` or ``minutes`` are over, or told to stop; saves on the way and at the end.

        ``after_step`` is told each step's number, from 1, and its figures by name.

        Raises:
            FloatingPointError: loss or gradient are not finite; says what to do.
            SuiteError: the last checkpoint cannot be written; says what to do.
        """
        config, began = self.config, time.monotonic()
        samples = batch_size * config.accumulate * self.processes.count
        progress = Progress(
            config.output, self.step, config.steps, samples, self.processes, config.save_every
        )
        with StopSign() as stop, progress:
            try:
                while self.step < config.steps and not self.stopped:
                    self._fallen = self._left_of_rate(time.monotonic() - began)
                    loss, norm = self.one_step(loss_function)
                    progress(self.step, loss, norm)
                    if after_step is not None:
                        rate = config.rate(self.step - 1)
                        after_step(self.step, {"loss": loss, "gradient_norm": norm, "rate": rate})
                    if self.step % config.save_every == 0:
                        self._save_or_go_on()
                    self.stopped = self.processes.any(stop.raised)
                    over = config.minutes is not None and time.monotonic() - began > config.minutes * 60
                    if self.processes.any(over):
                        break
            except SuiteError:  # a picture that is gone, say: the weights are good
                self._save_last()
                raise
            self._save_last()
            self.processes.wait()

    def _left_of_rate(self, seconds: float) -> float:
        config = self.config
        if config.minutes is None or not config.fall:
            return 1.0
        return min(1.0, max(0.0, (1.0 - seconds / (config.minutes * 60)) / config.fall))

    def _save_or_go_on(self) -> None:
        if not self.processes.first:
            return
        try:
            self.save()
        except OSError as error:
            log.error(
                "Step %d: the checkpoint cannot be written (%s): make room in %s. Training goes on, and "
                "tries again in %d steps; the last good one is %s.",
                self.step, error.strerror or error, self.config.output, self.config.save_every,
                self.checkpoints.newest,
            )  # fmt: skip

    def _save_last(self) -> None:
        """Save at the end of a run.

        Raises:
            SuiteError: it cannot be written; says what is lost, and what to do.
        """
        if self.processes.first and self.step != self._saved_step:
            try:
                self.save()
            except OSError as error:
                raise SuiteError(
                    f"Step {self.step}: the checkpoint cannot be written to {self.config.output} "
                    f"({error.strerror or error}). "
                    f"The last good one is {self.checkpoints.newest}: make room, and give the command again."
                ) from error

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Compute with the moving average, where there is one, for a while."""
        own = {name: self.params[name].detach().clone() for name in self.ema}
        self.use_average()
        try:
            yield
        finally:
            for name, value in own.items():
                self.params[name].data.copy_(value)

    def use_average(self) -> None:
        """Put the moving average, where there is one, in the parameters' place, for evaluation and export."""
        for name, value in self.ema.items():
            self.params[name].data.copy_(value)
