"""The GPU's kernels: their maths under Triton's interpreter, and that they compile for GPUs not here."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import textwrap

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from core.models import fused
from core.models.norms import GroupNorm

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")


def _run(code: str, **environment: str) -> str:
    """Run ``code`` in a process of its own, as Triton reads its environment once; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_triton
def test_the_kernels_compute_what_torch_computes() -> None:
    found = _run(
        """
        import torch, torch.nn.functional as F
        from core.models.fused_kernels import geglu, group_norm
        torch.manual_seed(0)
        shapes = (((2, 96, 9, 7), 32), ((1, 320, 16, 12), 32), ((2, 64, 33, 40), 1), ((1, 8, 90, 70), 2))
        for shape, groups in shapes:
            x = (torch.randn(shape) * 3 + 20).contiguous(memory_format=torch.channels_last)
            weight, bias = torch.randn(2, shape[1])
            right = F.group_norm(x.double(), groups, weight.double(), bias.double(), 1e-5)
            for silu, wanted in ((False, right), (True, F.silu(right))):
                made = group_norm(x, groups, weight, bias, 1e-5, silu=silu)
                assert made.is_contiguous(memory_format=torch.channels_last)
                print(float((made.double() - wanted).abs().max()))
        for shape in ((3, 50, 640), (7, 46)):
            rows = torch.randn(shape)
            value, gate = rows.double().chunk(2, dim=-1)
            print(float((geglu(rows).double() - value * F.gelu(gate)).abs().max()))
        """,
        TRITON_INTERPRET="1",
    )
    away = [float(line) for line in found.split()]
    assert len(away) == 10 and max(away) < 1e-5


@needs_triton
@pytest.mark.parametrize("capability", [75, 80, 90])
def test_the_kernels_compile_for(capability: int) -> None:
    found = _run(
        f"""
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource
        from core.models import fused_kernels as kernels
        full, half, whole, fixed = "*fp32", "*fp16", "i32", "constexpr"
        sizes = dict(pixels=whole, channels=whole)
        jobs = (
            (kernels._part_moments, dict(x_ptr=half, mean_ptr=full, square_ptr=full, **sizes, parts=whole),
             dict(P=64, C=64)),
            (kernels._scale_and_shift,
             dict(mean_ptr=full, square_ptr=full, weight_ptr=half, bias_ptr=half, scale_ptr=full,
                  shift_ptr=full, **sizes, parts=whole, eps="fp32", each=whole), dict(P=64, K=64, G=16)),
            (kernels._map, dict(x_ptr=half, y_ptr=half, scale_ptr=full, shift_ptr=full, **sizes),
             dict(SILU=True, P=64, C=64)),
            (kernels._gated, dict(x_ptr=half, y_ptr=half, count=whole, width=whole), dict(N=1024)),
        )
        for kernel, kinds, constants in jobs:
            source = ASTSource(
                fn=kernel, signature={{**kinds, **dict.fromkeys(constants, fixed)}}, constexprs=constants
            )
            made = triton.compile(source, target=GPUTarget("cuda", {capability}, 32))
            print(len(made.asm["cubin"]))
        """,
    )
    assert all(int(size) > 1000 for size in found.split()) and len(found.split()) == 4


@torch.inference_mode()
def test_norm_and_silu_is_both_where_there_is_no_gpu() -> None:
    torch.manual_seed(0)
    norm = GroupNorm(4, 16)
    x = torch.randn(2, 16, 5, 5)
    assert torch.equal(norm.silu(x), F.silu(norm(x)))
    assert not fused.suits_norm(x) and not fused.suits_gates(x)


def _wrong(x: Tensor, *_: object, **__: object) -> Tensor:
    return torch.zeros_like(x) if x.ndim == 4 else torch.zeros(x.shape[0], x.shape[1] // 2)


def _broken(x: Tensor, *_: object, **__: object) -> Tensor:
    raise RuntimeError("no compiler")


@needs_triton
@pytest.mark.parametrize(("kernel", "told"), [(_wrong, "away from torch's"), (_broken, "no compiler")])
def test_kernels_that_fail_their_trial_are_left_out_and_it_is_said(
    kernel: object, told: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kernels = fused._kernels()
    assert kernels is not None
    monkeypatch.setattr(kernels, "group_norm", kernel)
    monkeypatch.setattr(kernels, "geglu", kernel)
    fused.works.cache_clear()
    assert not fused.works(torch.device("cpu"))
    assert told in caplog.text and "torch's are used" in caplog.text
    fused.works.cache_clear()


def test_without_triton_torch_is_used_and_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fused, "_kernels", lambda: None)
    fused.works.cache_clear()
    assert not fused.works(torch.device("cpu"))
    assert not caplog.text
    fused.works.cache_clear()
