"""From prompts to the context: chunks of 75 tokens, each encoded by itself, weighted and put end to end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from core.models.text_encoder import TextEncoder, frame
from core.models.tokenizer import END_TOKEN, START_TOKEN, tokenizer
from core.prompts.embeddings import Embeddings, Name
from core.prompts.syntax import parse

MAX_CHUNKS = 16  # of a prompt; each adds 77 rows that every step attends to
# A chunk that is full ends at a comma, if one of its last tokens is a comma, so that no phrase is cut in two.
COMMA_WITHIN = 20


@dataclass(frozen=True, slots=True, eq=False)
class Token:
    """A place in the context: a token of the vocabulary or, where ``vector`` (width,) is given, that."""

    id: int
    weight: float = 1.0
    vector: Tensor | None = None


def encode_prompts(text: TextEncoder, prompts: Sequence[str], embeddings: Embeddings | None = None) -> Tensor:
    """Return the context (B, 77 * n, width) of the prompts; n is the most chunks that any of them needs.

    A prompt that needs fewer goes on with empty chunks, or with its own again where the model's prompts
    repeat.

    Raises:
        ValueError: a prompt is too long; says by how much.
        CheckpointMismatch: a file of ``embeddings`` that a prompt names cannot be used.
    """
    chunked = [_chunks(text, prompt, embeddings) for prompt in prompts]
    count = max(map(len, chunked))
    rows = [_row(text, chunk) for chunks in chunked for chunk in _padded(text, chunks, count)]
    device = text.positional_embedding.device
    x = text.embed(torch.tensor([[token.id for token in row] for row in rows], device=device))
    for place, row in zip(x, rows, strict=True):
        for index, token in enumerate(row):
            if token.vector is not None:
                place[index] = token.vector.to(x)
    context = _weighted(text.read(x), torch.tensor([[token.weight for token in row] for row in rows]))
    return rearrange(context, "(b n) t d -> b (n t) d", n=count)


def count_chunks(text: TextEncoder, prompts: Sequence[str], embeddings: Embeddings | None = None) -> int:
    """Return how many chunks the context of the prompts has, without encoding them; raises as above."""
    return max(len(_chunks(text, prompt, embeddings)) for prompt in prompts)


def _weighted(context: Tensor, weights: Tensor) -> Tensor:
    """Scale each row's places (B, t) and give the row its old mean back, as the web UI does."""
    changed = [i for i, row in enumerate(weights) if bool((row != 1.0).any())]
    if not changed:
        return context
    context = context.clone()
    for i in changed:
        before = context[i].float()
        after = before * weights[i, :, None].to(before)
        ratio = before.mean() / after.mean()
        context[i] = (after * ratio if bool(ratio.isfinite()) else after).to(context)
    return context


def _padded(text: TextEncoder, chunks: list[list[Token]], count: int) -> Iterator[list[Token]]:
    for i in range(count):
        repeats = text.config.repeat_prompt
        yield chunks[i % len(chunks)] if repeats else chunks[i] if i < len(chunks) else []


def _row(text: TextEncoder, chunk: list[Token]) -> list[Token]:
    return frame(text.config, chunk, Token(START_TOKEN), Token(END_TOKEN), Token(text.config.pad_token))


def _chunks(text: TextEncoder, prompt: str, embeddings: Embeddings | None) -> list[list[Token]]:
    """Split a prompt into chunks, at least one."""
    encode = tokenizer(text.config.layout).encode
    names = embeddings.names(encode) if embeddings else {}
    comma, limit = encode(",")[0], text.config.context_length - 2
    chunks: list[list[Token]] = []
    for part in parse(prompt):
        groups = (
            group for piece in part for group in _groups(encode(piece.text), piece.weight, names, embeddings)
        )
        chunks += _wrap(groups, comma, limit)
    if len(chunks) > 1 and not chunks[-1]:
        chunks.pop()  # the prompt ends with BREAK
    if len(chunks) > MAX_CHUNKS:
        raise ValueError(
            f"The prompt takes {len(chunks)} chunks of {limit} tokens: shorten it to at most {MAX_CHUNKS}, "
            "or take out some BREAKs."
        )
    return chunks


def _groups(
    ids: Sequence[int], weight: float, names: dict[int, list[Name]], embeddings: Embeddings | None
) -> Iterator[list[Token]]:
    """Yield the tokens one by one, but the vectors of an embedding's name together."""
    at = 0
    while at < len(ids):
        here = (n for n in names.get(ids[at], ()) if tuple(ids[at : at + len(n.ids)]) == n.ids)
        name = next(here, None)
        if name is None or embeddings is None:
            yield [Token(ids[at], weight)]
            at += 1
        else:
            yield [Token(END_TOKEN, weight, vector) for vector in embeddings.load(name.path)]
            at += len(name.ids)


def _wrap(groups: Iterable[list[Token]], comma: int, limit: int) -> list[list[Token]]:
    """Fill chunks of at most ``limit`` tokens."""
    chunks: list[list[Token]] = []
    chunk: list[Token] = []
    last_comma = -1
    for group in groups:
        if group[0].id == comma:
            last_comma = len(chunk)
        elif len(chunk) == limit and last_comma >= max(0, limit - COMMA_WITHIN):
            chunks.append(chunk[: last_comma + 1])
            chunk, last_comma = chunk[last_comma + 1 :], -1
        if len(chunk) + len(group) > limit:
            chunks.append(chunk)
            chunk, last_comma = [], -1
        chunk = chunk + group
    return [*chunks, chunk]
