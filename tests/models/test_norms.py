"""GroupNorm of small maps, beside torch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from core.models.norms import FEW_CHANNELS, GroupNorm


def drawn(channels: int, side: int, dtype: torch.dtype = torch.bfloat16) -> tuple[GroupNorm, Tensor]:
    """Draw a norm and a channels-last map that is far from mean 0, in bfloat16's precision."""
    generator = torch.Generator().manual_seed(channels + side)
    norm = GroupNorm(32, channels, eps=1e-5)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.randn(channels, generator=generator))
    x = torch.randn((2, channels, side, side), generator=generator) * 3.0 + 20.0
    return norm.to(dtype), x.to(dtype).contiguous(memory_format=torch.channels_last)


def exact(norm: GroupNorm, x: Tensor) -> Tensor:
    """Return the result in double precision."""
    return F.group_norm(x.double(), 32, norm.weight.double(), norm.bias.double(), norm.eps)


@torch.inference_mode()
@pytest.mark.parametrize("side", [1, 3, 8, 16])
@pytest.mark.parametrize("channels", [32, 64, 192, FEW_CHANNELS])
def test_small_maps_are_as_precise_as_torchs(channels: int, side: int) -> None:
    norm, x = drawn(channels, side)
    truth = exact(norm, x)
    ours, theirs = norm(x).double(), F.group_norm(x, 32, norm.weight, norm.bias, norm.eps).double()

    assert (ours - truth).norm() <= 1.02 * (theirs - truth).norm() + 1e-6


@torch.inference_mode()
def test_small_maps_stay_channels_last_in_bfloat16() -> None:
    norm, x = drawn(64, 16)

    assert norm(x).is_contiguous(memory_format=torch.channels_last)
    assert norm(x).dtype == torch.bfloat16


@torch.inference_mode()
@pytest.mark.parametrize(
    ("channels", "side", "dtype"),
    [(64, 17, torch.bfloat16), (FEW_CHANNELS * 2, 8, torch.bfloat16), (64, 8, torch.float32)],
)
def test_all_other_maps_are_torchs_to_the_bit(channels: int, side: int, dtype: torch.dtype) -> None:
    norm, x = drawn(channels, side, dtype)

    assert torch.equal(norm(x), F.group_norm(x, 32, norm.weight, norm.bias, norm.eps))


def test_where_gradients_are_kept_it_is_torchs_of_a_plain_map_to_the_bit() -> None:
    norm, x = drawn(64, 8)
    given, plain = x.detach().requires_grad_(), x.detach().contiguous().requires_grad_()
    assert not given.is_contiguous()
    made, wanted = norm(given), F.group_norm(plain, 32, norm.weight, norm.bias, norm.eps)
    assert torch.equal(made, wanted)
    ahead = torch.randn(made.shape).to(made.dtype)
    made.backward(ahead)
    wanted.backward(ahead)
    assert given.grad is not None and plain.grad is not None
    assert torch.equal(given.grad, plain.grad)
