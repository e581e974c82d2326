"""Your own training data: pairs of a hint and the picture it stands for, in the format of fill50k."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from core.errors import SuiteError
from core.images import SIZE_MULTIPLE, resize, to_rgb

INDEX = "prompt.json"
KEYS = ("source", "target", "prompt")
SHOWN = 100  # lines of a report; the file has them all
REPORT = "problems.txt"
CHECKED = "checked.txt"
SAME_SHAPE = 0.02  # by so much the ratios of sides may differ, since sides are rounded to pixels
READERS = 4

Size = tuple[int, int]  # height, width


@dataclass(frozen=True, slots=True)
class Pair:
    """One line of prompt.json, with the paths of its two pictures."""

    line: int
    source: Path
    target: Path
    prompt: str


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a line or a picture; ``kind`` is what it is counted under."""

    line: int
    kind: str
    what: str

    def __str__(self) -> str:
        """Name the line and what is wrong."""
        return f"line {self.line}: {self.what}"


def read_index(folder: Path) -> tuple[list[Pair], list[Problem]]:
    """Read prompt.json: a JSON object a line, paths relative to ``folder``. Opens no picture.

    Raises:
        ValueError: there is no such file, or no line in it; says what belongs there.
    """
    path = folder / INDEX
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "no UTF-8 text"
        raise ValueError(
            f"{path} cannot be read ({why}): give a folder with a {INDEX} of lines such as "
            '{"source": "source/0.png", "target": "target/0.png", "prompt": "a red circle"}.'
        ) from None
    pairs, problems = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        found = _parse(line)
        if isinstance(found, str):
            problems.append(Problem(number, "broken lines", found))
        else:
            source, target = folder / found["source"], folder / found["target"]
            pairs.append(Pair(number, source, target, found["prompt"]))
    if not pairs and not problems:
        raise ValueError(f"{path} is empty: give a line for each pair.")
    return pairs, problems


def _parse(line: str) -> dict[str, str] | str:
    """Return what a line holds, or what is wrong with it."""
    try:
        found: Any = json.loads(line)
    except (ValueError, RecursionError):
        return f"no JSON object: {line.strip()[:60]}"
    if not isinstance(found, dict):
        return f"no JSON object but {type(found).__name__}"
    wrong = [key for key in KEYS if not isinstance(found.get(key), str)]
    wrong += [key for key in KEYS[:2] if found.get(key) == ""]
    return f"no text under {', '.join(wrong)}" if wrong else {key: found[key] for key in KEYS}


@dataclass(frozen=True, slots=True)
class PairFolder:
    """The pairs of a folder, each brought to ``size`` (height, width) when it is read."""

    folder: Path
    pairs: tuple[Pair, ...]
    size: Size

    def __len__(self) -> int:
        """Return how many pairs there are."""
        return len(self.pairs)

    def hint(self, index: int) -> NDArray[np.uint8]:
        """Return the hint of a pair, (H, W, 3) uint8 RGB.

        Raises:
            SuiteError: the picture can no longer be read; names it and says what to do.
        """
        return fit(self._read(index, self.pairs[index].source), self.size, is_hint=True)

    def target(self, index: int) -> NDArray[np.uint8]:
        """Return the target of a pair, (H, W, 3) uint8 RGB.

        Raises:
            SuiteError: the picture can no longer be read; names it and says what to do.
        """
        return fit(self._read(index, self.pairs[index].target), self.size)

    def _read(self, index: int, path: Path) -> NDArray[np.uint8]:
        try:
            return to_rgb(path)
        except (ValueError, OSError) as error:
            raise SuiteError(
                f"{self.folder / INDEX}, line {self.pairs[index].line}: {path} can no longer be read. "
                f"{error} Mend it or take the line out, then give the same command again."
            ) from error


def fit(image: NDArray[np.uint8], size: Size, *, is_hint: bool = False) -> NDArray[np.uint8]:
    """Scale (h, w, 3) so that it just covers ``size`` and cut the middle out.

    A hint that grows is interpolated linearly: Lanczos would put seams beside its lines.
    """
    height, width = image.shape[:2]
    scale = max(size[0] / height, size[1] / width)
    scaled = (max(size[0], round(height * scale)), max(size[1], round(width * scale)))
    image = resize(image, scaled, cv2.INTER_LINEAR if is_hint and scale > 1 else None)
    top, left = (scaled[0] - size[0]) // 2, (scaled[1] - size[1]) // 2
    return image[top : top + size[0], left : left + size[1]]


