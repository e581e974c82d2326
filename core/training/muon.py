"""Muon for matrices and convolutions, AdamW for vectors: an optimiser with one learning rate for both.

Muon's step is the momentum's nearest orthogonal matrix (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon),
scaled to the size of AdamW's (arXiv 2502.16982).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from core.runtime.device import training_dtype

ROUNDS = 5
QUINTIC = (3.4445, -4.7750, 2.0315)  # coefficients under which singular values go to about 1
LIKE_ADAMW = 0.2  # root mean square of AdamW's steps, for each unit of learning rate


@torch.no_grad()
def orthogonalised(matrices: Tensor) -> Tensor:
    """Return nearly the orthonormal matrix next to each of ``matrices`` (..., m, n), by Newton-Schulz.

    It computes in bfloat16, but for processors that have to emulate that.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if tall else matrices).to(training_dtype(matrices.device.type))
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    several = x.flatten(0, -3) if x.ndim > 3 else x.view(-1, *x.shape[-2:])
    a, b, c = QUINTIC
    for _ in range(ROUNDS):
        square = several @ several.mT
        several = torch.baddbmm(
            several, torch.baddbmm(square, square, square, beta=b, alpha=c), several, beta=a
        )
    x = several.view(x.shape)
    return (x.mT if tall else x).to(matrices.dtype)


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
            given = [p for p in group["params"] if p.grad is not None]
            if not given:
                continue
            torch._foreach_mul_(given, 1.0 - group["lr"] * group["weight_decay"])
            alike = defaultdict(list)  # of one shape: together they take as many calls as one
            for p in given:
                if p.ndim >= 2:
                    alike[len(p), p.numel() // len(p)].append(p)
            for matrices in alike.values():
                self._orthogonal_step(matrices, group)
            vectors = [p for p in given if p.ndim < 2]
            if vectors:
                self._adam_step(vectors, group)

    def _orthogonal_step(self, params: list[Tensor], group: dict[str, Any]) -> None:
        """Move matrices and convolutions of one shape."""
        grads = [p.grad for p in params if p.grad is not None]
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        averages = [self.state[p]["momentum"] for p in params]
        torch._foreach_lerp_(averages, grads, 1.0 - group["momentum"])
        ahead = torch._foreach_lerp(grads, averages, group["momentum"])
        stacked = torch.stack([value.flatten(1) for value in ahead])
        size = LIKE_ADAMW * max(stacked.shape[1:]) ** 0.5
        moves = [move.view(p.shape) for move, p in zip(orthogonalised(stacked), params, strict=True)]
        torch._foreach_add_(params, moves, alpha=-group["lr"] * size)

    def _adam_step(self, params: list[Tensor], group: dict[str, Any]) -> None:
        """Move vectors."""
        first, second = group["betas"]
        grads = [p.grad for p in params if p.grad is not None]
        for p in params:
            if not self.state[p]:
                self.state[p].update(step=0, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
            self.state[p]["step"] += 1
        states = [self.state[p] for p in params]
        means, squares = [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states]
        torch._foreach_lerp_(means, grads, 1.0 - first)
        torch._foreach_mul_(squares, second)
        torch._foreach_addcmul_(squares, grads, grads, 1.0 - second)
        spreads = torch._foreach_div(squares, [1.0 - second ** s["step"] for s in states])
        torch._foreach_sqrt_(spreads)
        torch._foreach_add_(spreads, group["eps"])
        moves = torch._foreach_div(means, spreads)
        torch._foreach_mul_(moves, [-group["lr"] / (1.0 - first ** s["step"]) for s in states])
        torch._foreach_add_(params, moves)
