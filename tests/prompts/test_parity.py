"""Clip skip and weights beside another implementation of the same text encoder, of the same weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from core.config import TextConfig
from core.models.text_encoder import TextEncoder
from core.models.tokenizer import END_TOKEN
from core.prompts.encode import encode_prompts
from core.weights.convert import HF_TEXT, text_sources

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def theirs() -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.CLIPTextConfig(
        hidden_size=32, intermediate_size=128, num_hidden_layers=4, num_attention_heads=2
    )
    model = transformers.CLIPTextModel(config).eval().requires_grad_(False)
    for name, value in model.named_parameters():
        value.copy_(torch.randn_like(value) * 0.2 + (1.0 if "norm.weight" in name else 0.0))
    return model


def ours(theirs: Any, clip_skip: int) -> TextEncoder:
    sizes = TextConfig(width=32, heads=2, layers=4, quick_gelu=True, pad_token=END_TOKEN, layout="hf")
    text = TextEncoder(replace(sizes, clip_skip=clip_skip)).eval().requires_grad_(False)
    inner = getattr(theirs, "text_model", theirs)  # newer versions have no such level
    state = {f"{HF_TEXT}text_model.{key}": value for key, value in inner.state_dict().items()}
    sources = text_sources(sizes, text.state_dict(), state)
    text.load_state_dict({key: torch.cat([state[k] for k in keys]) for key, keys in sources.items()})
    return text


def hidden(theirs: Any, tokens: Tensor, clip_skip: int) -> Tensor:
    inner = getattr(theirs, "text_model", theirs)
    states = theirs(tokens, output_hidden_states=True).hidden_states
    return inner.final_layer_norm(states[-clip_skip])


@pytest.mark.parametrize("clip_skip", [1, 2, 3])
def test_clip_skip_reads_the_layer_that_transformers_calls_so(theirs: Any, clip_skip: int) -> None:
    text = ours(theirs, clip_skip)
    prompts = ["a red car by the sea", "blurry"]
    wanted = hidden(theirs, text.tokenize(prompts), clip_skip)
    torch.testing.assert_close(encode_prompts(text, prompts), wanted, atol=2e-5, rtol=1e-4)


def test_weights_of_two_chunks_come_out_as_computed_from_transformers_rows(theirs: Any) -> None:
    text = ours(theirs, 1)
    rows = hidden(theirs, text.tokenize(["a red car", "a blue sky", "blurry", ""]), 1)
    weights = torch.ones(4, 77, 1)
    weights[0, 2], weights[1, 2:4] = 1.4, 1 / 1.1
    scaled = rows * weights
    scaled = scaled * (rows.mean((1, 2)) / scaled.mean((1, 2)))[:, None, None]
    found = encode_prompts(text, ["a (red:1.4) car BREAK a [blue sky]", "blurry"])
    torch.testing.assert_close(found, scaled.reshape(2, 154, 32), atol=2e-5, rtol=1e-4)
