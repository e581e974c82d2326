"""Weighted prompts: ``(word)`` counts more, ``[word]`` less, ``(word:1.3)`` as much as it says.

A backslash before a bracket makes it a letter, and so does the lack of a partner: a prompt never fails.
``BREAK`` begins a new chunk. Source: the prompt syntax of AUTOMATIC1111's stable-diffusion-webui.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

STEP = 1.1  # what a pair of brackets multiplies by, or divides by
MAX_WEIGHT = 10.0  # of a word, whatever the brackets around it multiply to
_OPENING = {")": "(", "]": "["}
_TOKEN = re.compile(
    r"(?P<escaped>\\[()\[\]\\])|(?P<weight>:\s*(?P<number>[+-]?(?:\d+\.?\d*|\.\d+))\s*\))"
    r"|(?P<bracket>[()\[\]])|(?P<text>[^\\()\[\]:]+|.)",
    re.DOTALL,
)
_BREAK = re.compile(r"\s*\bBREAK\b\s*")


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a prompt whose words count ``weight`` times."""

    text: str
    weight: float = 1.0


def parse(prompt: str) -> list[list[Piece]]:
    """Return the pieces of a prompt, in one list for each part between BREAKs.

    A prompt without brackets, backslashes and BREAK is one piece, letter by letter as it was.
    """
    parts: list[list[Piece]] = [[]]
    for piece in _pieces(prompt):
        first, *others = _BREAK.split(piece.text)
        parts[-1].append(Piece(first, piece.weight))
        parts += [[Piece(text, piece.weight)] for text in others]
    return [[piece for piece in part if piece.text] for part in parts]


def _pieces(prompt: str) -> list[Piece]:
    tokens = list(_TOKEN.finditer(prompt))
    factors, closing = _pairs(tokens)
    pieces: list[Piece] = []
    weights = [1.0]  # of what is open here, the innermost last
    for index, token in enumerate(tokens):
        if index in factors:
            weights.append(weights[-1] * factors[index])
        elif index in closing:
            weights.pop()
        else:
            text = token["escaped"][1:] if token["escaped"] else token[0]
            weight = min(max(weights[-1], -MAX_WEIGHT), MAX_WEIGHT)
            if pieces and pieces[-1].weight == weight:
                text = pieces.pop().text + text
            pieces.append(Piece(text, weight))
    return pieces


def _pairs(tokens: list[re.Match[str]]) -> tuple[dict[int, float], set[int]]:
    """Match the brackets: return the factor of each opening one by its index, and the closing ones' indices.

    One without a partner is in neither, and those that it stands between pair up across it.
    """
    factors: dict[int, float] = {}
    closing: set[int] = set()
    open_at: list[int] = []
    for index, token in enumerate(tokens):
        text = ")" if token["weight"] else token["bracket"]
        if text in ("(", "["):
            open_at.append(index)
        elif text:
            partner = next((i for i in reversed(open_at) if tokens[i][0] == _OPENING[text]), None)
            if partner is None:
                continue
            del open_at[open_at.index(partner) :]
            own = float(token["number"]) if token["weight"] else STEP if text == ")" else 1.0 / STEP
            factors[partner] = own
            closing.add(index)
    return factors, closing
