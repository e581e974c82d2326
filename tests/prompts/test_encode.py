"""The context of weighted, long and mixed prompts, against plain ones and against the arithmetic by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from core.config import TextConfig
from core.models.text_encoder import TextEncoder
from core.models.tokenizer import END_TOKEN, tokenizer
from core.prompts.encode import MAX_CHUNKS, encode_prompts

WORD = "dog "  # one token


def small_text(**changes: object) -> TextEncoder:
    torch.manual_seed(0)
    config = TextConfig(width=32, heads=2, layers=3, pad_token=END_TOKEN, **changes)  # type: ignore[arg-type]
    text = TextEncoder(config).eval().requires_grad_(False)
    torch.nn.init.normal_(text.ln_final.bias, std=0.3)  # else every row's mean is 0 and nothing to restore
    return text


TEXT = small_text()


def encode(*prompts: str, text: TextEncoder = TEXT) -> Tensor:
    return encode_prompts(text, prompts)


@pytest.mark.parametrize("prompt", ["a red car, by the sea: 12:30!", "", ":( a smile", "BREAKFAST"])
@pytest.mark.parametrize("repeat", [False, True])
def test_a_prompt_without_syntax_has_the_same_bits_as_ever(prompt: str, repeat: bool) -> None:
    text = small_text(repeat_prompt=repeat)
    prompts = [prompt, "blurry, bad hands"]
    assert torch.equal(encode_prompts(text, prompts), text.encode(prompts))


def test_a_weight_scales_its_words_rows_and_the_row_keeps_its_mean() -> None:
    plain = TEXT.encode(["a red car"])[0]
    weights = torch.ones(77, 1)
    weights[2] = 1.5  # start, a, red
    wanted = plain * weights
    wanted = wanted * (plain.mean() / wanted.mean())
    torch.testing.assert_close(encode("a (red:1.5) car")[0], wanted)
    assert not torch.allclose(wanted, plain)


def test_a_weight_of_one_changes_nothing_and_escapes_give_the_bracket_itself() -> None:
    assert torch.equal(encode("a (red:1) car"), TEXT.encode(["a red car"]))
    assert torch.equal(encode(r"a \(red\) car"), TEXT.encode(["a (red) car"]))


def test_a_weight_that_takes_everything_away_is_still_finite() -> None:
    assert encode("(" + WORD * 75 + ":0)").isfinite().all()
    assert encode("(a red car:-10)").isfinite().all()


def test_the_other_prompt_of_a_batch_is_not_touched_by_a_weight() -> None:
    assert torch.equal(encode("a (red:1.5) car", "blurry")[1], TEXT.encode(["a red car", "blurry"])[1])


def test_a_long_prompt_goes_on_in_further_chunks_each_encoded_by_itself() -> None:
    context = encode(WORD * 75 + "cat " * 10)
    assert context.shape == (1, 154, 32)
    first, second = context.split(77, dim=1)
    torch.testing.assert_close(first, TEXT.encode([WORD * 75]))
    torch.testing.assert_close(second, TEXT.encode(["cat " * 10]))


def test_the_shorter_prompt_goes_on_with_an_empty_one() -> None:
    context = encode("a dog", WORD * 100)
    assert context.shape == (2, 154, 32)
    torch.testing.assert_close(context[0], torch.cat([*TEXT.encode(["a dog", ""])]))


def test_a_model_whose_prompts_repeat_sees_the_shorter_prompt_again() -> None:
    text = small_text(repeat_prompt=True)
    short = encode("a dog", WORD * 100, text=text)[0]
    torch.testing.assert_close(short, text.encode(["a dog"])[0].repeat(2, 1))


def test_break_begins_a_new_chunk() -> None:
    wanted = torch.cat([*TEXT.encode(["a dog", "a cat"])])
    torch.testing.assert_close(encode("a dog BREAK a cat")[0], wanted)
    torch.testing.assert_close(encode("a dog BREAK a cat BREAK")[0], wanted)


def test_a_full_chunk_ends_at_a_comma_that_is_near() -> None:
    head, tail = WORD * 60 + ", ", WORD * 30
    context = encode(head + tail)[0]
    torch.testing.assert_close(context, torch.cat([*TEXT.encode([head, tail])]))
    far = WORD * 40 + ", " + WORD * 50  # the comma is 34 tokens from the end
    torch.testing.assert_close(
        encode(far)[0], torch.cat([*TEXT.encode([WORD * 40 + ", " + WORD * 34, WORD * 16])])
    )


def test_too_long_a_prompt_is_refused_with_its_length() -> None:
    assert encode(WORD * 75 * MAX_CHUNKS).shape[1] == 77 * MAX_CHUNKS
    with pytest.raises(ValueError, match=r"takes 17 chunks of 75 tokens: shorten it to at most 16"):
        encode(WORD * 75 * MAX_CHUNKS + "cat")


def test_clip_skip_leaves_out_the_last_layers_and_keeps_the_final_norm() -> None:
    tokens = TEXT.tokenize(["a red car"])
    x = TEXT.embed(tokens) + TEXT.positional_embedding
    mask = torch.full((77, 77), float("-inf")).triu_(1)
    after = []
    for block in TEXT.transformer.resblocks:
        x = block(x, mask)
        after.append(TEXT.ln_final(x))
    for clip_skip, wanted in enumerate(reversed(after), start=1):
        torch.testing.assert_close(small_text(clip_skip=clip_skip)(tokens), wanted)
    assert torch.equal(small_text(penultimate=True)(tokens), small_text(clip_skip=2)(tokens))
    assert torch.equal(small_text(penultimate=True, clip_skip=1)(tokens), TEXT(tokens))


def test_the_comma_is_the_published_token() -> None:
    assert [tokenizer(layout).encode(",") for layout in ("hf", "open_clip")] == [[267], [267]]
