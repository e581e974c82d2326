"""The list of weight files: what each is, its source and licence, and where it lies on this computer."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import lru_cache
from pathlib import Path, PurePosixPath
from types import NoneType
from typing import Any, get_args, get_type_hints

import yaml

from core.errors import WeightsMissing

HOME = Path(__file__).parents[2] / "ckpts"  # the project's own folder: the registry and the bundled files
KINDS = ("base", "control", "detector")
SHOWN_ALTERNATIVES = 2  # in a message; the list command shows all
SHA256 = re.compile(r"[0-9a-f]{64}")


class RegistryError(ValueError):
    """The registry file holds an unknown key, a wrong type or an impossible value; names the row."""


@dataclass(frozen=True, slots=True)
class WeightFile:
    """One weight file.

    ``path`` is its name in the ckpts folder; ``repo`` and ``file`` are its place on the hub, None for a file
    that comes with the project. ``size_bytes`` is exact, ``about_mb`` (10**6 bytes) a rounding; None is
    unknown, as with ``sha256``. ``alternatives`` name other files, in the same folder, that do as well.
    """

    name: str
    title: str
    kind: str
    licence: str
    path: str
    repo: str | None = None
    file: str | None = None
    revision: str = "main"
    size_bytes: int | None = None
    about_mb: float | None = None
    sha256: str | None = None
    licence_note: str | None = None
    non_commercial: bool = False
    alternatives: tuple[str, ...] = ()

    @property
    def size_text(self) -> str:
        """The size for people."""
        if self.size_bytes is not None:
            return size_text(self.size_bytes)
        return f"about {size_text(round(self.about_mb * 1e6))}" if self.about_mb else "size unknown"

    @property
    def licence_text(self) -> str:
        """The licence for people; a ban on commercial use is said plainly."""
        parts = [self.licence, "NOT for commercial use" if self.non_commercial else None, self.licence_note]
        return "; ".join(part for part in parts if part)


def size_text(size_bytes: int) -> str:
    """Write a number of bytes in decimal MB or GB, three digits."""
    unit, factor = ("GB", 1e9) if size_bytes >= 1e9 else ("MB", 1e6)
    return f"{size_bytes / factor:.3g} {unit}"


def ckpts_folder() -> Path:
    """Return the folder of the weights: ``CONTROLNET_CKPTS``, else the project's ckpts."""
    given = os.environ.get("CONTROLNET_CKPTS", "").strip()
    return Path(given).expanduser() if given else HOME


@dataclass(frozen=True, slots=True)
class Registry:
    """All weight files by name, and the bundles of names that ``get`` takes.

    Files are looked for in ``folder``, then in ``home``, where the bundled ones are.
    """

    files: Mapping[str, WeightFile]
    bundles: Mapping[str, tuple[str, ...]]
    folder: Path
    home: Path

    @classmethod
    def load(cls, path: Path | None = None) -> Registry:
        """Read the registry; ``path`` is a YAML file, by default ckpts/registry.yaml.

        Raises:
            RegistryError: names the file, the row, and the unknown key, wrong type or impossible value.
        """
        source = path or HOME / "registry.yaml"
        try:
            changed_ns = source.stat().st_mtime_ns
        except OSError:
            changed_ns = 0  # reading it says what is wrong
        files, bundles = _read(source, changed_ns)
        return cls(files, bundles, ckpts_folder(), source.parent)

    def __getitem__(self, name: str) -> WeightFile:
        """Return the row called ``name``.

        Raises:
            ValueError: no such row; lists near matches.
        """
        if name not in self.files:
            raise ValueError(f"{name}: no such weights. {self._near(name, self.files)}")
        return self.files[name]

    def expand(self, names: Iterable[str]) -> list[WeightFile]:
        """Return the rows for names of rows and bundles, each once; "sd15-canny" means "sd15" and "canny".

        Raises:
            ValueError: a name is unknown; lists near matches.
        """
        found: dict[str, WeightFile] = {}
        for name in names:
            known = name in self.files or name in self.bundles
            for part in [name] if known or "-" not in name else name.split("-"):
                if part not in self.files and part not in self.bundles:
                    raise ValueError(
                        f"{name}: no such weights. {self._near(part, [*self.files, *self.bundles])}"
                    )
                for member in self.bundles.get(part, (part,)):
                    found[member] = self.files[member]
        return list(found.values())

    def find(self, name: str) -> Path | None:
        """Return where the file, or one that does as well, lies; None if nowhere."""
        row = self[name]
        for candidate in (row.path, *row.alternatives):
            for folder in (self.folder, self.home):
                if (folder / candidate).is_file():
                    return folder / candidate
        return None

    def is_bundled(self, path: Path) -> bool:
        """Say whether this file comes with the project."""
        return any(row.repo is None and path == self.home / row.path for row in self.files.values())

    def locate(self, name: str) -> Path:
        """Return where the file, or one that does as well, lies.

        Raises:
            WeightsMissing: with the file, its size, its licence and the command that gets it.
        """
        found = self.find(name)
        if found is None:
            raise WeightsMissing(self.explain_missing(name))
        return found

    def explain_missing(self, name: str) -> str:
        """Say what the file is and how to get it."""
        row = self[name]
        if row.repo is None:
            return (
                f"{row.title} ({name}) is not on this computer: {row.path} comes with the project.\n"
                f"Restore it: git checkout -- {self.home.name}/{row.path}"
            )
        lines = [
            f"{row.title} ({name}) is not on this computer.",
            f"File: {row.path}, {row.size_text}, from {row.repo}.",
            f"Licence: {row.licence_text}.",
            f"Get it: python -m core.weights get {name}",
        ]
        others = f" or {', '.join(row.alternatives[:SHOWN_ALTERNATIVES])}" if row.alternatives else ""
        lines.append(f"Or put {row.path}{others} into {self.folder}.")
        return "\n".join(lines)

    @staticmethod
    def _near(name: str, names: Iterable[str]) -> str:
        listed = sorted(names)
        near = difflib.get_close_matches(name, listed, n=5, cutoff=0.5)
        near += [other for other in listed if name and name in other and other not in near][:5]
        hint = f"Did you mean {', '.join(near)}? " if near else ""
        return f"{hint}See all: python -m core.weights list"


