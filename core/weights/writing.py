"""Weight files written tensor by tensor: whole or not at all, and never over another unasked."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor
from tqdm import tqdm

from core.errors import SuiteError
from core.weights.formats import DTYPES, TensorInfo
from core.weights.registry import size_text

SUFFIX = ".safetensors"
NAMES = {dtype: name for name, dtype in DTYPES.items()}
BAR_BYTES = 2**28  # a smaller file is written at once, without a progress bar
SPARE_BYTES = 2**20  # left free on the disk beside the file


class WriteError(SuiteError):
    """A file could not be written; nothing is left of it. The message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor to be written: what is known before it is made, and how to make it."""

    info: TensorInfo
    make: Callable[[], Tensor]

    def cast(self, dtype: torch.dtype | None) -> Entry:
        """Return the same in another number format; whole numbers stay what they are."""
        if dtype is None or not self.info.dtype.is_floating_point:
            return self
        return Entry(TensorInfo(self.info.shape, dtype), self.make)


def constant(value: Tensor) -> Entry:
    """Return a tensor that is made already."""
    return Entry(TensorInfo(tuple(value.shape), value.dtype), lambda: value)


def check_output(path: Path, *, overwrite: bool, suffix: str = SUFFIX) -> None:
    """Check that ``path`` may be written, before any work; an empty ``suffix`` means a folder.

    Raises:
        ValueError: its ending is another, its folder is missing, or it is there already.
    """
    if suffix and path.suffix != suffix:
        raise ValueError(f"{path}: files are written as {suffix}: give a name that ends so.")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.absolute().parent}: make it first.")
    if path.exists() and (path.is_dir() == bool(suffix)):
        raise ValueError(f"{path} is a {'folder' if suffix else 'file'}: give another name.")
    if path.exists() and not overwrite:
        raise ValueError(f"{path} is there already: give another name, or --overwrite.")


def write_tensors(
    path: Path,
    entries: Mapping[str, Entry],
    metadata: Mapping[str, str] | None = None,
    *,
    overwrite: bool = False,
) -> int:
    """Write a .safetensors file, holding one tensor at a time; return its size in bytes.

    It has another name until it is whole: whatever goes wrong, there is no half file.

    Raises:
        ValueError: as ``check_output``; or a value is too large for the number format.
        WriteError: the disk is full, or the folder cannot be written.
    """
    check_output(path, overwrite=overwrite)
    ordered = sorted(entries.items(), key=lambda item: (-item[1].info.dtype.itemsize, item[0]))
    header = _header([(key, entry.info) for key, entry in ordered], metadata or {})
    size = len(header) + sum(entry.info.nbytes for _, entry in ordered)
    _check_space(path, size)
    with (
        _replacing(path) as file,
        tqdm(
            total=size, unit="B", unit_scale=True, leave=False, disable=None if size > BAR_BYTES else True
        ) as bar,
    ):
        file.write(header)
        for key, entry in ordered:
            file.write(_raw(key, entry))
            bar.update(entry.info.nbytes)
    return size


def write_state(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> int:
    """Write ``tensors`` as a .safetensors file, over one that is there; return its size in bytes.

    Folders that are missing are made; the former file stays until the new one is whole.

    Raises:
        WriteError: the disk is full, or the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = {key: constant(value.detach().cpu()) for key, value in tensors.items()}
    return write_tensors(path, entries, metadata, overwrite=True)


def _header(infos: list[tuple[str, TensorInfo]], metadata: Mapping[str, str]) -> bytes:
    """Return the length and the JSON object that a .safetensors file begins with."""
    content: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for key, info in infos:
        end = at + info.nbytes
        content[key] = {"dtype": NAMES[info.dtype], "shape": list(info.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that every tensor begins at a multiple of its numbers' size
    return len(text).to_bytes(8, "little") + text


def _raw(key: str, entry: Entry) -> memoryview:
    value = entry.make()
    if tuple(value.shape) != entry.info.shape:
        raise SuiteError(f"{key} is {tuple(value.shape)}, should be {entry.info.shape}. Report this command.")
    stored = to_dtype(value, entry.info.dtype, key).contiguous()
    return stored.reshape(-1).view(torch.uint8).numpy().data


def to_dtype(value: Tensor, dtype: torch.dtype, key: str) -> Tensor:
    """Return ``value`` in another number format.

    Raises:
        ValueError: a finite value becomes infinite; names ``key``.
    """
    stored = value.to(dtype)
    if dtype.is_floating_point and dtype.itemsize < value.dtype.itemsize:
        lost = stored.isinf() & value.isfinite()
        if bool(lost.any()):
            most = float(value[lost].abs().max())
            raise ValueError(f"{key} holds {most:.3g}, too much for {dtype}: give --dtype float32.")
    return stored


def _check_space(path: Path, size: int) -> None:
    free = shutil.disk_usage(path.absolute().parent).free
    if size + SPARE_BYTES > free:
        raise WriteError(
            f"{path} needs {size_text(size)}, and {size_text(free)} are free: make room, or give a name in a "
            "folder on another disk. Nothing was written."
        )


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file that becomes ``path`` once it is whole; before that, and on errors, it is not there."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise WriteError(
            f"{path} could not be written ({error.strerror or error}): make room, or give a name in another "
            "folder. Nothing is left of it."
        ) from error
    finally:
        part.unlink(missing_ok=True)
