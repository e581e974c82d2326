"""Brackets weigh words as the web UI's do; whatever has no partner is text, and nothing fails."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest

from core.prompts.syntax import MAX_WEIGHT, Piece, parse


def one_part(prompt: str) -> list[tuple[str, Any]]:
    (part,) = parse(prompt)
    return [(piece.text, pytest.approx(piece.weight)) for piece in part]


@pytest.mark.parametrize(
    ("prompt", "pieces"),
    [
        ("a cat", [("a cat", 1.0)]),
        ("a (cat)", [("a ", 1.0), ("cat", 1.1)]),
        ("a ((cat))", [("a ", 1.0), ("cat", 1.21)]),
        ("a [cat] sits", [("a ", 1.0), ("cat", 1 / 1.1), (" sits", 1.0)]),
        ("(cat:1.2)", [("cat", 1.2)]),
        ("(cat : .5 )", [("cat ", 0.5)]),
        ("(a (cat:1.5) sits:2)", [("a ", 2.0), ("cat", 3.0), (" sits", 2.0)]),
        ("([cat])", [("cat", 1.0)]),
        ("(cat:-1)", [("cat", -1.0)]),
        (r"a \(cat\) \[sits\]", [("a (cat) [sits]", 1.0)]),
        (r"(a \(cat\):1.2)", [("a (cat)", 1.2)]),
        (r"back\\slash \n", [(r"back\slash \n", 1.0)]),
        ("time 12:30", [("time 12:30", 1.0)]),
        ("()", []),
    ],
)
def test_brackets_weigh_what_stands_in_them(prompt: str, pieces: list[tuple[str, float]]) -> None:
    assert one_part(prompt) == pieces


@pytest.mark.parametrize(
    "prompt", [":(", "a ) b", "((", "]]", "a :1.2) b", "[cat:0.5", ":-) :1)", "(]", "\\"]
)
def test_brackets_without_a_partner_are_text(prompt: str) -> None:
    assert one_part(prompt) == [(prompt, 1.0)]


def test_pairs_match_across_a_bracket_that_has_no_partner() -> None:
    assert one_part("(a [b)") == [("a [b", 1.1)]
    assert one_part("(a:1.2.3)") == [("a:1.2.3", 1.1)]


def test_weights_stay_within_bounds_however_deep_the_brackets() -> None:
    assert one_part("(" * 2000 + "cat" + ")" * 2000) == [("cat", MAX_WEIGHT)]
    assert one_part("(cat:-99999999)") == [("cat", -MAX_WEIGHT)]


def test_break_parts_the_prompt_as_a_word_of_its_own() -> None:
    assert parse("a BREAK (b\nBREAK c)") == [[Piece("a")], [Piece("b", 1.1)], [Piece("c", 1.1)]]
    assert parse("BREAKFAST, break") == [[Piece("BREAKFAST, break")]]


def test_any_text_is_a_prompt_and_none_takes_long() -> None:
    rng = random.Random(0)
    began = time.perf_counter()
    for _ in range(300):
        prompt = "".join(rng.choice("ab ()[]:1.\\,-") for _ in range(60))
        text = "".join(piece.text for part in parse(prompt) for piece in part)
        assert [c for c in text if c in "ab"] == [c for c in prompt if c in "ab"]
    parse("([" * 5000)
    parse("(a:1)" * 2000)
    assert time.perf_counter() - began < 5
