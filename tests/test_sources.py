"""Every example picture has a known author and licence, and is fit to ship."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from annotators.maps import looks_inverted
from apps.page.masks import read_picture
from core.images import to_rgb

FOLDER = Path(__file__).parents[1] / "test_imgs"
FILES = sorted(
    path for path in FOLDER.iterdir() if path.name != "SOURCES.md" and not path.name.startswith(".")
)
LICENCES = {"public domain", "CC0 1.0", "MIT", "Apache-2.0"}
KINDS = {"photo", "silhouette", "toy", "edges", "drawing", "depth", "normal", "pose", "seg", "masked"}


def rows() -> dict[str, list[str]]:
    """Return the cells after the file name, of every row of the tables in SOURCES.md."""
    found: dict[str, list[str]] = {}
    for line in (FOLDER / "SOURCES.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and re.fullmatch(r"\S+\.\w+", cells[0]):
            assert cells[0] not in found, f"{cells[0]} is listed twice"
            found[cells[0]] = cells[1:]
    return found


def test_every_picture_is_listed_and_every_listed_picture_is_there() -> None:
    assert sorted(rows()) == [path.name for path in FILES]
    assert len(FILES) >= 10


@pytest.mark.parametrize("name", sorted(rows()))
def test_a_picture_has_words_an_author_a_licence_and_a_place(name: str) -> None:
    words, author, licence, place = rows()[name]
    assert words and author and place
    assert licence in LICENCES


def test_all_pictures_together_stay_small() -> None:
    assert sum(path.stat().st_size for path in FILES) < 3_000_000


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_picture_opens_and_has_its_kind(path: Path) -> None:
    picture = to_rgb(path)
    assert min(picture.shape[:2]) >= 300 and max(picture.shape[:2]) <= 640
    kind = path.name.partition("_")[0]
    assert kind in KINDS
    assert looks_inverted(picture) == (kind in {"silhouette", "drawing"})
    assert (kind == "masked") == bool(read_picture(path)[1].any())
    if kind == "edges":
        assert set(np.unique(picture)) == {0, 255}
