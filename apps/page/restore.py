"""From a picture that was made here back to the settings that made it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.page.settings import READY_MAP, Setting
from core.images import fit_size
from core.metadata import StoredRequest, read_request


@dataclass(frozen=True, slots=True)
class Restored:
    """What to put back: settings by name, each within its range; ``notes`` say what was left out."""

    prompt: str | None
    values: Mapping[str, Any]
    hint: NDArray[np.uint8] | None
    notes: tuple[str, ...]


def restore(path: str | Path, declared: Sequence[Setting]) -> Restored:
    """Read the settings that a PNG carries.

    Where the picture holds its map, the map comes back as the image and is taken as it is, so that the same
    seed makes the same picture without the photo.

    Raises:
        ValueError: the file is no picture or carries no settings; says what to do.
    """
    stored = read_request(path)
    found = _found(stored)
    hint = stored.controls[0].hint if stored.controls else None
    if hint is not None:
        found["preprocessor"] = READY_MAP
        found["resolution"] = _resolution(hint, found.get("resolution"))
    values: dict[str, Any] = {}
    notes = list(stored.notes)
    for setting in declared:
        if found.get(setting.name) is None:
            continue
        try:
            values[setting.name] = setting.check(found[setting.name])
        except ValueError as error:
            notes.append(str(error))
    return Restored(found.get("prompt"), values, hint, tuple(notes))


def _found(stored: StoredRequest) -> dict[str, Any]:
    names = ("negative_prompt", "num_samples", "steps", "sampler", "cfg_scale", "eta", "seed", "guess_mode")
    found: dict[str, Any] = {name: getattr(stored, name) for name in names}
    if stored.controls:
        unit = stored.controls[0]
        found |= {"strength": unit.strength, "start": unit.start, "end": unit.end}
    # Other programs' pictures hold one prompt: it comes back whole, with nothing added to it.
    found |= {"prompt": stored.prompt, "added_prompt": ""}
    return found | dict(stored.settings)


def _resolution(hint: NDArray[np.uint8], stored: Any) -> int:
    """Return the resolution at which the map keeps its size: the stored one wherever it does."""
    height, width = hint.shape[:2]
    kept = isinstance(stored, int) and fit_size(height, width, stored) == (height, width)
    return stored if kept else min(height, width)
