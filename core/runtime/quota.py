"""How many processors a container may use, where that is fewer than the computer has."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

THREADS = "OMP_NUM_THREADS"
MINE = Path("/proc/self/cgroup")
TREE = Path("/sys/fs/cgroup")


def compute_within_quota() -> None:
    """Let torch compute with as many threads as this container may use processors, and no more.

    torch takes one for each processor that it sees, and in a container with a share of them
    (``docker run --cpus=2``, a Space) that is all of the computer's. More threads than the share use it up at
    the beginning of each tenth of a second, and then all of them stand still. It has no effect once torch is
    imported, nor where the user has said how many.
    """
    share = quota()
    if share is not None and share < _visible():
        os.environ.setdefault(THREADS, str(max(1, math.ceil(share))))


def quota(mine: Path = MINE, tree: Path = TREE) -> float | None:
    """Return how many processors' time this process may take, or None where nothing is said.

    ``mine`` says which control groups this process is in, ``tree`` is where they lie, of either version; the
    narrowest on the way to the root counts.
    """
    try:
        lines = mine.read_text(encoding="ascii").splitlines()
        found = [share for line in lines for share in _shares(line, tree)]
    except (OSError, ValueError):  # not Linux, or not as it writes it
        return None
    return min(found, default=None)


def _shares(line: str, tree: Path) -> Iterator[float]:
    """Yield the shares of a group, a line NUMBER:KINDS:PATH, and of those above it that have any."""
    _, kinds, path = line.split(":", 2)
    if kinds and "cpu" not in kinds.split(","):
        return
    root = tree / kinds if kinds else tree
    group = root / path.lstrip("/")
    for folder in (group, *group.parents):
        share = _share(folder)
        if share is not None:
            yield share
        if folder == root:
            return


def _share(folder: Path) -> float | None:
    """Return the share that one group has of its own."""
    try:
        if (folder / "cpu.max").exists():
            time, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        else:
            time = (folder / "cpu.cfs_quota_us").read_text(encoding="ascii")
            period = (folder / "cpu.cfs_period_us").read_text(encoding="ascii")
        share = float(time) / float(period)
    except (OSError, ValueError, ZeroDivisionError):  # there is none: "max"
        return None
    return share if share > 0 else None  # -1 is none, too


def _visible() -> int:
    """Return how many processors torch would take."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1
