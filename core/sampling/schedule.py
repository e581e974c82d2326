"""The noise schedule: how much noise a latent holds at each time step, and which steps a sampler visits."""

from __future__ import annotations

import copy
import math

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from core.config import ScheduleConfig

Float64Array = NDArray[np.float64]


class Schedule:
    """Betas, cumulative alphas and noise levels of one base model, in float64.

    A noisy latent is ``x_t = sqrt(alphas_cumprod[t]) * x_0 + sqrt(1 - alphas_cumprod[t]) * eps``. The
    samplers that are written in noise levels use ``sigma(t) = sqrt((1 - alphas_cumprod[t]) /
    alphas_cumprod[t])``, between whole time steps by linear interpolation of its logarithm.

    Source: DDPM (arXiv 2006.11239), latent diffusion (arXiv 2112.10752).
    """

    def __init__(self, config: ScheduleConfig) -> None:
        """Compute the tables of ``config``."""
        self.parameterization = config.parameterization
        self.num_timesteps = config.timesteps
        low, high = math.sqrt(config.linear_start), math.sqrt(config.linear_end)
        self.betas: Float64Array = np.asarray(np.linspace(low, high, config.timesteps) ** 2, np.float64)
        self.alphas_cumprod: Float64Array = np.asarray(np.cumprod(1.0 - self.betas), np.float64)
        self._log_sigmas: Float64Array = 0.5 * (np.log1p(-self.alphas_cumprod) - np.log(self.alphas_cumprod))
        self._whole: Float64Array = np.arange(config.timesteps, dtype=np.float64)
        self._skipped = 0

    def after(self, skipped: int) -> Schedule:
        """Return this schedule without the noisiest ``skipped`` of whatever steps a sampler asks for.

        A sampler that asks for n steps walks the last n of ``skipped`` + n, from a picture with noise on it.
        """
        late = copy.copy(self)
        late._skipped = skipped
        return late

    def timesteps(self, steps: int) -> list[int]:
        """Return exactly ``steps`` different time steps, the noisiest first, evenly spread from 1 upwards.

        Where ``steps`` divides 1000 these are the original's ``range(0, 1000, 1000 // steps) + 1``, which for
        other values runs more steps than asked, or past the end. Two values depart from that rule: 1000
        starts at 0, as there is no time step 1000; and a single step is taken from the noisiest time step,
        not from 1, where a network that is handed pure noise has nothing to remove.

        Raises:
            ValueError: ``steps`` is not between 1 and the schedule's length.
        """
        total, skipped = self.num_timesteps, self._skipped
        steps += skipped
        if not 1 <= steps <= total:
            raise ValueError(f"steps is {steps}: give a whole number from 1 to {total}.")
        if steps == 1:
            return [total - 1]
        offset = 1 if steps < total else 0
        return [i * total // steps + offset for i in reversed(range(steps - skipped))]

    def alpha_cumprod(self, t: float) -> float:
        """Return the share of signal power left at time step ``t``, which may lie between two whole ones."""
        if float(t).is_integer():
            return float(self.alphas_cumprod[int(t)])
        return 1.0 / (1.0 + self.sigma(t) ** 2)

    def log_sigma(self, t: float) -> float:
        """Return the logarithm of the noise level at time step ``t`` in [0, num_timesteps - 1]."""
        return float(np.interp(t, self._whole, self._log_sigmas))

    def sigma(self, t: float) -> float:
        """Return the noise level, relative to the signal, at time step ``t`` in [0, num_timesteps - 1]."""
        return math.exp(self.log_sigma(t))

    def time(self, sigma: float) -> float:
        """Return the time step, in general a fraction, whose noise level is ``sigma``."""
        return float(np.interp(math.log(sigma), self._log_sigmas, self._whole))

    def linear_sigmas(self, steps: int) -> list[float]:
        """Return ``steps`` noise levels evenly spread in time, the highest first, and a last 0."""
        times = np.linspace(self.num_timesteps - 1, 0.0, steps + self._skipped)[self._skipped :]
        return [*(self.sigma(t) for t in times), 0.0]

    def karras_sigmas(self, steps: int, rho: float = 7.0) -> list[float]:
        """Return ``steps`` noise levels, dense where there is little noise, the highest first, and a last 0.

        Source: arXiv 2206.00364, equation 5.
        """
        low, high = self.sigma(0) ** (1 / rho), self.sigma(self.num_timesteps - 1) ** (1 / rho)
        roots = np.linspace(high, low, steps + self._skipped)[self._skipped :]
        return [*(float(s**rho) for s in roots), 0.0]

    def x_0(self, x_t: Tensor, eps: Tensor, t: float) -> Tensor:
        """Return the clean latents that ``x_t`` and its noise ``eps`` imply at time step ``t``."""
        alpha = self.alpha_cumprod(t)
        return (x_t - math.sqrt(1.0 - alpha) * eps) / math.sqrt(alpha)

    def eps_from_v(self, v: Tensor, x_t: Tensor, t: float) -> Tensor:
        """Return the noise that ``v = sqrt(a) * eps - sqrt(1 - a) * x_0`` implies at time step ``t``.

        Source: arXiv 2202.00512, appendix D.
        """
        alpha = self.alpha_cumprod(t)
        return math.sqrt(alpha) * v + math.sqrt(1.0 - alpha) * x_t
