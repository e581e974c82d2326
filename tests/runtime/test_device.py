"""Devices and number formats are chosen by name, and a wrong name is answered with the right ones."""

from __future__ import annotations

import pytest
import torch

from core.runtime import device as module
from core.runtime.device import (
    autocast,
    keep_float32,
    resolve_device,
    resolve_dtype,
    resolve_vae_dtype,
    vae_dtype,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("cuda", [False, True])
@pytest.mark.parametrize("mps", [False, True])
def test_auto_takes_the_first_of_cuda_mps_and_cpu(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert resolve_device("auto").type == ("cuda" if cuda else "mps" if mps else "cpu")


def test_devices_are_taken_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    for name in ("cpu", "cuda", "cuda:1", "mps"):
        assert str(resolve_device(name)) == name


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "cpu:0", "tpu", "CUDA", "cuda:-1", "cuda:"])
def test_an_unknown_device_is_answered_with_the_choices(name: str) -> None:
    with pytest.raises(ValueError, match="give one of auto, cpu, cuda, cuda:N, mps"):
        resolve_device(name)


def test_a_device_that_is_not_there_is_answered_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match="'cuda:1', but torch sees 1 CUDA devices: give 'auto' or 'cpu'"):
        resolve_device("cuda:1")
    with pytest.raises(ValueError, match="no Metal device: give 'auto' or 'cpu'"):
        resolve_device("mps")


@pytest.mark.parametrize("native", [False, True])
def test_auto_takes_bfloat16_only_where_the_cpu_has_it(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    monkeypatch.setattr(module, "cpu_has_bfloat16", lambda: native)
    assert resolve_dtype("auto", CPU) == (torch.bfloat16 if native else torch.float32)
    assert resolve_dtype("auto", CUDA) == resolve_dtype("auto", torch.device("mps")) == torch.float16


@pytest.mark.parametrize(
    ("capabilities", "flags", "native"),
    [
        ({"amx_bf16": True}, "", True),
        ({"avx512_bf16": True, "amx_bf16": False}, "", True),
        ({"avx512_bw": True, "amx_bf16": False}, "avx512bw avx2", False),
        ({}, "fpu avx512_bf16", True),
        ({}, "fp asimd bf16", True),
        ({}, "fpu avx2", False),
        ({}, "", False),
    ],
)
def test_bfloat16_is_native_where_torch_or_the_system_says_so(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], flags: str, native: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    monkeypatch.setattr(module, "_cpu_flags", lambda: set(flags.split()))
    monkeypatch.setattr(module.platform, "system", lambda: "Linux")
    assert module.cpu_has_bfloat16() is native


def test_an_older_torch_without_capabilities_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(module, "_cpu_flags", set)
    assert module.cpu_has_bfloat16() is False


def test_formats_are_taken_by_name_and_a_wrong_name_is_answered_with_the_choices() -> None:
    for name in ("float32", "float16", "bfloat16"):
        assert resolve_dtype(name, CPU) == getattr(torch, name)
    with pytest.raises(ValueError, match="dtype is 'half': give one of auto, float32, float16, bfloat16"):
        resolve_dtype("half", CPU)


def test_the_autoencoder_is_computed_in_float16_on_a_gpu_only() -> None:
    assert vae_dtype(torch.float16) == vae_dtype(torch.float16, torch.device("mps")) == torch.float32
    assert vae_dtype(torch.float16, CUDA) == torch.float16
    for device in (CPU, CUDA):
        assert vae_dtype(torch.bfloat16, device) == torch.bfloat16
        assert vae_dtype(torch.float32, device) == torch.float32


def test_the_autoencoders_format_is_taken_by_name() -> None:
    assert resolve_vae_dtype("auto", torch.float16, CUDA) == torch.float16
    assert resolve_vae_dtype("auto", torch.bfloat16, CPU) == torch.bfloat16
    assert resolve_vae_dtype("float32", torch.float16, CUDA) == torch.float32
    with pytest.raises(ValueError, match="vae_dtype is 'half': give one of auto, float32, float16, bfloat16"):
        resolve_vae_dtype("half", torch.float16, CUDA)


@pytest.mark.parametrize(
    ("device", "dtype", "rounded"),
    [(CUDA, torch.float32, False), (CUDA, torch.float16, True), (CPU, torch.float32, True)],
)
def test_float32_on_a_gpu_is_not_rounded_to_tf32(
    device: torch.device, dtype: torch.dtype, rounded: bool
) -> None:
    before = torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cudnn.allow_tf32 = True
        keep_float32(device, dtype)
        assert torch.backends.cudnn.allow_tf32 is rounded
        assert not torch.backends.cuda.matmul.allow_tf32  # torch's own default
    finally:
        torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("native", [True, False])
def test_training_uses_bfloat16_only_where_it_is_native(
    native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.runtime.device.cpu_has_bfloat16", lambda: native)
    with autocast("cpu"):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (torch.bfloat16 if native else torch.float32)
