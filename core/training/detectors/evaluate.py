"""Measure a detector on scenes that training never saw, through the very code that the apps call."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

import annotators
from annotators.ade20k import to_classes
from annotators.base import Annotation
from annotators.networks import Weights, find_weights
from annotators.skeleton import from_json
from core.training.figures import agreement, key_points_met, normal_angle, spearman
from core.training.hints import normal_hint, plain_hint
from core.training.toyworld.scene import EVAL_SEED_BASE, Scene, make_scene
from core.training.toyworld.sprites import SpriteLibrary

Image = NDArray[np.uint8]
MADE = ("depth", "normal", "pose", "segmentation")
CONTROLS = {"depth": "depth", "normal": "normal", "pose": "openpose", "segmentation": "seg"}


@dataclass(frozen=True, slots=True)
class Measured:
    """The figures of a detector on ``scenes`` scenes, by what they are, and ``examples`` of its maps."""

    detector: str
    weights: Weights
    scenes: int
    figures: dict[str, float]
    examples: tuple[tuple[Image, Image, Image], ...]

    def table(self) -> str:
        """Return the figures as a Markdown table."""
        lines = [f"| {self.detector}, {self.weights.title} ({self.scenes} held-out scenes) | measured |"]
        lines += ["|---|---|", *(f"| {name} | {value:.3f} |" for name, value in self.figures.items())]
        return "\n".join(lines)


def find_map(detector: str, image: Image) -> Annotation:
    """Return what a detector finds in (H, W, 3) uint8 RGB, as the apps do at the picture's own size."""
    annotator = annotators.load(detector)
    size = image.shape[0], image.shape[1]
    return annotator(image, size=size, resolution=None if annotator.resolution is None else "auto")


def people_in(found: Annotation) -> list[NDArray[np.float64]]:
    """Return the key points (18, 3) of the people whom the pose detector found."""
    return [] if found.data is None else [person.body for person in from_json(found.data)[0]]


def measure(detector: str, library: SpriteLibrary, count: int) -> Measured:
    """Run a detector on ``count`` held-out scenes; for poses, scenes with people.

    Raises:
        ValueError: there is no such detector here; lists those there are.
        WeightsMissing: its weights are not on this computer; says how to get them.
    """
    if detector not in MADE:
        raise ValueError(f"detector is {detector!r}: give one of {', '.join(MADE)}.")
    annotator = annotators.load(detector)
    assert annotator.weights is not None
    weights = find_weights(annotator.weights, annotator.demo_weights)  # says at once if they are missing
    scenes = held_out(library, count, people=detector == "pose")
    found = [find_map(detector, scene.image) for scene in scenes]
    figures = FIGURES[detector](scenes, found)
    true = [plain_hint(CONTROLS[detector], scene) for scene in scenes]
    examples = [
        (s.image, _colour(t), f.hint) for s, t, f in zip(scenes[:16], true[:16], found[:16], strict=True)
    ]
    return Measured(detector, weights, count, figures, tuple(examples))


def held_out(library: SpriteLibrary, count: int, *, people: bool = False, side: int = 256) -> list[Scene]:
    """Return the first ``count`` held-out scenes with their truth; with ``people``, those that show some."""
    scenes: list[Scene] = []
    seed = EVAL_SEED_BASE
    while len(scenes) < count:
        scene = make_scene(seed, library, side, truth=True)
        seed += 1
        if scene.people or not people:
            scenes.append(scene)
    return scenes


def _colour(hint: Image) -> Image:
    return hint if hint.ndim == 3 else np.asarray(cv2.merge([hint] * 3), np.uint8)


def _depth(scenes: Sequence[Scene], found: Sequence[Annotation]) -> dict[str, float]:
    each = [spearman(f.hint[:, :, 0], s.truth.depth) for s, f in zip(scenes, found, strict=True) if s.truth]
    return {"Spearman against the true depth": float(np.mean(each))}


def _normal(scenes: Sequence[Scene], found: Sequence[Annotation]) -> dict[str, float]:
    true = [normal_hint(scene, random.Random(0)) for scene in scenes]
    each = [normal_angle(f.hint, t) for f, t in zip(found, true, strict=True)]
    flat = np.zeros_like(true[0])
    flat[:] = (255, 127, 127)
    floor = [normal_angle(flat, t) for t in true]
    return {
        "mean angle to the true normals, degrees": float(np.mean(each)),
        "the same, if all faced the viewer": float(np.mean(floor)),
    }


def _segmentation(scenes: Sequence[Scene], found: Sequence[Annotation]) -> dict[str, float]:
    iou, right = agreement(
        (to_classes(f.hint), s.truth.segmentation) for s, f in zip(scenes, found, strict=True) if s.truth
    )
    return {"mIoU over the classes present": iou, "share of pixels right": right}


def _pose(scenes: Sequence[Scene], found: Sequence[Annotation]) -> dict[str, float]:
    met = seen = people = 0
    for scene, annotation in zip(scenes, found, strict=True):
        bodies = people_in(annotation)
        right, all_seen = key_points_met(bodies, scene.people)
        met, seen, people = met + right, seen + all_seen, people + len(bodies)
    there = sum(len(scene.people) for scene in scenes)
    return {"PCK@0.1 of the key points seen": met / max(1, seen), "people found for each one": people / there}


FIGURES: dict[str, Callable[[Sequence[Scene], Sequence[Annotation]], dict[str, float]]] = {
    "depth": _depth,
    "normal": _normal,
    "pose": _pose,
    "segmentation": _segmentation,
}
