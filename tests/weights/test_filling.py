"""Weights are read, converted and packed in one go, to the bits that doing one after the other gives."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn

from core.errors import CheckpointMismatch
from core.models.packed import Packed
from core.models.packing import can_pack, pack_weights
from core.models.unet import UNet
from core.weights.checkpoint import load_base, load_control
from core.weights.convert import Sources
from core.weights.filling import WORKERS, fill, in_file_order
from core.weights.formats import SafetensorsFile, TensorFile, open_tensors
from core.weights.numbers import PIECE, convert
from core.weights.parts import Part
from tests.weights.files import (
    CPU,
    assert_same,
    base_state,
    cast,
    make_networks,
    prefixed,
    tiny_config,
    write,
)

HALF, BFLOAT = torch.float16, torch.bfloat16


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("made", [torch.float32, BFLOAT])
def test_every_number_in_half_precision_becomes_what_torch_makes_of_it(
    made: torch.dtype, threads: int
) -> None:
    torch.set_num_threads(threads)  # put back after each test
    value = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(HALF)
    out = torch.empty(256, 256, dtype=made)
    convert(value, out)
    assert torch.equal(out.view(-1).nan_to_num(7.0), value.to(made).nan_to_num(7.0))
    assert torch.equal(out.view(-1).isnan(), value.isnan())


@pytest.mark.parametrize("stored", [torch.float32, HALF, BFLOAT, torch.int64])
@pytest.mark.parametrize("made", [torch.float32, HALF, BFLOAT, torch.int64])
def test_a_tensor_is_read_in_pieces_as_it_is_read_whole(
    tmp_path: Path, stored: torch.dtype, made: torch.dtype
) -> None:
    value = (torch.randn(PIECE + 5, generator=torch.Generator().manual_seed(0)) * 9).to(stored)
    file = open_tensors(write(tmp_path / "x.safetensors", {"a": torch.zeros(3), "b": value, "c": value[:0]}))
    out, empty = torch.empty(PIECE + 5, dtype=made), torch.empty(0, dtype=made)
    file.read_into("b", out)
    file.read_into("c", empty)
    assert torch.equal(out, file.read("b").to(made))


def test_a_file_that_was_cut_meanwhile_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", {"a": torch.zeros(1000)})
    file = open_tensors(path)
    with path.open("r+b") as cut:
        cut.truncate(500)
    with pytest.raises(CheckpointMismatch, match="has become shorter. Download it again"):
        file.read_into("a", torch.empty(1000))


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("family", ["sd15", "sd21"])
def test_packed_at_once_are_the_bits_of_the_file(
    tmp_path: Path, suffix: str, inference: bool, family: str
) -> None:
    config = tiny_config(family)
    nets = make_networks(config)
    path = write(tmp_path / f"base{suffix}", cast(base_state(nets), HALF))
    write(tmp_path / f"control{suffix}", cast(prefixed(nets.control, ""), HALF))
    with torch.inference_mode(inference):
        base = load_base(config, path, device=CPU, dtype=BFLOAT, pack=True)
        control = load_control(config, tmp_path / f"control{suffix}", device=CPU, dtype=BFLOAT, pack=True)
    pairs = [(base.unet, nets.unet), (base.vae, nets.vae), (base.text, nets.text), (control, nets.control)]
    for got, expected in pairs:
        assert_same(got, expected, BFLOAT, via=HALF)
        assert any(isinstance(layer, Packed) for layer in got.modules()) == can_pack()
        assert all(parameter.is_inference() == inference for parameter in got.parameters())


@pytest.mark.skipif(not can_pack(), reason="this processor has no bfloat16 products")
@torch.inference_mode()
def test_packed_at_once_computes_what_packed_afterwards_computes(tmp_path: Path) -> None:
    config = tiny_config()
    path = write(tmp_path / "base.safetensors", cast(base_state(make_networks(config)), HALF))
    at_once, after = (load_base(config, path, device=CPU, dtype=BFLOAT, pack=p).unet for p in (True, False))
    pack_weights(after)
    x, context = torch.randn(2, 4, 16, 16).to(BFLOAT), torch.randn(2, 7, 24).to(BFLOAT)
    assert torch.equal(at_once(x, torch.tensor([3, 801]), context), after(x, torch.tensor([3, 801]), context))


def test_a_file_is_read_from_its_beginning_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config()
    state = cast(base_state(make_networks(config)), HALF)
    file = open_tensors(write(tmp_path / "base.safetensors", state))
    with torch.device("meta"):
        unet = UNet(config.unet)
    sources: Sources = {name: (f"model.diffusion_model.{name}",) for name in unet.state_dict()}
    part = Part(file, sources, unet.state_dict())
    read: list[int] = []
    whole = SafetensorsFile.read_into

    def noting(self: SafetensorsFile, key: str, out: torch.Tensor, room_bytes: int = 0) -> None:
        read.append(self._begins[key])
        whole(self, key, out, room_bytes)

    monkeypatch.setattr(SafetensorsFile, "read_into", noting)
    fill(unet, part, CPU, BFLOAT, pack=True)
    assert len(read) == len(in_file_order(part)) == len(sources)
    places = {begin: place for place, begin in enumerate(sorted(read))}
    late = [at - places[begin] for at, begin in enumerate(read)]
    far = sum(abs(places) > 2 * WORKERS for places in late)
    assert far <= len(late) // 20  # threads overtake each other by a few, one that had to wait by more


def test_threads_that_read_compute_alone_and_leave_the_number_of_threads_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, found = tiny_config(), set()
    path = write(tmp_path / "base.safetensors", cast(base_state(make_networks(config)), HALF))
    whole = SafetensorsFile.read_into

    def noting(self: SafetensorsFile, key: str, out: torch.Tensor, room_bytes: int = 0) -> None:
        if threading.current_thread() is not threading.main_thread():
            found.add(torch.get_num_threads())
        whole(self, key, out, room_bytes)

    monkeypatch.setattr(SafetensorsFile, "read_into", noting)
    torch.set_num_threads(3)  # put back after each test
    load_base(config, path, device=CPU, dtype=BFLOAT, pack=True)
    assert found == {1}
    with ThreadPoolExecutor(1) as fresh:
        assert torch.get_num_threads() == 3 == fresh.submit(torch.get_num_threads).result()


def test_a_mapped_pickle_is_read_by_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, threads = tiny_config(), set()
    path = write(tmp_path / "base.ckpt", cast(base_state(make_networks(config)), HALF))
    whole = TensorFile.read_into

    def noting(self: TensorFile, key: str, out: torch.Tensor, room_bytes: int = 0) -> None:
        threads.add(threading.get_ident())
        whole(self, key, out, room_bytes)

    monkeypatch.setattr(TensorFile, "read_into", noting)
    load_base(config, path, device=CPU, dtype=BFLOAT, pack=True)
    assert threads == {threading.get_ident()}


def test_an_error_in_a_reading_thread_is_raised(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", {"weight": torch.zeros(64, 64), "bias": torch.zeros(64)})
    file = open_tensors(path)
    with torch.device("meta"):
        net = nn.Linear(64, 64)
    part = Part(file, {"weight": ("weight",), "bias": ("bias",)}, net.state_dict())
    path.unlink()
    with pytest.raises(FileNotFoundError):
        fill(net, part, CPU, BFLOAT)


def test_convolutions_that_stay_plain_are_channels_last_at_once(tmp_path: Path) -> None:
    config = tiny_config("sd15")
    path = write(tmp_path / "base.safetensors", cast(base_state(make_networks(config)), HALF))
    plain, laid = (load_base(config, path, device=CPU, dtype=HALF, pack=pack) for pack in (False, True))
    last = torch.channels_last
    both = zip(plain.unet.parameters(), laid.unet.parameters(), strict=True)
    ways = [(a, b) for a, b in both if a.ndim == 4]
    assert ways and all(torch.equal(a, b) and b.is_contiguous(memory_format=last) for a, b in ways)
    assert all(a.is_contiguous() for a, _ in ways)
