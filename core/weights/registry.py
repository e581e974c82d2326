"""The list of weight files: what each is, its source and licence, and where it lies on this computer."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import cast

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from core.errors import WeightsMissing

HOME = Path(__file__).parents[2] / "ckpts"  # the project's own folder: the registry and the bundled files
KINDS = ("base", "control", "detector")
SHOWN_ALTERNATIVES = 2  # in a message; the list command shows all
SHA256 = re.compile(r"[0-9a-f]{64}")


class RegistryError(ValueError):
    """The registry file holds an unknown key, a wrong type or an impossible value; names the row."""


@dataclass
class _Row:
    """One row as it stands in the YAML file; types are checked against this."""

    title: str = MISSING
    kind: str = MISSING
    licence: str = MISSING
    path: str = MISSING
    repo: str | None = None
    file: str | None = None
    revision: str = "main"
    size_bytes: int | None = None
    about_mb: float | None = None
    sha256: str | None = None
    licence_note: str | None = None
    non_commercial: bool = False
    alternatives: list[str] = field(default_factory=list)


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


@lru_cache(maxsize=4)  # reading takes 0.4 s, and the page asks for every detector
def _read(source: Path, changed_ns: int) -> tuple[dict[str, WeightFile], dict[str, tuple[str, ...]]]:
    try:
        content = OmegaConf.to_container(OmegaConf.load(source))
    except (OSError, OmegaConfBaseException, YAMLError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RegistryError(f"{source}: cannot be read ({reason}). Restore the file.") from error
    if not isinstance(content, dict) or set(content) - {"files", "bundles"} or "files" not in content:
        raise RegistryError(f"{source}: give the keys 'files' and 'bundles' only.")
    rows = content["files"]
    if not isinstance(rows, dict):
        raise RegistryError(f"{source}: files is not a mapping. Correct the file.")
    files = {str(name): _row(source, str(name), row) for name, row in rows.items()}
    return files, _bundles(source, content.get("bundles") or {}, files)


def _row(source: Path, name: str, content: object) -> WeightFile:
    place = f"{source}, row '{name}'"
    if not isinstance(content, dict):
        raise RegistryError(f"{place}: not a mapping of keys. Correct the file.")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(_Row), content)
        row = cast(_Row, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        key = f", key '{error.full_key}'" if getattr(error, "full_key", None) else ""
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RegistryError(f"{place}{key}: {reason}. Correct the file.") from error
    problem = _problem(row)
    if problem:
        raise RegistryError(f"{place}: {problem}. Correct the file.")
    values = asdict(row) | {"alternatives": tuple(row.alternatives)}
    return WeightFile(name=name, **values)


def _problem(row: _Row) -> str | None:
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
