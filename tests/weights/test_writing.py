"""Files are written whole or not at all, never over another unasked, and read back bit for bit."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from core.weights.formats import TensorInfo, open_tensors
from core.weights.writing import Entry, WriteError, constant, write_state, write_tensors


def entries() -> dict[str, Entry]:
    generator = torch.Generator().manual_seed(0)
    values = {
        "b.half": torch.randn(3, 5, generator=generator).half(),
        "a.single": torch.randn(2, 3, 4, generator=generator),
        "c.brain": torch.randn(7, generator=generator).bfloat16(),
        "d.whole": torch.arange(5),
        "e.scalar": torch.tensor(2.5),
        "f.flags": torch.tensor([True, False, True]),
        "g.empty": torch.zeros(0, 4),
        "h.strided": torch.randn(4, 6, generator=generator).T,
    }
    return {key: constant(value) for key, value in values.items()}


def test_what_is_written_is_read_back_bit_for_bit_by_the_formats_own_library(tmp_path: Path) -> None:
    path = tmp_path / "out.safetensors"
    size = write_tensors(path, entries(), {"format": "pt", "note": "ä “quoted”"})
    assert size == path.stat().st_size
    got = load_file(path)
    assert got.keys() == entries().keys()
    for key, entry in entries().items():
        assert got[key].dtype == entry.info.dtype and torch.equal(got[key], entry.make()), key
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt", "note": "ä “quoted”"}
    assert open_tensors(path).tensors.keys() == got.keys()


def test_a_cast_changes_numbers_and_leaves_whole_numbers(tmp_path: Path) -> None:
    path = tmp_path / "out.safetensors"
    write_tensors(path, {key: entry.cast(torch.float16) for key, entry in entries().items()})
    got = load_file(path)
    assert torch.equal(got["a.single"], entries()["a.single"].make().half())
    assert got["d.whole"].dtype == torch.int64 and got["f.flags"].dtype == torch.bool


def test_a_value_too_large_for_the_format_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    big = constant(torch.tensor([1.0, 7e4])).cast(torch.float16)
    with pytest.raises(ValueError, match=r"some\.weight holds 7e\+04, too much for torch\.float16: give"):
        write_tensors(tmp_path / "out.safetensors", {"some.weight": big})
    assert not list(tmp_path.iterdir())
    endless = constant(torch.tensor([float("inf")])).cast(torch.float16)
    write_tensors(tmp_path / "out.safetensors", {"some.weight": endless})  # was so before


def test_another_file_is_only_replaced_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "out.safetensors"
    path.write_bytes(b"precious")
    with pytest.raises(ValueError, match="is there already: give another name, or --overwrite"):
        write_tensors(path, entries())
    assert path.read_bytes() == b"precious"
    write_tensors(path, entries(), overwrite=True)
    assert load_file(path)


def test_a_file_may_be_written_over_the_one_that_it_is_made_of(tmp_path: Path) -> None:
    path = tmp_path / "out.safetensors"
    write_tensors(path, entries())
    file = open_tensors(path)

    def read(key: str) -> Entry:
        return Entry(file.tensors[key], lambda: file.read(key))

    write_tensors(path, {key: read(key) for key in file.tensors}, overwrite=True)
    assert all(torch.equal(value, entries()[key].make()) for key, value in load_file(path).items())


def test_trained_tensors_replace_a_file_and_may_be_read_by_others(tmp_path: Path) -> None:
    path = tmp_path / "new" / "model.safetensors"
    tensors = {"half": torch.randn(3, 5).half(), "turned": torch.randn(4, 2).T, "whole": torch.arange(7)}
    for metadata in ({"a": "1"}, {"b": "2"}):
        learned = {k: v.requires_grad_(v.is_floating_point()) for k, v in tensors.items()}
        size = write_state(path, learned, metadata)
        assert size == path.stat().st_size
        with safe_open(path, "pt") as file:
            assert file.metadata() == metadata
        read = load_file(path)
        assert set(read) == set(tensors)
        assert all(torch.equal(read[k], v) and read[k].dtype == v.dtype for k, v in tensors.items())
    other = tmp_path / "other"
    other.touch()
    assert path.stat().st_mode == other.stat().st_mode
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("out.ckpt", "written as .safetensors"),
        ("none/out.safetensors", "there is no folder .*none: make it first"),
        ("folder.safetensors", "is a folder: give another name"),
    ],
)
def test_a_name_that_cannot_be_is_refused_before_any_work(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder.safetensors").mkdir()

    def fail() -> Tensor:
        raise AssertionError("worked for nothing")

    with pytest.raises(ValueError, match=message):
        write_tensors(tmp_path / name, {"a": Entry(TensorInfo((1,), torch.float32), fail)})


class Disk(NamedTuple):
    total: int
    used: int
    free: int


def test_a_disk_that_is_too_small_is_told_before_the_first_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Disk(10**9, 10**9, 4096))
    with pytest.raises(WriteError, match="free: make room.*Nothing was written"):
        write_tensors(tmp_path / "out.safetensors", entries())
    assert not list(tmp_path.iterdir())


def full() -> Tensor:
    raise OSError(errno.ENOSPC, "No space left on device")


def stopped() -> Tensor:
    raise KeyboardInterrupt


@pytest.mark.parametrize(("make", "error"), [(full, WriteError), (stopped, KeyboardInterrupt)])
def test_what_stops_in_the_middle_leaves_the_old_file_and_no_half_one(
    tmp_path: Path, make: Callable[[], Tensor], error: type[BaseException]
) -> None:
    path = tmp_path / "out.safetensors"
    path.write_bytes(b"precious")
    late = {"z.last": Entry(TensorInfo((1,), torch.int8), make)}
    with pytest.raises(error):
        write_tensors(path, entries() | late, overwrite=True)
    assert [found.name for found in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"precious"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's device that is always full")
def test_a_full_disk_is_told_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.open

    def open_full(path: Path, mode: str = "r") -> object:
        return real(Path("/dev/full") if mode == "wb" else path, mode)

    monkeypatch.setattr(Path, "open", open_full)
    with pytest.raises(WriteError, match="No space left on device.*make room.*Nothing is left of it"):
        write_tensors(tmp_path / "out.safetensors", entries())
    assert not list(tmp_path.iterdir())
