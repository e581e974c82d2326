"""Weighted means of two files: ControlNets, base models, or both in one file."""

from __future__ import annotations

from pathlib import Path

import torch

from core.config import ModelConfig
from core.errors import CheckpointMismatch
from core.weights.checkpoint import open_control
from core.weights.controls import MARK
from core.weights.convert import CONTROL, is_difference
from core.weights.formats import TensorFile, open_layers
from core.weights.published import base_entries, config_of, open_base, own_metadata, part_entries
from core.weights.recognise import recognise
from core.weights.writing import Entry, check_output, constant, write_tensors


def merge(
    first: Path,
    second: Path,
    out: Path,
    *,
    alpha: float = 0.5,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> int:
    """Write (1 - alpha) * first + alpha * second, computed in float32; return the size in bytes.

    What both files hold is merged: their ControlNets, their base models, or both. ``dtype`` None keeps that
    of ``first``.

    Raises:
        ValueError: ``alpha`` is not from 0 to 1, or ``out`` cannot be written.
        CheckpointMismatch: the files have nothing in common, or belong to different models.
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(
            f"--alpha is {alpha:g}: give a number from 0, all of the first, to 1, all of the second."
        )
    check_output(out, overwrite=overwrite)
    files = [open_layers(path) for path in (first, second)]
    config = config_of(files[0])
    a, b = (_entries(config, file, files) for file in files)
    difference = is_difference(files[0].tensors)
    entries = {}
    for key in {**a, **b}:
        pair = (a.get(key), b.get(key))
        if difference:  # what a difference leaves out is nothing
            pair = (pair[0] or _zeros(b[key]), pair[1] or _zeros(a[key]))
        entries[key] = _mean(key, *pair, alpha).cast(dtype)
    if difference:
        entries[MARK] = constant(torch.ones(()))
    return write_tensors(out, entries, own_metadata(files[0]), overwrite=overwrite)


def _entries(config: ModelConfig, file: TensorFile, files: list[TensorFile]) -> dict[str, Entry]:
    infos = [recognise(each) for each in files]
    control = all(info.has_control for info in infos)
    base = all(info.has_base for info in infos)
    if not (control or base) or len({is_difference(each.tensors) for each in files}) > 1:
        raise CheckpointMismatch(
            f"{files[0].path} seems to be {infos[0].title}, {files[1].path} {infos[1].title}: give two "
            "ControlNets, two differences or two base models."
        )
    entries = base_entries(open_base(config, file)) if base else {}
    if control:
        _, part = open_control(config, file.path)
        entries |= part_entries(part, CONTROL)
    return entries


def _zeros(like: Entry) -> Entry:
    return Entry(like.info, lambda: torch.zeros(like.info.shape, dtype=like.info.dtype))


def _mean(key: str, a: Entry | None, b: Entry | None, alpha: float) -> Entry:
    """Return the mean of two tensors; one that a single file has, which no network reads, as it is."""
    if a is None or b is None:
        single = a or b
        assert single is not None
        return single

    def make() -> torch.Tensor:
        one, other = a.make(), b.make()
        if one.is_floating_point():
            return (1.0 - alpha) * one.float() + alpha * other.float()
        if not torch.equal(one, other):
            raise CheckpointMismatch(f"{key} differs: files that number their tokens otherwise do not merge.")
        return one

    return Entry(a.info, make)
