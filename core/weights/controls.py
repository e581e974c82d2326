"""Make a ControlNet's file of another one or of a base model: add, transfer, extract, diff."""

from __future__ import annotations

from pathlib import Path

import torch

from core.config import ModelConfig
from core.errors import CheckpointMismatch
from core.models.controlnet import ControlNet, hint_block
from core.weights.checkpoint import open_control, open_unet
from core.weights.convert import CONTROL, TEXT, UNET, VAE, is_difference, is_new
from core.weights.formats import TensorInfo, open_layers, open_tensors
from core.weights.parts import Part, moved
from core.weights.published import (
    BaseParts,
    base_entries,
    config_of,
    entry,
    open_base,
    own_metadata,
    part_entries,
)
from core.weights.recognise import recognise
from core.weights.writing import Entry, check_output, constant, write_tensors

FP32 = torch.float32
MARK = CONTROL + "difference"


def add_control(
    base: Path,
    out: Path,
    *,
    dtype: torch.dtype | None = FP32,
    seed: int = 0,
    overwrite: bool = False,
) -> int:
    """Write a full file: a base model and its trainable copy, with a fresh hint block and zero convolutions.

    ``dtype`` None keeps that of the base; ``seed`` decides the hint block. Returns the size in bytes.

    Source: tool_add_control.py of the original, whose keys and copied values these are.
    """
    check_output(out, overwrite=overwrite)
    file = open_tensors(base)
    config = config_of(file)
    parts = open_base(config, file)
    entries = base_entries(parts) | copied_control(parts.unet, config, seed)
    cast = {key: value.cast(dtype) for key, value in entries.items()}
    return write_tensors(out, cast, own_metadata(file), overwrite=overwrite)


def copied_control(unet: Part, config: ModelConfig, seed: int) -> dict[str, Entry]:
    """Return the trainable copy of a UNet, under published keys."""
    with torch.device("meta"):
        wanted = ControlNet(config.unet, config.control).state_dict()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = {
            f"input_hint_block.{name}": value
            for name, value in hint_block(config.control, config.unet.model_channels).state_dict().items()
        }
    entries = {}
    for name, empty in wanted.items():
        if name in unet:
            entries[CONTROL + name] = entry(unet, name)
        else:
            value = fresh.get(name)
            entries[CONTROL + name] = constant(torch.zeros(empty.shape) if value is None else value)
    return entries


def transfer(
    control: Path,
    source: Path | None,
    target: Path,
    out: Path,
    *,
    dtype: torch.dtype | None = FP32,
    overwrite: bool = False,
) -> int:
    """Move a ControlNet from the base model ``source`` to ``target`` by adding the difference of the two.

    A full file becomes a full one, with the autoencoder and the text encoder of ``target``; any other becomes
    a control alone. A difference file needs no ``source``. Returns the size in bytes.

    Source: tool_transfer_control.py of the original.

    Raises:
        ValueError: ``source`` is missing, or ``out`` cannot be written.
        CheckpointMismatch: the files do not belong together; names the file and what it seems to be.
    """
    check_output(out, overwrite=overwrite)
    file = open_layers(control)
    config = config_of(file)
    _, part = open_control(config, control)
    if source is None and not is_difference(file.tensors):
        raise ValueError(f"{control} is no difference: give --from, the base model that it was trained on.")
    if recognise(file).has_base and source is not None:
        own = open_base(config, file)
        old, new = (open_base(config, open_tensors(path)) for path in (source, target))
        entries = _moved_file(own, part, old, new)
    else:
        old_unet = None if source is None or is_difference(file.tensors) else open_unet(config, source)
        entries = _moved_control(part, old_unet, open_unet(config, target))
    cast = {key: value.cast(dtype) for key, value in entries.items()}
    return write_tensors(out, cast, own_metadata(file), overwrite=overwrite)


def _moved_file(own: BaseParts, control: Part, old: BaseParts, new: BaseParts) -> dict[str, Entry]:
    entries = base_entries(own) | part_entries(control, CONTROL)
    before, after = (base_entries(base, filled=False) for base in (old, new))
    for key, value in entries.items():
        if key.startswith((VAE, TEXT)):
            entries[key] = after.get(key, value)
            continue
        beneath = UNET + key.removeprefix(CONTROL) if key.startswith(CONTROL) else key
        if beneath in after and beneath in before:
            entries[key] = _moved(value, after[beneath], before[beneath])
    return entries


def _moved_control(control: Part, old: Part | None, new: Part) -> dict[str, Entry]:
    entries = {}
    for name in control.wanted:
        value = entry(control, name) if name in control else None
        if name in new:
            before = None if old is None else entry(old, name)
            entries[CONTROL + name] = _moved(value, entry(new, name), before)
        elif value is not None:
            entries[CONTROL + name] = value
    return entries


def _moved(value: Entry | None, target: Entry, source: Entry | None) -> Entry:
    def make() -> torch.Tensor:
        own, old = (None if e is None else e.make() for e in (value, source))
        return moved(own, target.make(), old)

    return Entry(TensorInfo(target.info.shape, FP32), make)


def extract(
    control: Path, out: Path, *, dtype: torch.dtype | None = torch.float16, overwrite: bool = False
) -> int:
    """Write the ControlNet of a file alone, under published keys; return the size in bytes.

    Raises:
        CheckpointMismatch: the file holds none, or only a difference.
    """
    check_output(out, overwrite=overwrite)
    part = _whole_control(control)
    entries = {key: value.cast(dtype) for key, value in part_entries(part, CONTROL).items()}
    return write_tensors(out, entries, own_metadata(part.file), overwrite=overwrite)


def diff(
    control: Path,
    base: Path,
    out: Path,
    *,
    dtype: torch.dtype | None = torch.float16,
    overwrite: bool = False,
) -> int:
    """Write a ControlNet as its difference to the base model that it grew from; return the size in bytes.

    The hint block and the zero convolutions, which no base has, are kept as they are.
    """
    check_output(out, overwrite=overwrite)
    part = _whole_control(control)
    unet = open_unet(config_of(part.file), base)
    entries = {MARK: constant(torch.ones(()))}
    for name in part:
        own = entry(part, name)
        kept = is_new(name) or name not in unet
        entries[CONTROL + name] = own if kept else _difference(own, entry(unet, name))
    cast = {key: value.cast(dtype) for key, value in entries.items()}
    return write_tensors(out, cast, own_metadata(part.file), overwrite=overwrite)


def _difference(own: Entry, base: Entry) -> Entry:
    return Entry(TensorInfo(own.info.shape, FP32), lambda: own.make().float() - base.make().float())


def _whole_control(path: Path) -> Part:
    file = open_layers(path)
    if is_difference(file.tensors):
        raise CheckpointMismatch(
            f"{path} is a difference: add it to its base model first, with python -m core.weights transfer "
            f"{path.name} --to BASE OUT."
        )
    return open_control(config_of(file), path)[1]
