"""Choose the device and the number format to compute in."""

from __future__ import annotations

import platform
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

CPU = torch.device("cpu")
DEVICES = ("auto", "cpu", "cuda", "cuda:N", "mps")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def resolve_device(name: str) -> torch.device:
    """Return the device called ``name``; "auto" takes the first there is of cuda, mps and cpu.

    Raises:
        ValueError: there is no such device, or not on this machine; names the choices.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    kind, colon, index = name.partition(":")
    if kind not in {"cpu", "cuda", "mps"} or (colon and not (kind == "cuda" and index.isdecimal())):
        raise ValueError(f"device is {name!r}: give one of {', '.join(DEVICES)}.")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device is {name!r}, but torch sees {torch.cuda.device_count()} CUDA devices: give 'auto' or "
            "'cpu', or install a torch built for CUDA and the driver of your GPU."
        )
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device is 'mps', but this machine has no Metal device: give 'auto' or 'cpu'.")
    return torch.device(name)


def cpu_has_bfloat16() -> bool:
    """Say whether this CPU multiplies in bfloat16 itself; where it only emulates that, float32 is faster."""
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    if any(capabilities.get(name, False) for name in ("amx_bf16", "avx512_bf16", "arm_bf16", "bf16")):
        return True
    return platform.system() == "Linux" and bool(_cpu_flags() & {"amx_bf16", "avx512_bf16", "bf16"})


def _cpu_flags() -> set[str]:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            found = (line for line in lines if line.lower().startswith(("flags", "features")))
            return set(next(found, "").partition(":")[2].split())
    except OSError:  # a sandbox may hide it: then nothing is known, and float32 is right everywhere
        return set()


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the number format called ``name``; "auto" takes the fastest that ``device`` has natively.

    That is float16 on a GPU, bfloat16 on a CPU with AVX512-BF16, AMX or Arm's BF16, else float32.

    Raises:
        ValueError: there is no such format; names the choices.
    """
    if name == "auto":
        if device.type != "cpu":
            return torch.float16
        return torch.bfloat16 if cpu_has_bfloat16() else torch.float32
    if name not in DTYPES:
        raise ValueError(f"dtype is {name!r}: give one of auto, {', '.join(DTYPES)}.")
    return DTYPES[name]


def vae_dtype(dtype: torch.dtype, device: torch.device = CPU) -> torch.dtype:
    """Return the format for the autoencoder beside networks in ``dtype``.

    Its activations leave float16's range for some pictures. On a GPU, where float16 is much faster, those are
    computed again in float32; elsewhere all are. bfloat16 has the range, but not the precision: pictures move
    by several grey levels.
    """
    return torch.float32 if dtype == torch.float16 and device.type != "cuda" else dtype


def resolve_vae_dtype(name: str, dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Return the format called ``name``; "auto" takes what suits networks in ``dtype`` on ``device``.

    Raises:
        ValueError: there is no such format; names the choices.
    """
    if name == "auto":
        return vae_dtype(dtype, device)
    if name not in DTYPES:
        raise ValueError(f"vae_dtype is {name!r}: give one of auto, {', '.join(DTYPES)}.")
    return DTYPES[name]


def keep_float32(device: torch.device, dtype: torch.dtype) -> None:
    """Have float32 networks on a GPU really computed in it: cuDNN rounds to 19 bits where it is let."""
    if device.type == "cuda" and dtype == torch.float32:
        torch.backends.cudnn.allow_tf32 = False


def for_training(net: nn.Module, device: torch.device) -> None:
    """Bring a network to ``device``, in the layout whose gradients are fastest there.

    On a CPU that is not channels_last: the gradient of GroupNorm is several times slower with it.
    """
    with_layout = {"memory_format": torch.channels_last} if device.type == "cuda" else {}
    net.to(device, **with_layout)  # type: ignore[call-overload]


def training_dtype(kind: str) -> torch.dtype:
    """Return the format to train in on a device of this ``kind``: bfloat16 where it is native, else float32.

    A CPU that has to emulate it is about 150 times slower with it than with float32.
    """
    native = cpu_has_bfloat16() if kind == "cpu" else kind == "cuda" and torch.cuda.is_bf16_supported()
    return torch.bfloat16 if native else torch.float32


def autocast(kind: str) -> torch.autocast:
    """Return the context in which to train on a device of this ``kind``, in ``training_dtype``."""
    return torch.autocast(kind, torch.bfloat16, enabled=training_dtype(kind) == torch.bfloat16)


def training_attention(kind: str) -> AbstractContextManager[None]:
    """Return the context in which attention over small maps is trained fastest on a device of this ``kind``.

    On a CPU the gradient of the fused attention takes longer than that of two products and a softmax: a
    quarter of the demo model's whole step, which is a sixth faster without it.
    """
    plain: AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH)
    return plain if kind == "cpu" else nullcontext()