def _look(pair: Pair) -> tuple[list[Problem], Size | None]:
    """Read both pictures of a pair whole; return what is wrong with them, and the target's size."""
    problems: list[Problem] = []
    sizes: list[Size] = []
    for path in (pair.source, pair.target):
        if not path.is_file():
            problems.append(Problem(pair.line, "missing files", f"{path} is not there"))
            continue
        try:
            height, width = to_rgb(path).shape[:2]
        except (ValueError, OSError) as error:
            problems.append(Problem(pair.line, "unreadable pictures", f"{path}: {error}"))
            continue
        sizes.append((height, width))
        if min(height, width) < SIZE_MULTIPLE:
            told = f"{path} is {width}x{height} px: give at least {SIZE_MULTIPLE} a side"
            problems.append(Problem(pair.line, "pictures of a wrong size", told))
    if len(sizes) == 2 and abs(sizes[0][0] * sizes[1][1] / (sizes[0][1] * sizes[1][0]) - 1) > SAME_SHAPE:
        (h, w), (height, width) = sizes
        told = f"{pair.source} is {w}x{h} px, {pair.target} {width}x{height}: the two must have one shape"
        problems.append(Problem(pair.line, "pictures of a wrong size", told))
    return problems, sizes[-1] if sizes else None


def open_pairs(folder: Path, size: Size, output: Path, *, quiet: bool = False) -> PairFolder:
    """Read prompt.json and look at every picture it names, before an hour is lost; return the pairs.

    What passed once is not looked at again, as long as no file has changed.

    Raises:
        ValueError: lists every broken line, missing, unreadable or wrongly sized picture.
    """
    pairs, problems = read_index(folder)
    found = PairFolder(folder, tuple(pairs), size)
    mark = output / CHECKED
    if not problems and mark.is_file() and mark.read_text() == fingerprint(found):
        return found
    small = other = 0
    with ThreadPoolExecutor(READERS) as pool:
        looked = pool.map(_look, pairs)
        for more, seen in tqdm(looked, total=len(pairs), desc="check data", mininterval=2, disable=quiet):
            problems += more
            small += seen is not None and (seen[0] < size[0] or seen[1] < size[1])
            other += seen is not None and seen[0] * size[1] != seen[1] * size[0]
    if problems:
        raise ValueError(_report(folder, sorted(problems, key=lambda p: p.line), output))
    if not quiet:
        print(_summary(found, small, other))
    output.mkdir(parents=True, exist_ok=True)
    mark.write_text(fingerprint(found))
    return found


def _summary(found: PairFolder, small: int, other: int) -> str:
    height, width = found.size
    lines = [f"{found.folder}: {len(found):,} pairs, all readable; trained on at {width}x{height} px."]
    if small:
        lines.append(f"  {small:,} are smaller and are enlarged.")
    if other:
        lines.append(f"  {other:,} have another shape: the middle is cut out.")
    empty = sum(not pair.prompt.strip() for pair in found.pairs)
    if empty:
        lines.append(f"  {empty:,} have an empty prompt.")
    return "\n".join(lines)


def _report(folder: Path, problems: Sequence[Problem], output: Path) -> str:
    kinds = Counter(problem.kind for problem in problems)
    lines = [f"{folder / INDEX}: {', '.join(f'{count:,} {kind}' for kind, count in kinds.items())}."]
    lines += [f"  {problem}" for problem in problems[:SHOWN]]
    if len(problems) > SHOWN:
        output.mkdir(parents=True, exist_ok=True)
        (output / REPORT).write_text("\n".join(map(str, problems)) + "\n", encoding="utf-8")
        lines.append(f"  and {len(problems) - SHOWN:,} more: all are listed in {output / REPORT}")
    lines.append("Nothing was trained: mend these, or take their lines out.")
    return "\n".join(lines)


def fingerprint(data: PairFolder) -> str:
    """Return a digest that changes when a line, a file's size or time, or the training size changes."""
    digest = hashlib.blake2b(repr(data.size).encode(), digest_size=16)
    for pair in data.pairs:
        stats = [path.stat() for path in (pair.source, pair.target) if path.is_file()]
        told = [(s.st_size, s.st_mtime_ns) for s in stats]
        digest.update(repr((str(pair.source), str(pair.target), pair.prompt, told)).encode())
    return digest.hexdigest()
