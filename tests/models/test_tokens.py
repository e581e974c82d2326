"""Merging tokens loses nothing where they are the same, and always the same where they are not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from core.models.blocks import SpatialTransformer
from core.models.tokens import match_tokens
from core.models.unet import UNet
from tests.deterministic_weights import fill_module
from tests.tiny_model import latents, tiny_config, tiny_networks

HEIGHT, WIDTH = 4, 6


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def blocks(channels: int = 8) -> Tensor:
    """Tokens of which the four of each 2x2 are the same, (2, h * w, channels)."""
    cells = noise(2, HEIGHT // 2, WIDTH // 2, channels)
    return cells.repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1, 2)


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_merged_and_put_back_duplicates_are_what_they_were(ratio: float) -> None:
    x = blocks()
    merge = match_tokens(x, WIDTH, ratio)
    merged = merge.merge(x)
    assert merged.shape == (2, round((1 - ratio) * HEIGHT * WIDTH), 8)
    torch.testing.assert_close(merge.unmerge(merged), x, rtol=0, atol=1e-6)


def test_every_token_comes_back_in_its_own_place() -> None:
    x = noise(2, HEIGHT * WIDTH, 8)
    merge = match_tokens(x, WIDTH, 0.5)
    places = torch.cat([merge.kept, merge.gone], 1).sort(1).values
    assert torch.equal(places, torch.arange(HEIGHT * WIDTH).expand(2, -1))
    names = torch.arange(HEIGHT * WIDTH, dtype=torch.float32)[None, :, None].expand(2, -1, 1)
    back = merge.unmerge(names.gather(1, merge.kept[..., None]))
    stays = back.gather(1, merge.kept[..., None])[..., 0]
    assert torch.equal(stays, merge.kept.float())
    into = merge.kept.gather(1, merge.into)
    assert torch.equal(back.gather(1, merge.gone[..., None])[..., 0], into.float())


def test_a_token_goes_into_the_corner_most_like_it_and_the_most_alike_go_first() -> None:
    x = noise(1, HEIGHT * WIDTH, 8)
    corners = [y * WIDTH + c for y in range(0, HEIGHT, 2) for c in range(0, WIDTH, 2)]
    others = [i for i in range(HEIGHT * WIDTH) if i not in corners]
    cosine = torch.nn.functional.cosine_similarity(x[0, others, None], x[0, None, corners], dim=2)
    merge = match_tokens(x, WIDTH, 0.25)
    order = cosine.max(1).values.argsort(descending=True)[:6].tolist()
    assert merge.gone[0].tolist() == [others[i] for i in order]
    assert [merge.kept[0, i].item() for i in merge.into[0]] == [corners[cosine[i].argmax()] for i in order]


def test_a_kept_token_is_the_mean_of_all_that_it_stands_for() -> None:
    x = noise(1, HEIGHT * WIDTH, 8)
    merge = match_tokens(x, WIDTH, 0.75)
    merged = merge.merge(x)
    for place in range(merged.shape[1]):
        parts = [merge.kept[0, place], *merge.gone[0][merge.into[0] == place]]
        torch.testing.assert_close(merged[0, place], x[0, parts].mean(0))


def test_the_same_tokens_are_matched_the_same_even_where_all_are_alike() -> None:
    x = torch.ones(1, HEIGHT * WIDTH, 8)
    first, again = (match_tokens(x, WIDTH, 0.5) for _ in range(2))
    assert torch.equal(first.gone, again.gone) and torch.equal(first.into, again.into)
    assert first.gone[0, :3].tolist() == [1, 3, 5]


def test_a_transformer_that_is_not_the_finest_merges_nothing() -> None:
    x, kv = noise(1, 32, 8, 8), (noise(1, 2, 77, 16), noise(1, 2, 77, 16))
    for finest in (False, True):
        net = SpatialTransformer(32, 2, 16, 1, 32, linear=False, finest=finest)
        fill_module(net, "", "tokens")
        with torch.inference_mode():
            same = torch.equal(net(x, iter([kv]), 0.5), net(x, iter([kv])))
        assert same is not finest


def test_merging_nothing_is_exact_and_something_is_near() -> None:
    unet = tiny_networks(tiny_config()).unet
    x, t, context = latents(2), torch.tensor([401, 401]), noise(2, 77, 32)
    with torch.inference_mode():
        exact = unet(x, t, context)
        assert torch.equal(unet(x, t, context, None, 0.0), exact)
        off = (unet(x, t, context, None, 0.5) - exact).abs().max()
    assert 0 < off < exact.abs().max()


def test_the_finest_transformers_are_those_at_the_most_pixels() -> None:
    config = tiny_config().unet
    config.channel_mult, config.attention_resolutions = [1, 1, 1], [4, 2]
    finest = [m.finest for m in UNet(config).modules() if isinstance(m, SpatialTransformer)]
    # input: one at 2, one at 4; the middle; output: two at 4, two at 2
    assert finest == [True, False, False, False, False, True, True]
