"""From a picture that was made here back to the settings that made it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.page.forms import JointForm
from apps.page.settings import DETECT, READY_MAP, Choice, Setting
from core.images import fit_size
from core.metadata import read_request
from core.request import SPEED_OPTIONS
from core.stored_request import StoredRequest


@dataclass(frozen=True, slots=True)
class Restored:
    """What to put back: settings by name, each within its range; ``notes`` say what was left out."""

    prompt: str | None
    values: Mapping[str, Any]
    hint: NDArray[np.uint8] | None
    notes: tuple[str, ...]
    mask: NDArray[np.uint8] | None = None


@dataclass(frozen=True, slots=True)
class RestoredUnit:
    """What to put back into one unit: the app that it takes, settings by name, and the map."""

    app: str
    values: Mapping[str, Any]
    hint: NDArray[np.uint8] | None


def restore(path: str | Path, declared: Sequence[Setting]) -> Restored:
    """Read the settings that a PNG carries.

    Where the picture holds its map, the map comes back as the image and is taken as it is, so that the same
    seed makes the same picture without the photo. The picture that a drawing started from comes back so too.

    Raises:
        ValueError: the file is no picture or carries no settings; says what to do.
    """
    stored = read_request(path)
    found = _of_run(stored)
    hint = stored.controls[0].hint if stored.controls else stored.init
    if stored.controls:
        found |= _of_unit(stored, 0, ())
    if hint is not None:
        found["resolution"] = _resolution(hint, found.get("resolution"))
    if any(s.name == "preprocessor" and isinstance(s, Choice) and len(s.choices) == 1 for s in declared):
        found["preprocessor"] = DETECT  # pictures are no maps here
    values, notes = _within_range(found, declared)
    return Restored(found.get("prompt"), values, hint, (*stored.notes, *notes), stored.mask)


def restore_units(path: str | Path, form: JointForm) -> tuple[Restored, tuple[RestoredUnit, ...]]:
    """Read the settings that a PNG carries for a page with several controls; each map comes back as above.

    Raises:
        ValueError: the file is no picture or carries no settings; says what to do.
    """
    stored = read_request(path)
    found, notes = _of_run(stored), list(stored.notes)
    units: list[RestoredUnit] = []
    by_control = {app.control: name for name, app in reversed(form.apps.items())}
    for index, control in enumerate(stored.controls):
        detector = stored.settings.get(f"detector_{index + 1}") or stored.settings.get("app")
        if detector not in form.apps or form.apps[str(detector)].control != control.control:
            detector = by_control.get(control.control)
        if detector is None or len(units) == len(form.numbers):
            why = "more than the page has units" if detector else "not known here"
            notes.append(f"The {control.control[:60]} control was left out: {why}.")
            continue
        own = form.own[str(detector)]
        values, more = _within_range(_of_unit(stored, index, [s.name for s in own]), own)
        notes += more
        units.append(RestoredUnit(str(detector), values, control.hint))
    hints = [unit.hint for unit in units if unit.hint is not None]
    if hints:
        found["resolution"] = _resolution(hints[0], found.get("resolution"))
    values, more = _within_range(found, form.run)
    return Restored(found.get("prompt"), values, None, (*notes, *more)), tuple(units)


def _within_range(found: Mapping[str, Any], declared: Sequence[Setting]) -> tuple[dict[str, Any], list[str]]:
    """Return what is allowed of what was found, and notes about the rest."""
    values: dict[str, Any] = {}
    notes: list[str] = []
    for setting in declared:
        if found.get(setting.name) is None:
            continue
        try:
            values[setting.name] = setting.check(found[setting.name])
        except ValueError as error:
            notes.append(str(error))
    return values, notes


def _of_run(stored: StoredRequest) -> dict[str, Any]:
    names = (
        *("negative_prompt", "num_samples", "steps", "sampler", "cfg_scale", "eta", "seed", "guess_mode"),
        *("denoise", *SPEED_OPTIONS),
    )
    found: dict[str, Any] = {name: getattr(stored, name) for name in names}
    # Other programs' pictures hold one prompt: it comes back whole, with nothing added to it.
    found |= {"prompt": stored.prompt, "added_prompt": ""}
    return found | dict(stored.settings)


def _of_unit(stored: StoredRequest, index: int, own: Sequence[str]) -> dict[str, Any]:
    """Return what the control of this index had; ``own`` are settings that may be stored with its number."""
    unit = stored.controls[index]
    found: dict[str, Any] = {"strength": unit.strength, "start": unit.start, "end": unit.end}
    for name in own:
        alone = name if index == 0 else ""  # as a page with one control stores it
        value = stored.settings.get(f"{name}_{index + 1}", stored.settings.get(alone))
        found |= {} if value is None else {name: value}
    return found if unit.hint is None else found | {"preprocessor": READY_MAP}


def _resolution(hint: NDArray[np.uint8], stored: Any) -> int:
    """Return the resolution at which the map keeps its size: the stored one wherever it does."""
    height, width = hint.shape[:2]
    kept = isinstance(stored, int) and fit_size(height, width, stored) == (height, width)
    return stored if kept else min(height, width)
