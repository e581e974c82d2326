"""The walk of a request from noise to latents, step by step."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sequence

import torch

from core.config import ModelConfig
from core.models.variants import AnyControlNet
from core.request import ControlUnit
from core.runtime.placement import Hold, Placement
from core.sampling.guidance import GuidedDenoiser, check_finite, is_active, prepare_control, text_rows
from core.sampling.noise import ImageNoise
from core.sampling.prepare import Prepared
from core.sampling.repaint import Repaint, add_noise
from core.sampling.samplers import SAMPLERS, Denoiser, StepState, first_time
from core.sampling.schedule import Schedule
from core.weights.checkpoint import BaseNetworks


class Walker:
    """Walks with one UNet, and the ControlNets that it is given, on one device."""

    def __init__(
        self,
        config: ModelConfig,
        networks: BaseNetworks,
        placement: Placement,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """Compute on ``device`` in ``dtype``."""
        self._config, self._networks, self._placement = config, networks, placement
        self._device, self._dtype = device, dtype
        self._schedule = Schedule(config.schedule)

    def __call__(
        self, prepared: Prepared, nets: Mapping[str, AnyControlNet]
    ) -> Generator[tuple[StepState, float]]:
        """Yield every step, and the mean seconds of one so far, without the time that the consumer took.

        ``nets`` are the ControlNets of the units by name.

        Raises:
            NumericalError: the latents stopped being finite.
        """
        request, steps = prepared.request, prepared.request.walked_steps
        factor = self._networks.vae.factor
        height, width = request.height_width
        shape = (self._config.unet.in_channels, height // factor, width // factor)
        noise = ImageNoise(prepared.seeds, shape, self._device)
        with self._placement.changing() as hold:
            states = self._states(prepared, self._denoiser(prepared, nets, hold), noise)
            busy = 0.0
            for i in range(steps):
                resumed = time.perf_counter()
                hold([self._networks.unet, *_computing(nets, prepared.units, i, steps)])
                state = next(states)
                check_finite(state.x_t, f"after step {state.step} of {steps}", self._dtype)
                busy += time.perf_counter() - resumed
                yield state, busy / state.step

    def _states(self, prepared: Prepared, denoiser: Denoiser, noise: ImageNoise) -> Iterator[StepState]:
        """Walk from noise alone or, with the latents of a picture, from that under noise."""
        request, x_0 = prepared.request, prepared.x_0
        sampler, steps = SAMPLERS[request.sampler], request.walked_steps
        schedule = self._schedule.after(request.steps - steps)
        x_T = start = noise()
        if x_0 is not None and request.denoise < 1.0:
            start = add_noise(x_0, x_T, schedule, first_time(sampler, schedule, steps))
        if x_0 is not None and prepared.share is not None:
            denoiser = Repaint(denoiser, schedule, x_0, x_T, prepared.share)
        return sampler(denoiser, start, schedule, steps, request.eta, noise)

    def _denoiser(self, prepared: Prepared, nets: Mapping[str, AnyControlNet], hold: Hold) -> GuidedDenoiser:
        """Compute what stays the same over the steps, with one network at a time."""
        request, context = prepared.request, prepared.context
        count = request.num_samples
        seen = context[:1] if request.guess_mode else context
        controls = []
        for unit, hint in zip(prepared.units, prepared.hints, strict=True):
            net = nets[unit.control]
            hold([net])
            pooled = unit.control in self._config.pooled_controls
            controls.append(prepare_control(net, unit, hint, seen, count, pooled))
        hold([self._networks.unet])
        return GuidedDenoiser(
            unet=self._networks.unet,
            schedule=self._schedule,
            context_kv=text_rows(self._networks.unet, context, count),
            controls=controls,
            cfg_scale=request.cfg_scale,
            guess_mode=request.guess_mode,
            steps=request.walked_steps,
            guess_depth=self._config.control.guess_depth,
        )


def _computing(
    nets: Mapping[str, AnyControlNet], units: Sequence[ControlUnit], step_index: int, steps: int
) -> list[AnyControlNet]:
    """Return the ControlNets that compute in a step (from 0), each once."""
    acting = [nets[u.control] for u in units if is_active(u.start, u.end, step_index, steps)]
    return [net for net in dict.fromkeys(acting) if not net.static]
