"""Large files in small parts, for ways that carry no large ones: split, and put together again, checked."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

PART_BYTES = 15 * 2**20
DIGEST = ".sha256"


def split(path: Path, folder: Path, part_bytes: int = PART_BYTES) -> list[Path]:
    """Write the parts of ``path`` to ``folder``, NAME.000 and so on, and NAME.sha256; return the parts."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in _parts(folder, path.name):
        old.unlink()
    digest = hashlib.sha256()
    made: list[Path] = []
    with path.open("rb") as source:
        while block := source.read(part_bytes):
            digest.update(block)
            made.append(folder / f"{path.name}.{len(made):03d}")
            made[-1].write_bytes(block)
    (folder / f"{path.name}{DIGEST}").write_text(digest.hexdigest())
    return made


def join(folder: Path, path: Path) -> None:
    """Put the parts that ``split`` wrote to ``folder`` together as ``path``, whole or not at all.

    Raises:
        ValueError: a part is missing or damaged; says what to do.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    digest, whole = hashlib.sha256(), path.with_name(f"{path.name}.partial")
    with whole.open("wb") as target:
        for part in _parts(folder, path.name):
            block = part.read_bytes()
            digest.update(block)
            target.write(block)
    expected = folder / f"{path.name}{DIGEST}"
    if not expected.is_file() or expected.read_text() != digest.hexdigest():
        whole.unlink()
        raise ValueError(
            f"{folder} does not hold all of {path.name}, or a part of it is damaged: bring all its parts and "
            f"{expected.name} there anew."
        )
    os.replace(whole, path)


def _parts(folder: Path, name: str) -> list[Path]:
    return sorted(folder.glob(f"{name}.[0-9][0-9][0-9]"))
