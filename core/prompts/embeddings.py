"""Textual inversion: words that somebody else's training found, one file each, used by the file's name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from core.errors import CheckpointMismatch
from core.weights.formats import open_tensors
from core.weights.recognise import recognise
from core.weights.registry import ckpts_folder

FOLDER = "embeddings"  # in the ckpts folder
SUFFIXES = (".safetensors", ".pt", ".bin")
FAMILIES = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 1280: "SDXL"}
MAX_VECTORS = 75  # what a chunk of a prompt holds
SDXL_KEYS = {"clip_g", "clip_l"}

Encode = Callable[[str], Sequence[int]]


@dataclass(frozen=True, slots=True)
class Name:
    """A file's name as the tokenizer sees it."""

    ids: tuple[int, ...]
    path: Path


class Embeddings:
    """The embeddings of a folder, looked for anew in every prompt, so that a file may come at any time."""

    def __init__(self, folder: Path | None = None, *, width: int, title: str) -> None:
        """Look in ``folder``, by default ckpts/embeddings, for vectors of the model's ``width``.

        Raises:
            ValueError: a folder was given that is not there.
        """
        if folder is not None and not folder.is_dir():
            raise ValueError(f"embeddings is {folder}: there is no such folder. Give another.")
        self.folder = folder
        self._width, self._title = width, title
        self._read: dict[tuple[Path, int], Tensor] = {}

    def names(self, encode: Encode) -> dict[int, list[Name]]:
        """Return the files by the first token of their names, the longest names first."""
        folder = ckpts_folder() / FOLDER if self.folder is None else self.folder
        files = sorted(folder.iterdir()) if folder.is_dir() else []
        found: dict[int, list[Name]] = {}
        for path in files:
            ids = tuple(encode(path.stem)) if path.suffix.lower() in SUFFIXES else ()
            if ids:
                found.setdefault(ids[0], []).append(Name(ids, path))
        return {first: sorted(names, key=lambda n: -len(n.ids)) for first, names in found.items()}

    def load(self, path: Path) -> Tensor:
        """Return the vectors (n, width) of a file; the caller copies them to where they are needed.

        Raises:
            CheckpointMismatch: the file is no embedding, or one for another kind of model.
        """
        key = (path, path.stat().st_mtime_ns)
        if key not in self._read:
            self._read[key] = self._checked(path, read_embedding(path))
        return self._read[key]

    def _checked(self, path: Path, vectors: Tensor) -> Tensor:
        count, width = vectors.shape
        if count > MAX_VECTORS:
            raise CheckpointMismatch(
                f"{path}: an embedding of {count} vectors; a prompt takes at most {MAX_VECTORS}. Leave "
                f"“{path.stem}” out of the prompt."
            )
        if width == self._width:
            return vectors
        family = FAMILIES.get(width, "another model")
        raise CheckpointMismatch(
            f"{path}: an embedding for {family} ({width} numbers a word; {self._title} takes {self._width}). "
            f"Leave “{path.stem}” out of the prompt, or get one for {FAMILIES.get(self._width, self._title)}."
        )


def read_embedding(path: Path) -> Tensor:
    """Return the vectors (n, width) of an embedding file, float32.

    Both layouts are read: the web UI's, ``string_to_param`` with one entry, and a single tensor of any name.

    Raises:
        CheckpointMismatch: the file is something else; says what it seems to be.
    """
    file = open_tensors(path)
    if set(file.tensors) >= SDXL_KEYS:
        raise CheckpointMismatch(
            f"{path}: an embedding for SDXL. Leave “{path.stem}” out of the prompt, or get one that fits."
        )
    vectors = [key for key, info in file.tensors.items() if len(info.shape) in (1, 2)]
    if len(file.tensors) != 1 or not vectors or not file.tensors[vectors[0]].dtype.is_floating_point:
        raise CheckpointMismatch(
            f"{path}: seems to be {recognise(file).title}, not an embedding, which is one tensor of one or "
            f"two dimensions. Take it out of {path.parent}."
        )
    value = file.read(vectors[0]).float()
    return value.reshape(-1, value.shape[-1]).clone()
