"""The pictures of a folder, the names of what is made of them, and each one's prompt."""

from __future__ import annotations

import json
import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from core.images import FORMATS

SET_FOLDERS = ("source", "target")  # of a ControlNet training set; its paths begin with one of them


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture: its file, ``source``, the path below the input folder with slashes, and the output's name.

    ``name`` is a path with slashes, without a suffix. No two pictures of a folder share it.
    """

    path: Path
    source: str
    name: str


@dataclass(frozen=True, slots=True)
class Found:
    """What a folder holds: pictures in the order of their names, and the names of other files."""

    pictures: tuple[Picture, ...]
    others: tuple[str, ...]


@cache
def suffixes() -> frozenset[str]:
    """Return the endings, in small letters, of the files that can be read."""
    return frozenset(s for s, kind in Image.registered_extensions().items() if kind in FORMATS)


def find_pictures(
    folder: Path, output: Path, *, recursive: bool = False, reserved: Sequence[str] = ()
) -> Found:
    """Find the pictures of ``folder``, and with ``recursive`` of the folders in it; ``output`` is left out.

    Hidden files and folders are passed over. ``reserved`` are top folders that the output has for itself.

    Raises:
        ValueError: the folder is missing, unreadable or holds no picture; says what to do.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise ValueError(f"--input {folder} {what}: give a folder with pictures.")
    files = _files(folder, output.resolve(), recursive)
    sources = sorted(file for file in files if _suffix(file) in suffixes())
    others = tuple(sorted(set(files) - set(sources)))
    if not sources:
        seen = f"{len(others)} other files, such as {others[0]}" if others else "nothing that can be read"
        deeper = "" if recursive else ", or --recursive to look into the folders in it"
        raise ValueError(
            f"--input {folder} holds no pictures, but {seen}: give a folder with PNG, JPEG, WebP, GIF, BMP "
            f"or TIFF files{deeper}."
        )
    names = output_names(sources, reserved)
    pictures = (Picture(folder / s, s, name) for s, name in zip(sources, names, strict=True))
    return Found(tuple(pictures), others)


def _files(folder: Path, output: Path, recursive: bool) -> list[str]:
    def refuse(error: OSError) -> None:
        raise ValueError(f"{error.filename} cannot be read ({error.strerror}): give a readable --input.")

    found = []
    for place, folders, files in os.walk(folder, onerror=refuse):
        here = Path(place)
        folders[:] = sorted(f for f in folders if not _hidden(f) and (here / f).resolve() != output)
        if not recursive:
            folders.clear()
        found += [(here / file).relative_to(folder).as_posix() for file in files if not _hidden(file)]
    return found


def _hidden(name: str) -> bool:
    return name.startswith(".")


def _suffix(source: str) -> str:
    return PurePosixPath(source).suffix.lower()


def output_names(sources: Sequence[str], reserved: Sequence[str] = ()) -> list[str]:
    """Name what is made of each picture: its own path without the ending, where no other one shares that.

    Pictures that differ in the ending alone keep it: of a.jpg and a.png come a.jpg.png and a.png.png. Letters
    in capitals count as small ones, since some disks think so.
    """
    stems = [str(PurePosixPath(source).with_suffix("")) for source in sources]
    shared = Counter(_plain(stem) for stem in stems)
    taken: set[str] = set()
    names = []
    for source, stem in zip(sources, stems, strict=True):
        name = source if shared[_plain(stem)] > 1 else stem
        top, slash, _ = name.partition("/")
        if slash and _plain(top) in reserved:
            name = f"in_{name}"
        while _plain(name) in taken:
            name += "_"
        taken.add(_plain(name))
        names.append(name)
    return names


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


class Prompts:
    """Each picture's prompt: from a file of JSON lines, else a .txt beside it, else the one for all."""

    def __init__(self, file: Path | None = None, for_all: str | None = None, *, bare: bool = True) -> None:
        """Read ``file``; with ``bare`` a picture is also found in it by its name without folders.

        Raises:
            ValueError: the file cannot be read; names the line and what belongs there.
        """
        self.file, self.for_all, self.bare = file, for_all, bare
        self._by_name: dict[str, set[str]] = {}
        if file is not None:
            for name, prompt in read_prompts(file):
                for key in self._keys(name):
                    self._by_name.setdefault(key, set()).add(prompt)

    def of(self, picture: Picture) -> str | None:
        """Return the picture's prompt, or None where none was given.

        Raises:
            ValueError: several prompts fit, or the .txt is no text; says what to do.
        """
        for key in (picture.source, _stem(picture.source)):
            found = self._by_name.get(key, set())
            if len(found) > 1:
                raise ValueError(f"{self.file} has several prompts for {key}: keep one.")
            if found:
                return next(iter(found))
        beside = picture.path.with_suffix(".txt")
        if not beside.is_file():
            return self.for_all
        try:
            return " ".join(beside.read_text(encoding="utf-8-sig").split())
        except UnicodeDecodeError:
            raise ValueError(f"{beside.name} beside it is no UTF-8 text: save it as UTF-8.") from None

    def _keys(self, name: str) -> set[str]:
        path = PurePosixPath(name.replace("\\", "/"))
        if len(path.parts) > 1 and path.parts[0] in SET_FOLDERS:
            path = path.relative_to(path.parts[0])
        whole = {str(path), _stem(str(path))}
        return whole | {path.name, path.stem} if self.bare else whole


def _stem(source: str) -> str:
    return str(PurePosixPath(source).with_suffix(""))


def read_prompts(file: Path) -> list[tuple[str, str]]:
    """Read JSON lines with a "source" or a "name", and a "prompt", as pairs.

    Raises:
        ValueError: names the line and what belongs there.
    """
    return [
        (str(line.get("source", line.get("name"))), str(line["prompt"])) for line in read_json_lines(file)
    ]


def read_json_lines(file: Path) -> list[dict[str, Any]]:
    """Read a prompt.json: a JSON object a line, each with a prompt and the picture's name.

    Raises:
        ValueError: names the line and what belongs there.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror}): give a file of prompts.") from None
    except UnicodeDecodeError:
        raise ValueError(f"{file} is no UTF-8 text: save it as UTF-8.") from None
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            name = entry.get("source", entry.get("name"))
            fits = isinstance(name, str) and name and isinstance(entry["prompt"], str)
        except (ValueError, KeyError, AttributeError, RecursionError):
            fits = False
        if not fits:
            raise ValueError(
                f"{file}, line {number} is {line.strip()!r:.60}: give "
                '{"source": "NAME.png", "prompt": "..."} on each line.'
            )
        found.append(entry)
    return found
