"""The walk of a batch from noise to latents, step by step."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from core.config import ModelConfig
from core.models.variants import AnyControlNet
from core.request import ControlUnit
from core.runtime.placement import Hold, Placement
from core.runtime.transfer import Reading
from core.sampling.guidance import ActiveControl, GuidedDenoiser, is_active, prepare_control, text_rows
from core.sampling.noise import ImageNoise
from core.sampling.prepare import Prepared
from core.sampling.repaint import Repaint, add_noise
from core.sampling.reuse import plan_reuse
from core.sampling.rows import number_per_picture, per_picture
from core.sampling.samplers import SAMPLERS, Denoiser, StepState, first_time
from core.sampling.schedule import Schedule
from core.sampling.step import Predict, predict
from core.weights.checkpoint import BaseNetworks


@dataclass(frozen=True, slots=True, eq=False)
class WalkedStep:
    """A finished step, from 1: the latents of each request after it, and the estimates that they rest on.

    Each is (B, C, h, w), the pictures of one request; the estimates are in main memory. ``finite`` says of
    which all numbers are. ``seconds_per_step`` is the mean so far, without the time that the consumer took.
    """

    step: int
    x_t: tuple[Tensor, ...]
    x_0: tuple[Tensor, ...]
    finite: tuple[bool, ...]
    seconds_per_step: float


class StartedStep:
    """A step that a GPU may still be computing."""

    def __init__(self, state: StepState, counts: Sequence[int]) -> None:
        """Take the latents after it, of requests with so many pictures, and begin to read them."""
        self.step, self._counts, self._x_t = state.step, counts, state.x_t.split(counts)
        self._finite = Reading(torch.stack([torch.isfinite(rows).all() for rows in self._x_t]))
        self._x_0 = Reading(state.x_0)

    def wait(self) -> None:
        """Wait for the end of the step."""
        self._finite.value()

    def finished(self, seconds: float) -> WalkedStep:
        """Return the whole of it, ``seconds`` after the first one began."""
        finite, x_0 = tuple(self._finite.value().tolist()), self._x_0.value().split(self._counts)
        return WalkedStep(self.step, self._x_t, x_0, finite, seconds / self.step)


class Walker:
    """Walks with one UNet, and the ControlNets that it is given, on one device."""

    def __init__(
        self,
        config: ModelConfig,
        networks: BaseNetworks,
        placement: Placement,
        device: torch.device,
        predict: Predict = predict,
    ) -> None:
        """Compute on ``device``; ``predict`` computes the networks' part of a step."""
        self._config, self._networks, self._placement = config, networks, placement
        self._device, self._predict = device, predict
        self._schedule = Schedule(config.schedule)
        # A GPU shall have the next step in hand before anybody looks at the last one.
        self._ahead = 1 if device.type == "cuda" else 0

    def __call__(self, batch: Sequence[Prepared], nets: Mapping[str, AnyControlNet]) -> Generator[WalkedStep]:
        """Walk requests of one ``Preparer.key``; ``nets`` are the ControlNets of their units by name."""
        first = batch[0].request
        steps, (height, width) = first.walked_steps, first.height_width
        factor = self._networks.vae.factor
        shape = (self._config.unet.in_channels, height // factor, width // factor)
        counts = _counts(batch)
        noise = ImageNoise(tuple(seed for p in batch for seed in p.seeds), shape, self._device)
        with self._placement.changing() as hold:
            states = self._states(batch, self._denoiser(batch, nets, hold), noise)
            busy, started = 0.0, deque[StartedStep]()
            for i in range(steps + self._ahead):
                resumed = time.perf_counter()
                if i < steps:
                    hold([self._networks.unet, *_computing(nets, batch[0].units, i, steps)])
                    started.append(StartedStep(next(states), counts))
                if i >= self._ahead:
                    started[0].wait()
                busy += time.perf_counter() - resumed
                if i >= self._ahead:
                    yield started.popleft().finished(busy)

    def _states(
        self, batch: Sequence[Prepared], denoiser: Denoiser, noise: ImageNoise
    ) -> Iterator[StepState]:
        """Walk from noise alone or, with the latents of a picture, from that under noise."""
        request = batch[0].request
        sampler, steps = SAMPLERS[request.sampler], request.walked_steps
        schedule = self._schedule.after(request.steps - steps)
        x_T = start = noise()
        x_0 = _together(batch, [p.x_0 for p in batch])
        share = _together(batch, [p.share for p in batch])
        if x_0 is not None and request.denoise < 1.0:
            start = add_noise(x_0, x_T, schedule, first_time(sampler, schedule, steps))
        if x_0 is not None and share is not None:
            denoiser = Repaint(denoiser, schedule, x_0, x_T, share)
        return sampler(denoiser, start, schedule, steps, request.eta, noise)

    def _denoiser(
        self, batch: Sequence[Prepared], nets: Mapping[str, AnyControlNet], hold: Hold
    ) -> GuidedDenoiser:
        """Compute what stays the same over the steps, with one network at a time."""
        request, counts = batch[0].request, _counts(batch)
        contexts = [p.context.split(1) for p in batch]
        context = torch.cat([row for half in zip(*contexts, strict=True) for row in half])
        seen = context[: len(batch)] if request.guess_mode else context
        controls = []
        for i, unit in enumerate(batch[0].units):
            hold([nets[unit.control]])
            controls.append(self._control(i, batch, nets[unit.control], seen))
        hold([self._networks.unet])
        return GuidedDenoiser(
            unet=self._networks.unet,
            schedule=self._schedule,
            context_kv=text_rows(self._networks.unet, context, counts),
            controls=controls,
            cfg_scale=number_per_picture([p.request.cfg_scale for p in batch], counts, self._device),
            guess_mode=request.guess_mode,
            steps=request.walked_steps,
            guess_depth=self._config.control.guess_depth,
            predict=self._predict,
            reuse=plan_reuse(request, batch[0].units, self._networks.unet.num_residuals),
            merged=request.token_merging_ratio,
        )

    def _control(
        self, index: int, batch: Sequence[Prepared], net: AnyControlNet, context: Tensor
    ) -> ActiveControl:
        """Prepare the unit of this index, whose hints and strengths are each request's own."""
        units, counts = [p.units[index] for p in batch], _counts(batch)
        pooled = units[0].control in self._config.pooled_controls
        hints = torch.cat([p.hints[index] for p in batch])
        made = prepare_control(net, units[0], hints, context, counts, pooled)
        strengths = [unit.strength for unit in units]
        rows = len(context) // len(batch)
        return replace(made, strength=number_per_picture(strengths, counts, self._device, rows))


def _counts(batch: Sequence[Prepared]) -> tuple[int, ...]:
    return tuple(p.request.num_samples for p in batch)


def _together(batch: Sequence[Prepared], values: Sequence[Tensor | None]) -> Tensor | None:
    """Return the rows (1, ...) of each request, repeated for its pictures; None where there are none."""
    rows = [value for value in values if value is not None]
    return per_picture(torch.cat(rows), _counts(batch)) if rows else None


def _computing(
    nets: Mapping[str, AnyControlNet], units: Sequence[ControlUnit], step_index: int, steps: int
) -> list[AnyControlNet]:
    """Return the ControlNets that compute in a step (from 0), each once."""
    acting = [nets[u.control] for u in units if is_active(u.start, u.end, step_index, steps)]
    return [net for net in dict.fromkeys(acting) if not net.static]
