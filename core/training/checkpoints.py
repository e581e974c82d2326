"""A run's checkpoints: written whole or not at all, the last good ones kept, torn ones passed over."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger(__name__)

SINGLE = "checkpoint.pt"
NUMBERED = "step_*.pt"
PARTIAL = ".partial"


class Checkpoints:
    """The checkpoints in one folder: numbered by step, of which the last ``keep`` stay, or a single one."""

    def __init__(self, folder: Path, keep: int = 0) -> None:
        """Look into ``folder``; with ``keep`` 0 there is a single file, which each new one replaces."""
        self.folder, self.keep = folder, keep

    def found(self) -> list[Path]:
        """Return what is there, the newest first."""
        if not self.keep:
            return [path for path in [self.folder / SINGLE] if path.exists()]
        return sorted(self.folder.glob(NUMBERED), reverse=True)

    @property
    def newest(self) -> Path | None:
        """The newest one, or None."""
        return next(iter(self.found()), None)

    def path_of(self, step: int) -> Path:
        """Return where the checkpoint after ``step`` steps belongs."""
        return self.folder / (f"step_{step:08d}.pt" if self.keep else SINGLE)

    def read(self) -> tuple[Path, dict[str, Any]] | None:
        """Return the newest checkpoint that can be read, and where it is; None where there is none at all.

        Raises:
            ValueError: all that is there is damaged; names the files.
        """
        found = self.found()
        for path in found:
            try:
                state = torch.load(path, map_location="cpu", weights_only=True)
                return path, dict(state)
            except (RuntimeError, EOFError, OSError, ValueError) as error:
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                log.warning("%s is cut off or damaged (%s): taking the one before it.", path, reason)
        if found:
            raise ValueError(
                f"No checkpoint in {self.folder} can be read: {', '.join(p.name for p in found)}. Move them "
                "away to begin anew, or put a good one there."
            )
        return None

    def write(self, step: int, state: dict[str, Any]) -> Path:
        """Write a checkpoint beside the last good one, put it in its place in one move, drop the oldest.

        Where the disk is full the older ones make room, but for the newest.

        Raises:
            OSError: it cannot be written; the newest one is as it was.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for torn in self.folder.glob(f"*{PARTIAL}"):  # of a process that was killed
            torn.unlink(missing_ok=True)
        while True:
            try:
                path = self._write(step, state)
                break
            except OSError as error:
                found = self.found()
                if error.errno != errno.ENOSPC or len(found) < 2:
                    raise
                log.warning("The disk is full: %s goes, to make room for a newer one.", found[-1])
                found[-1].unlink()
        for old in self.found()[max(1, self.keep) :]:
            old.unlink(missing_ok=True)
        return path

    def _write(self, step: int, state: dict[str, Any]) -> Path:
        path = self.path_of(step)
        partial = path.with_suffix(PARTIAL)
        try:
            with partial.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())  # else a power cut may leave the new name with nothing behind it
            os.replace(partial, path)
        except RuntimeError as error:  # what torch makes of a write that failed
            free = shutil.disk_usage(self.folder).free
            raise OSError(errno.ENOSPC, f"no space left, {free / 2**20:,.0f} MB are free") from error
        finally:
            partial.unlink(missing_ok=True)
        return path
