"""Measure a detector on scenes that training never saw, through the very code that the apps call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.training.detectors.measures import MEASURES, find_map
from core.training.figures import agreement, normal_angle
from core.training.hints import in_colour, plain_hint
from core.training.toyworld.scene import held_out_scenes
from core.training.toyworld.sprites import SpriteLibrary

Image = NDArray[np.uint8]
CONTROLS = {"depth": "depth", "normal": "normal", "pose": "openpose", "segmentation": "seg"}


@dataclass(frozen=True, slots=True)
class Measured:
    """The figures of a detector on ``scenes`` scenes, by what they are, and ``examples`` of its maps."""

    detector: str
    title: str
    scenes: int
    figures: dict[str, float]
    examples: tuple[tuple[Image, Image, Image], ...]

    def table(self) -> str:
        """Return the figures as a Markdown table."""
        lines = [f"| {self.detector}: {self.title} ({self.scenes} held-out scenes) | measured |", "|---|---|"]
        return "\n".join([*lines, *(f"| {name} | {value:.3f} |" for name, value in self.figures.items())])


def measure(detector: str, library: SpriteLibrary, count: int, side: int = 256) -> Measured:
    """Run a detector on ``count`` held-out scenes; for poses, scenes with people.

    Raises:
        ValueError: there is no such detector here; lists those there are.
        WeightsMissing: its weights are not on this computer; says how to get them.
    """
    if detector not in CONTROLS:
        raise ValueError(f"detector is {detector!r}: give one of {', '.join(CONTROLS)}.")
    control = CONTROLS[detector]
    by = MEASURES[control]
    weights = by.check()
    assert weights is not None
    scenes = held_out_scenes(library, count, side, people=by.people)
    found = [by.found(scene.image) for scene in scenes]
    true = [by.true(scene) for scene in scenes]
    figures = {by.figure: by.score(found, true)}
    if detector in MORE:
        figures |= MORE[detector](found, true)
    examples = [
        (s.image, in_colour(plain_hint(control, s)), find_map(detector, s.image).hint) for s in scenes[:16]
    ]
    return Measured(detector, weights.title, count, figures, tuple(examples))


def _normals_too(found: Sequence[Any], true: Sequence[Image]) -> dict[str, float]:
    flat = np.full_like(true[0], 127)
    flat[..., 0] = 255  # the first channel is z, towards the viewer
    return {"the same, if all faced the viewer": float(np.mean([normal_angle(flat, t) for t in true]))}


def _pixels_too(found: Sequence[Image], true: Sequence[Image]) -> dict[str, float]:
    return {"share of pixels right": agreement(zip(found, true, strict=True))[1]}


def _people_too(found: Sequence[Any], true: Sequence[Any]) -> dict[str, float]:
    return {"people found for each one there": sum(map(len, found)) / max(1, sum(map(len, true)))}


MORE: dict[str, Callable[[Sequence[Any], Sequence[Any]], dict[str, float]]] = {
    "normal": _normals_too,
    "segmentation": _pixels_too,
    "pose": _people_too,
}
