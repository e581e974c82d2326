"""Embedding files of every known layout stand for their names; those for other models are told apart."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from core.errors import CheckpointMismatch
from core.models.text_encoder import TextEncoder
from core.prompts.embeddings import Embeddings, read_embedding
from core.prompts.encode import encode_prompts
from tests.prompts.test_encode import WORD, small_text

TEXT = small_text()
VECTORS = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))


def embeddings(folder: Path) -> Embeddings:
    return Embeddings(folder, width=32, title="Tiny test model")


def by_hand(text: TextEncoder, before: str, vectors: Tensor, after: str) -> Tensor:
    """Return the context of a prompt with ``vectors`` put between two texts."""
    count = len(vectors)
    tokens = text.tokenize([before + "dog " * count + after])
    x = text.embed(tokens)
    at = 1 + (text.tokenize([before])[0] != text.config.pad_token).sum() - 1
    x[0, at : at + count] = vectors
    return text.read(x)


def layouts(vectors: Tensor) -> dict[str, Mapping[str, Any]]:
    table = nn.ParameterDict({"*": nn.Parameter(vectors)})
    return {
        "web.pt": {"string_to_token": {"*": 265}, "string_to_param": {"*": vectors}, "name": "x", "step": 99},
        "older.pt": {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": table},
        "diffusers.bin": {"<toy>": vectors},
    }


@pytest.mark.parametrize("name", ["web.pt", "older.pt", "diffusers.bin", "new.safetensors"])
def test_every_layout_gives_its_vectors(name: str, tmp_path: Path) -> None:
    if name.endswith("safetensors"):
        save_file({"emb_params": VECTORS.half()}, tmp_path / name)
    else:
        torch.save(layouts(VECTORS)[name], tmp_path / name)
    torch.testing.assert_close(read_embedding(tmp_path / name), VECTORS, atol=2e-3, rtol=1e-3)


def test_one_vector_without_a_row_is_a_word(tmp_path: Path) -> None:
    torch.save({"<toy>": VECTORS[0]}, tmp_path / "toy.bin")
    assert torch.equal(read_embedding(tmp_path / "toy.bin"), VECTORS[:1])


def test_a_files_name_in_the_prompt_stands_for_its_vectors(tmp_path: Path) -> None:
    save_file({"emb_params": VECTORS}, tmp_path / "My-Style_v2.safetensors")
    found = encode_prompts(TEXT, ["a cat, my-style_v2, red"], embeddings(tmp_path))
    torch.testing.assert_close(found, by_hand(TEXT, "a cat, ", VECTORS, ", red"))
    plain = encode_prompts(TEXT, ["a cat, my style"], embeddings(tmp_path))
    assert torch.equal(plain, TEXT.encode(["a cat, my style"]))


def test_the_longest_name_counts(tmp_path: Path) -> None:
    save_file({"a": VECTORS}, tmp_path / "toy.safetensors")
    save_file({"a": -VECTORS}, tmp_path / "toy two.safetensors")
    found = encode_prompts(TEXT, ["toy two"], embeddings(tmp_path))
    torch.testing.assert_close(found, by_hand(TEXT, "", -VECTORS, ""))


def test_a_weight_counts_for_an_embedding_too(tmp_path: Path) -> None:
    save_file({"a": VECTORS}, tmp_path / "toy.safetensors")
    plain = encode_prompts(TEXT, ["a toy"], embeddings(tmp_path))[0]
    wanted = plain.clone()
    wanted[2:5] *= 0.5
    wanted *= plain.mean() / wanted.mean()
    torch.testing.assert_close(encode_prompts(TEXT, ["a (toy:0.5)"], embeddings(tmp_path))[0], wanted)


def test_an_embedding_is_never_cut_in_two(tmp_path: Path) -> None:
    save_file({"a": VECTORS}, tmp_path / "toy.safetensors")
    found = encode_prompts(TEXT, [WORD * 74 + "toy"], embeddings(tmp_path))[0]
    torch.testing.assert_close(found[77:], by_hand(TEXT, "", VECTORS, "")[0])


def test_a_file_that_comes_or_changes_is_seen_by_the_next_prompt(tmp_path: Path) -> None:
    own = embeddings(tmp_path)
    before = encode_prompts(TEXT, ["a toy"], own)
    save_file({"a": VECTORS}, tmp_path / "toy.safetensors")
    assert not torch.equal(encode_prompts(TEXT, ["a toy"], own), before)


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ({"emb_params": torch.zeros(2, 1024)}, r"for Stable Diffusion 2\.x \(1024 numbers a word; Tiny test"),
        ({"clip_g": torch.zeros(2, 1280), "clip_l": torch.zeros(2, 768)}, r"an embedding for SDXL"),
        ({"a": torch.zeros(2, 32), "b": torch.zeros(2, 32)}, r"not an embedding, which is one tensor"),
        ({"a": torch.zeros(2, 2, 2, 2)}, r"not an embedding, which is one tensor"),
        ({"a": torch.zeros(99, 32)}, r"an embedding of 99 vectors; a prompt takes at most 75"),
    ],
)
def test_a_file_for_something_else_is_told_when_its_name_is_used(
    state: dict[str, Tensor], told: str, tmp_path: Path
) -> None:
    save_file(state, tmp_path / "toy.safetensors")
    own = embeddings(tmp_path)
    encode_prompts(TEXT, ["a cat"], own)  # unused files are not even opened
    with pytest.raises(CheckpointMismatch, match=told):
        encode_prompts(TEXT, ["a toy"], own)


def test_a_pickle_with_code_of_its_own_is_refused(tmp_path: Path) -> None:
    torch.save({"string_to_param": {"*": VECTORS}, "evil": print}, tmp_path / "toy.pt")
    with pytest.raises(CheckpointMismatch, match="run code of its own"):
        read_embedding(tmp_path / "toy.pt")


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no such folder"):
        embeddings(tmp_path / "none")
