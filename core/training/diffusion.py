"""The diffusion loss: what the base model and every ControlNet minimise."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from core.config import ScheduleConfig
from core.runtime.device import CPU
from core.sampling.schedule import Schedule


class DiffusionLoss:
    """Noises latents and compares a prediction with its target: eps or v, as the schedule says."""

    def __init__(self, config: ScheduleConfig) -> None:
        """Precompute the schedule."""
        alphas = torch.as_tensor(Schedule(config).alphas_cumprod, dtype=torch.float64)
        self.timesteps = len(alphas)
        self.signal = alphas.sqrt().float()
        self.noise = (1.0 - alphas).sqrt().float()
        self.is_v = config.parameterization == "v"

    @staticmethod
    def _at(table: Tensor, t: Tensor) -> Tensor:
        return table.to(t.device)[t][:, None, None, None]

    def noised(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return x_t (B, C, h, w) for time steps ``t`` (B,) int64."""
        return self._at(self.signal, t) * x_0 + self._at(self.noise, t) * noise

    def target(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return what the network should predict: the noise, or v."""
        if not self.is_v:
            return noise
        return self._at(self.signal, t) * noise - self._at(self.noise, t) * x_0

    def parts(self, x_t: Tensor, prediction: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return what a prediction takes for x_0 and for the noise in ``x_t`` (B, C, h, w) at ``t`` (B,)."""
        signal, noise = self._at(self.signal, t), self._at(self.noise, t)
        if self.is_v:
            return signal * x_t - noise * prediction, noise * x_t + signal * prediction
        return (x_t - noise * prediction) / signal, prediction

    def __call__(self, prediction: Tensor, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return the mean squared error; every time step counts alike."""
        return F.mse_loss(prediction.float(), self.target(x_0, noise, t))


def on_device(generator: torch.Generator, device: torch.device) -> torch.Generator:
    """Return a random stream of ``device``: ``generator``, or one that begins with what that gives next."""
    if generator.device.type == device.type:
        return generator
    return torch.Generator(device).manual_seed(int(torch.randint(2**62, (1,), generator=generator)))


def draw(
    shape: tuple[int, ...],
    timesteps: int,
    generator: torch.Generator,
    *,
    late: bool = False,
    device: torch.device = CPU,
) -> tuple[Tensor, Tensor]:
    """Draw noise of ``shape`` and a time step for each sample, spread evenly over the schedule.

    With ``late`` the noisy end comes more often, where words decide what there will be: half of the time
    steps are in the last quarter. Both are drawn on ``device``.
    """
    generator = on_device(generator, device)
    noise = torch.randn(shape, generator=generator, device=device)
    batch = shape[0]
    order = torch.randperm(batch, generator=generator, device=device)
    spread = (order + torch.rand(batch, generator=generator, device=device)) / batch
    if late:
        spread = 1.0 - spread.square()
    return noise, (spread * timesteps).long().clamp_(max=timesteps - 1)
