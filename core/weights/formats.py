"""Checkpoint files as tensors by name, read one by one: safetensors, and pickles without their code."""

from __future__ import annotations

import json
import math
import pickle
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from core.errors import CheckpointMismatch
from core.weights.numbers import PIECE, convert
from core.weights.stand_ins import LEFTOVERS, Inert, Parameters, unwrap

WINDOW_BYTES = 16 * 2**20  # so much of a file may stay mapped; what was read is resident until then
OVER = "over"  # in the metadata: the file, in the same folder, whose other tensors count too
HEADER_LIMIT = 100_000_000  # bytes; the longest header that the safetensors format allows
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What is known of a tensor before it is read."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def count(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.count * self.dtype.itemsize


class TensorFile(ABC):
    """The tensors of one checkpoint file. ``tensors`` tells names, shapes and dtypes; ``read`` gives one."""

    path: Path
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str] = {}
    other_keys: tuple[str, ...] = ()  # what stands beside the tensors in a pickle
    by_threads = False  # whether several threads may call ``read_into`` at once

    def __init__(self, path: Path) -> None:
        """Open ``path``."""
        self.path = path
        self._mapped = 0
        self._open()

    def read(self, key: str, room_bytes: int = 0) -> Tensor:
        """Return a tensor as stored, on the CPU: a view of the mapped file: copy it and let it go.

        Up to ``room_bytes`` of the file may stay resident afterwards; opening a pickle anew takes a while.
        """
        self._mapped += self.tensors[key].nbytes
        if self._mapped > max(WINDOW_BYTES, room_bytes):
            self._mapped = self.tensors[key].nbytes
            self._open()
        return self._get(key)

    def read_into(self, key: str, out: Tensor, room_bytes: int = 0) -> None:
        """Put a tensor's numbers in their order into ``out``: contiguous, on any device, in any format.

        ``room_bytes`` as in ``read``.
        """
        convert(self.read(key, room_bytes), out)

    @abstractmethod
    def _open(self) -> None: ...

    @abstractmethod
    def _get(self, key: str) -> Tensor: ...


class SafetensorsFile(TensorFile):
    """A .safetensors file."""

    by_threads = True

    def _open(self) -> None:
        self._file: Any = None  # lets the old mapping go before the new one is made
        self._file = safe_open(self.path, framework="pt", device="cpu")
        if not hasattr(self, "tensors"):
            self._begins = _offsets(self.path)
            slices = {key: self._file.get_slice(key) for key in self._begins}
            self.tensors = {
                key: TensorInfo(tuple(s.get_shape()), DTYPES.get(s.get_dtype(), torch.uint8))
                for key, s in slices.items()
            }
            self.metadata = self._file.metadata() or {}

    def _get(self, key: str) -> Tensor:
        return self._file.get_tensor(key)

    def read_into(self, key: str, out: Tensor, room_bytes: int = 0) -> None:
        """Put a tensor's numbers into ``out``, piece by piece: nothing is mapped, nothing held twice."""
        dtype, flat = self.tensors[key].dtype, out.view(-1)
        straight = dtype == out.dtype and out.device.type == "cpu"
        buffer = torch.empty(0 if straight else min(PIECE, len(flat)), dtype=dtype)
        with self.path.open("rb", buffering=0) as file:
            file.seek(self._begins[key])
            for piece in flat.split(PIECE):
                read = piece if straight else buffer[: len(piece)]
                self._fill(file, read)
                if not straight:
                    convert(read, piece)

    def _fill(self, file: FileIO, out: Tensor) -> None:
        """Read as many bytes as ``out`` has."""
        view = out.view(torch.uint8).numpy().data
        while view:
            count = file.readinto(view)
            if not count:
                raise CheckpointMismatch(f"{self.path}: the file has become shorter. Download it again.")
            view = view[count:]