@lru_cache(maxsize=4)  # the page asks for every detector
def _read(source: Path, changed_ns: int) -> tuple[dict[str, WeightFile], dict[str, tuple[str, ...]]]:
    try:
        # OmegaConf, which checks types too, takes 0.17 s: a tenth of what SD 1.5 takes to load.
        content = yaml.load(source.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, yaml.YAMLError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RegistryError(f"{source}: cannot be read ({reason}). Restore the file.") from error
    if not isinstance(content, dict) or set(content) - {"files", "bundles"} or "files" not in content:
        raise RegistryError(f"{source}: give the keys 'files' and 'bundles' only.")
    rows = content["files"]
    if not isinstance(rows, dict):
        raise RegistryError(f"{source}: files is not a mapping. Correct the file.")
    files = {str(name): _row(source, str(name), row) for name, row in rows.items()}
    return files, _bundles(source, content.get("bundles") or {}, files)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Plain YAML whose mappings must not name a key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping; of two values under one key the first would be lost."""
        seen = set[str]()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.YAMLError(f"the key {key.value!r} stands there twice")
            seen.add(key.value)
        return dict(super().construct_mapping(node, deep))


def _row(source: Path, name: str, content: object) -> WeightFile:
    place = f"{source}, row '{name}'"
    if not isinstance(content, dict):
        raise RegistryError(f"{place}: not a mapping of keys. Correct the file.")
    columns = _columns()
    for key, value in content.items():
        if key not in columns:
            raise RegistryError(f"{place}: there is no key {key!r}. Give {', '.join(columns)}.")
        if not columns[key].takes(value):
            wanted = columns[key].words
            raise RegistryError(f"{place}, key '{key}': {value!r} is not {wanted}. Correct the file.")
    missing = [key for key, column in columns.items() if column.needed and key not in content]
    if missing:
        raise RegistryError(f"{place}: the key '{missing[0]}' is missing. Correct the file.")
    lists = {key: tuple(value) for key, value in content.items() if isinstance(value, list)}
    row = WeightFile(name=name, **(content | lists))
    problem = _problem(row)
    if problem:
        raise RegistryError(f"{place}: {problem}. Correct the file.")
    return row


@dataclass(frozen=True, slots=True)
class _Column:
    """What one key of a row may hold: values of ``types``, or a list of texts."""

    types: tuple[type, ...]
    needed: bool
    words: str

    @classmethod
    def of(cls, hint: Any, needed: bool) -> _Column:
        types = get_args(hint) or (hint,)
        if hint == tuple[str, ...]:
            return cls((list,), needed, "a list of texts")
        names = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
        words = " or ".join(names[each] for each in types if each is not NoneType)
        return cls((*types, int) if float in types else types, needed, words)

    def takes(self, value: object) -> bool:
        if isinstance(value, list):
            return list in self.types and all(isinstance(each, str) for each in value)
        return type(value) in self.types


@lru_cache(maxsize=1)
def _columns() -> dict[str, _Column]:
    hints = get_type_hints(WeightFile)
    rows = [each for each in fields(WeightFile) if each.name != "name"]
    return {each.name: _Column.of(hints[each.name], each.default is MISSING) for each in rows}


def _problem(row: WeightFile) -> str | None:
    if row.kind not in KINDS:
        return f"kind is {row.kind!r}: give one of {', '.join(KINDS)}"
    if (row.repo is None) != (row.file is None):
        return "give both repo and file, or neither for a file that comes with the project"
    if row.sha256 is not None and not SHA256.fullmatch(row.sha256):
        return f"sha256 is {row.sha256!r}: give 64 hexadecimal digits in lower case"
    for size in (row.size_bytes, row.about_mb):
        if size is not None and size <= 0:
            return f"a size is {size}: give a positive number"
    for path in (row.path, *row.alternatives):
        pure = PurePosixPath(path)
        if not path or pure.is_absolute() or ".." in pure.parts or "\\" in path:
            return f"path is {path!r}: give a relative path inside the ckpts folder"
    return None


def _bundles(source: Path, content: object, files: Mapping[str, WeightFile]) -> dict[str, tuple[str, ...]]:
    if not isinstance(content, dict):
        raise RegistryError(f"{source}: bundles is not a mapping. Correct the file.")
    for name, members in content.items():
        unknown = [m for m in members if m not in files] if isinstance(members, list) else [members]
        if unknown:
            raise RegistryError(f"{source}, bundle '{name}': no row {unknown[0]!r}. Correct the file.")
    return {str(name): tuple(members) for name, members in content.items()}
