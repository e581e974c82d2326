"""Rows of a batch: what belongs to one request, repeated for each of its pictures."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Counts = int | Sequence[int]  # how many pictures: of one request, or of each of several


def as_counts(counts: Counts) -> tuple[int, ...]:
    """Return how many pictures each request has."""
    return (counts,) if isinstance(counts, int) else tuple(counts)


def per_picture(values: Tensor, counts: Sequence[int], halves: int = 1) -> Tensor:
    """Return ``halves * sum(counts)`` rows: those of ``values`` repeated, where possible without copying.

    ``values`` has one row for each request, or one for each and half (all conditional ones first), or a
    single one for all.
    """
    total = halves * sum(counts)
    if len(values) == total:
        return values
    if len(values) == 1:
        return values.expand(total, *values.shape[1:])
    if len(values) == len(counts):
        values = torch.cat([values] * halves)
    repeats = torch.tensor([*counts] * halves, device=values.device)
    return values.repeat_interleave(repeats, 0, output_size=total)


def number_per_picture(
    values: Sequence[float], counts: Sequence[int], device: torch.device, halves: int = 1
) -> float | Tensor:
    """Return the number that all requests share or, where they differ, one a row: (rows, 1, 1, 1) float32."""
    if len(set(values)) == 1:
        return values[0]
    column = torch.tensor(values, dtype=torch.float32, device=device)[:, None, None, None]
    return per_picture(column, counts, halves)