def _offsets(path: Path) -> dict[str, int]:
    """Return where in a .safetensors file, which was opened without error, each tensor begins; in order."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    begins = {key: 8 + size + row["data_offsets"][0] for key, row in header.items()}
    return dict(sorted(begins.items(), key=lambda pair: pair[1]))


class PickleFile(TensorFile):
    """A .ckpt, .pth, .pt or .bin file, loaded with ``weights_only``: no code of the file runs.

    A ``state_dict`` or ``string_to_param`` wrapper, even a double one, is taken off. Files of the zip kind
    (torch 1.6 and later) are mapped; older ones have to be held in memory.
    """

    def _open(self) -> None:
        self._tensors: dict[str, Tensor] = {}
        with self.path.open("rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
        stand_ins: list[Any] = [(Inert, name) for name in LEFTOVERS]
        stand_ins.append((Parameters, "torch.nn.modules.container.ParameterDict"))
        with torch.serialization.safe_globals(stand_ins):
            loaded = torch.load(self.path, map_location="cpu", weights_only=True, mmap=zipped)
        entries = unwrap(loaded)
        self._tensors = {key: value for key, value in entries.items() if isinstance(value, Tensor)}
        self.other_keys = tuple(key for key in entries if key not in self._tensors)
        self.tensors = {key: TensorInfo(tuple(t.shape), t.dtype) for key, t in self._tensors.items()}
        if not zipped:
            self._mapped = -(2**63)  # in memory as a whole: opening it again would free nothing

    def _get(self, key: str) -> Tensor:
        return self._tensors[key]


class LayeredFile(TensorFile):
    """A file that holds only what differs from another one, together with that other one."""

    def __init__(self, upper: TensorFile, lower: TensorFile) -> None:
        """Let the tensors of ``upper`` hide those of ``lower`` of the same name."""
        self.path, self.upper, self.lower = upper.path, upper, lower
        self.tensors = {**lower.tensors, **upper.tensors}
        self.metadata, self.other_keys = upper.metadata, upper.other_keys
        self.by_threads = upper.by_threads and lower.by_threads

    def read(self, key: str, room_bytes: int = 0) -> Tensor:
        """Return a tensor as stored, from whichever file counts."""
        return (self.upper if key in self.upper.tensors else self.lower).read(key, room_bytes)

    def read_into(self, key: str, out: Tensor, room_bytes: int = 0) -> None:
        """Put a tensor's numbers into ``out``, from whichever file counts."""
        (self.upper if key in self.upper.tensors else self.lower).read_into(key, out, room_bytes)

    def _open(self) -> None:
        raise NotImplementedError  # both files are open already

    def _get(self, key: str) -> Tensor:
        raise NotImplementedError


def open_layers(path: Path) -> TensorFile:
    """Open a checkpoint and, where its metadata names one under "over", the file beside it that it lies over.

    Raises:
        CheckpointMismatch: as ``open_tensors``, for either file.
    """
    file = open_tensors(path)
    below = file.metadata.get(OVER)
    if below is None:
        return file
    if Path(below).name != below or below == path.name:
        raise CheckpointMismatch(f"{path}: says that it lies over {below!r}. Give a file beside it instead.")
    return LayeredFile(file, open_tensors(path.parent / below))


def open_tensors(path: Path) -> TensorFile:
    """Open a checkpoint of any kind, told by its first bytes and not by its suffix.

    Raises:
        CheckpointMismatch: the file is missing, empty, cut off, no checkpoint, or a pickle with code.
    """
    if not path.is_file():
        raise CheckpointMismatch(f"{path}: no such file. Give a .safetensors, .ckpt or .pth file.")
    with path.open("rb") as file:
        head = file.read(512)
    problem = not_a_checkpoint(head)
    if problem:
        raise CheckpointMismatch(f"{path}: {problem}")
    try:
        return SafetensorsFile(path) if begins_safetensors(head) else PickleFile(path)
    except SafetensorError as error:
        raise CheckpointMismatch(
            f"{path}: a .safetensors file that is cut off or corrupt ({error}). Download it again."
        ) from error
    except pickle.UnpicklingError as error:
        if "weights_only" not in str(error) and "nsupported" not in str(error):
            raise CheckpointMismatch(f"{path}: a pickle that is corrupt. Download it again.") from error
        raise CheckpointMismatch(
            f"{path}: a pickle that would have to run code of its own to be loaded "
            f"({_first_global(error)}), which is refused. Get the same weights as .safetensors, or convert "
            "the file on a machine that you can spare."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointMismatch(f"{path}: cut off or corrupt ({reason}). Download it again.") from error


def begins_safetensors(head: bytes) -> bool:
    """Tell whether a file that begins with ``head`` is a .safetensors file: a length, then a JSON object.

    Asked before anything else, since a length may look like a pickle's beginning: 640 is stored as 80 02.
    """
    return head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= HEADER_LIMIT


def _first_global(error: Exception) -> str:
    words = str(error).replace("\n", " ").split("GLOBAL ", 1)
    return words[1].split(" ", 1)[0] if len(words) == 2 else "not plain tensors"


def not_a_checkpoint(head: bytes) -> str | None:
    """Say why a file that begins with ``head`` (512 bytes) cannot be a checkpoint; None if it may be one."""
    text = head.lstrip().lower()
    if not head:
        return "the file is empty. Download it again."
    if text.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer, not the weights. Run `git lfs pull`, or download the file itself."
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, not weights: the download got an error or login page. Download the file itself."
    if begins_safetensors(head) or head[:2] in (b"PK", b"\x80\x02"):
        return None
    return "neither a .safetensors file nor a PyTorch checkpoint. Give one of those, or download it again."
