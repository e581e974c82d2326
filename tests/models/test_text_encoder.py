"""Prompts become the published token ids; a text encoder with few words keeps unknown ones apart."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from core.config import TextConfig, load_config
from core.models.text_encoder import TextAttention, TextBlock, TextEncoder
from core.models.tokenizer import END_TOKEN, START_TOKEN
from tests.golden_networks import load_golden, load_prompts


@pytest.mark.parametrize(("model", "name"), [("sd15", "clip_vit_l14"), ("sd21", "clip_vit_h14")])
def test_token_ids_are_the_originals(model: str, name: str) -> None:
    with torch.device("meta"):
        text = TextEncoder(load_config(model).text)
    tokens = text.tokenize(load_prompts(name))
    assert torch.equal(tokens, load_golden(name)["tokens"].long())


def small_text(kept_tokens: int = 0) -> TextEncoder:
    torch.manual_seed(0)
    config = TextConfig(width=32, heads=2, layers=2, pad_token=END_TOKEN, kept_tokens=kept_tokens)
    return TextEncoder(config).eval().requires_grad_(False)


@pytest.mark.parametrize("quick", [True, False])
def test_a_block_computes_what_open_clips_does_with_the_same_weights(quick: bool) -> None:
    from open_clip.transformer import QuickGELU, ResidualAttentionBlock

    torch.manual_seed(0)
    theirs = ResidualAttentionBlock(32, 4, act_layer=QuickGELU if quick else torch.nn.GELU)
    ours = TextBlock(32, 4, quick)
    ours.load_state_dict(theirs.state_dict())
    x, mask = torch.randn(2, 9, 32), torch.full((9, 9), float("-inf")).triu_(1)
    for net in (ours, theirs):
        net.eval().requires_grad_(False)
    torch.testing.assert_close(ours(x, mask), theirs(x, attn_mask=mask), rtol=0.0, atol=2e-6)


def test_its_attention_begins_as_torchs_and_draws_the_same_numbers_for_it() -> None:
    torch.manual_seed(0)
    theirs, after = torch.nn.MultiheadAttention(32, 4), torch.rand(1)
    torch.manual_seed(0)
    ours = TextAttention(32, 4)
    assert torch.equal(torch.rand(1), after)
    found, wanted = ours.state_dict(), theirs.state_dict()
    assert list(found) == list(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@torch.inference_mode()
def test_attention_makes_no_copy_of_its_weights_for_each_token() -> None:
    ours = (
        TextAttention(128, 4).bfloat16().requires_grad_(False)
    )  # torch's makes copies of what is not trained
    x, mask = torch.randn(2, 77, 128).bfloat16(), torch.zeros(77, 77).bfloat16()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        ours(x, mask)
    assert (
        max(event.cpu_memory_usage for event in found.events()) <= 2 * 3 * x.nbytes
    )  # q, k, v; twice as much


def test_what_loads_models_does_not_import_the_tokenizers_package_nor_torchvision() -> None:
    code = "import sys, core.loading; print([m for m in ('open_clip', 'torchvision') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_prompt_of_any_length_fills_the_context_and_ends_with_the_end_token() -> None:
    tokens = small_text().tokenize(["dog " * 500, "", "a dog"])
    assert tokens.shape == (3, 77)
    assert (tokens[:, 0] == START_TOKEN).all()
    assert (tokens[:, -1] == END_TOKEN).all()
    assert (tokens[0] == END_TOKEN).sum() == 1


def test_a_word_sees_only_the_words_before_it() -> None:
    text = small_text()
    one, other = text.encode(["a red house by the sea", "a red house on a green hill"])
    shared = 4  # start, a, red, house
    assert torch.equal(one[:shared], other[:shared])
    assert not torch.equal(one[shared], other[shared])


def test_the_penultimate_reading_leaves_the_last_block_out() -> None:
    text = small_text()
    text.config.penultimate = True
    before = text.encode(["a dog"])
    for p in text.transformer.resblocks[-1].parameters():
        p.fill_(float("nan"))
    assert torch.equal(text.encode(["a dog"]), before)


def test_kept_tokens_have_rows_of_their_own_and_all_others_share_one() -> None:
    text = small_text(kept_tokens=4)
    dog, cat, tree = (text.tokenize([word])[0, 1].item() for word in ("dog", "cat", "tree"))
    text.token_ids.copy_(torch.tensor(sorted([dog, cat, START_TOKEN, END_TOKEN])))
    words = ["dog", "cat", "tree", "house"]
    contexts = dict(zip(words, text.encode(words), strict=True))
    assert tree not in text.token_ids
    assert torch.equal(contexts["tree"], contexts["house"])
    assert not torch.equal(contexts["dog"], contexts["cat"])
    assert not torch.equal(contexts["dog"], contexts["tree"])


def test_a_repeated_prompt_fills_the_context_and_an_empty_one_is_padded() -> None:
    config = TextConfig(width=8, heads=2, layers=1, context_length=10, pad_token=49407, repeat_prompt=True)
    rows = TextEncoder(config).tokenize(["a dog", "", "a dog " * 20]).tolist()
    assert rows[0] == [49406, 320, 1929, 49407, 320, 1929, 49407, 320, 1929, 49407]
    assert rows[1] == [49406] + [49407] * 9
    assert rows[2] == [49406, *[320, 1929] * 4, 49407]


def test_what_only_waits_for_weights_imports_no_compiler() -> None:
    code = """
import sys, torch
from core.config import load_config
from core.models.text_encoder import TextEncoder
with torch.device("meta"):
    TextEncoder(load_config("demo").text)
print([name for name in ("torch._dynamo", "sympy") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
