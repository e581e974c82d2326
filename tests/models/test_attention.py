"""Attention by strips of queries, beside the formula in double precision."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from core.models import attention
from core.models.attention import MANY_TOKENS, attend, attend_in_strips

Triple = tuple[Tensor, Tensor, Tensor]


def drawn(queries: int = 700, keys: int = 600, width: int = 40, scale: float = 1.0) -> Triple:
    """Draw q, k, v (2, 3, tokens, width) in bfloat16, laid out as the blocks do."""
    generator = torch.Generator().manual_seed(0)

    def one(tokens: int, factor: float) -> Tensor:
        x = torch.randn((2, tokens, 3, width), generator=generator) * factor
        return x.bfloat16().transpose(1, 2)

    return one(queries, scale), one(keys, 1.0), one(keys, 1.0)


def exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return the attention in double precision."""
    return F.scaled_dot_product_attention(q.double(), k.double(), v.double())


def strips(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend in strips, which must be possible."""
    with torch.inference_mode():
        out = attend_in_strips(q, k, v)
    assert out is not None
    return out


def distance(a: Tensor, b: Tensor) -> float:
    """Return the distance of ``a`` from ``b``, relative to ``b``."""
    return float((a.double() - b).norm() / b.norm())


@pytest.mark.parametrize("width", [8, 32, 40, 64, 80])
@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0, 4.0])
def test_strips_are_the_softmax_of_the_scores_in_bfloat16s_precision(width: int, scale: float) -> None:
    q, k, v = drawn(width=width, scale=scale)

    assert distance(strips(q, k, v), exact(q, k, v)) < 0.01


def test_what_all_keys_share_changes_nothing() -> None:
    q, k, v = drawn()
    shared = (k + 8.0).contiguous()
    # bfloat16 keeps 8 bits of the shifted keys: the truth is that of the keys as they are now.
    assert distance(strips(q, shared, v), exact(q, shared, v)) < 0.01


def test_scores_around_zero_are_what_keeps_strips_precise(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = drawn(scale=4.0)
    precise = distance(strips(q, k, v), exact(q, k, v))
    monkeypatch.setattr(attention, "SPREAD", 0.0)

    assert distance(strips(q, k, v), exact(q, k, v)) > 1.5 * precise


def test_a_query_that_matches_one_key_gets_its_value() -> None:
    q, k, v = drawn(queries=600)
    k = k / k.float().norm(dim=-1, keepdim=True).to(k.dtype) * 6.0
    q = (k * 12.0).to(q.dtype)

    assert distance(strips(q, k, v), v.double()) < 0.01


def test_a_last_strip_that_is_shorter_is_like_the_others() -> None:
    q, k, v = drawn(queries=attention.ROWS_A_THREAD * torch.get_num_threads() + 1)
    all_rows = strips(q, k, v)

    assert distance(all_rows[:, :, -1:], exact(q[:, :, -1:], k, v)) < 0.01


@pytest.mark.parametrize("factor", [1e3, float("nan")])
def test_scores_out_of_reach_of_exp_are_left_to_torch(factor: float) -> None:
    q, k, v = drawn(scale=factor)

    assert attend_in_strips(q, k, v) is None


def test_attend_answers_large_scores_as_torch_does() -> None:
    q, k, v = drawn(MANY_TOKENS, MANY_TOKENS, 8, 1e3)

    with torch.inference_mode():
        assert torch.equal(attend(q, k, v), F.scaled_dot_product_attention(q, k, v))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record how many queries strips are asked for; they answer nothing."""
    counts: list[int] = []

    def spy(q: Tensor, k: Tensor, v: Tensor) -> None:
        counts.append(q.shape[2])

    monkeypatch.setattr(attention, "attend_in_strips", spy)
    monkeypatch.setattr(attention, "has_matrix_units", lambda: False)
    return counts


@torch.inference_mode()
def test_many_tokens_in_bfloat16_go_by_strips(asked: list[int]) -> None:
    q, k, v = drawn(MANY_TOKENS, MANY_TOKENS, 8)
    attend(q, k, v)

    assert asked == [MANY_TOKENS]


@torch.inference_mode()
def test_few_tokens_text_and_other_numbers_go_by_torch(asked: list[int]) -> None:
    q, k, v = drawn(MANY_TOKENS, MANY_TOKENS, 8)
    for some in ((q[:, :, :-1], k, v), (q, k[:, :, :77], v[:, :, :77]), (q.float(), k.float(), v.float())):
        assert torch.equal(attend(*some), F.scaled_dot_product_attention(*some))

    assert asked == []


def test_gradients_go_by_torch(asked: list[int]) -> None:
    q, k, v = drawn(MANY_TOKENS, MANY_TOKENS, 8)
    attend(q.requires_grad_(), k, v).sum().backward()

    assert asked == []
    assert q.grad is not None
