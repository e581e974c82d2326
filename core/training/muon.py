"""Muon for matrices and convolutions, AdamW for vectors: an optimiser with one learning rate for both.

Muon's step is the momentum's nearest orthogonal matrix (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon),
scaled to the size of AdamW's (arXiv 2502.16982).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

ROUNDS = 5
QUINTIC = (3.4445, -4.7750, 2.0315)  # coefficients under which singular values go to about 1
LIKE_ADAMW = 0.2  # root mean square of AdamW's steps, for each unit of learning rate


@torch.no_grad()
def orthogonalised(matrix: Tensor) -> Tensor:
    """Return nearly the orthonormal matrix next to ``matrix`` (m, n), by Newton-Schulz in bfloat16."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).bfloat16()
    x = x / x.norm().clamp(min=1e-7)
    a, b, c = QUINTIC
    for _ in range(ROUNDS):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x.T if tall else x).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Muon for tensors of two dimensions and more, taken as (out, everything else); AdamW for vectors."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        """Take parameters or groups of them; ``lr`` is as for AdamW."""
        super().__init__(
            params,
            {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "weight_decay": weight_decay},
        )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take a step with the gradients there are."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                p.mul_(1.0 - group["lr"] * group["weight_decay"])
                p.add_(self._update(p, p.grad, group), alpha=-group["lr"])

    def _update(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> Tensor:
        state = self.state[p]
        if p.ndim < 2:
            return _adam(state, grad, group)
        average = state.setdefault("momentum", torch.zeros_like(p))
        average.lerp_(grad, 1.0 - group["momentum"])
        ahead = grad.lerp(average, group["momentum"]).flatten(1)
        size = LIKE_ADAMW * max(ahead.shape) ** 0.5
        return (orthogonalised(ahead) * size).view(p.shape)


def _adam(state: dict[str, Any], grad: Tensor, group: dict[str, Any]) -> Tensor:
    if not state:
        state.update(step=0, exp_avg=torch.zeros_like(grad), exp_avg_sq=torch.zeros_like(grad))
    state["step"] += 1
    first, second = group["betas"]
    state["exp_avg"].lerp_(grad, 1.0 - first)
    state["exp_avg_sq"].lerp_(grad.square(), 1.0 - second)
    mean = state["exp_avg"] / (1.0 - first ** state["step"])
    spread = (state["exp_avg_sq"] / (1.0 - second ** state["step"])).sqrt()
    return mean / (spread + group["eps"])
