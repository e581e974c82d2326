"""Measure whether every ControlNet of the demo model is obeyed, on scenes that training never saw."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from core.pipeline import ControlNetPipeline
from core.request import ControlUnit, Request
from core.training.evaluate import edge_f1, edges
from core.training.hints import DETECTORS, found_lines, plain_hint
from core.training.toyworld.scene import EVAL_SEED_BASE, Scene, make_scene
from core.training.toyworld.sprites import SpriteLibrary

Image = NDArray[np.uint8]
DRAWN = 64  # of 255: what counts as a line in a soft map


@dataclass(frozen=True, slots=True)
class Obedience:
    """How well one control is obeyed: F1 at 3 px against its own hint, another scene's, and without control.

    Lines are those of the control's own detector, and of Canny where it has none that is bundled; then they
    are compared with those of the scene.
    """

    control: str
    lines: str
    f1: float
    shuffled: float
    uncontrolled: float
    examples: tuple[tuple[Scene, Image, Image], ...]

    def row(self) -> str:
        """Return a row of a Markdown table."""
        figures = " | ".join(f"{value:.3f}" for value in (self.f1, self.shuffled, self.uncontrolled))
        return f"| {self.control} | {self.lines} | {figures} |"


HEADER = "| control | lines of | F1 | shuffled | no control |\n|---|---|---|---|---|"


def _lines(control: str, image: Image) -> Image:
    if control not in DETECTORS:
        return edges(image)
    return np.where(found_lines(control, image) >= DRAWN, np.uint8(255), np.uint8(0))


def _colour(hint: Image) -> Image:
    return hint if hint.ndim == 3 else np.asarray(cv2.merge([hint] * 3), np.uint8)


def obedience(
    pipe: ControlNetPipeline, library: SpriteLibrary, control: str, count: int, *, steps: int = 20
) -> Obedience:
    """Draw ``count`` held-out scenes from hint and caption, and from the caption alone, and compare."""
    side = pipe.resolution
    people = control == "openpose"
    scenes: list[Scene] = []
    seed = EVAL_SEED_BASE
    while len(scenes) < count:
        scene = make_scene(seed, library, side, truth=control not in DETECTORS)
        seed += 1
        if scene.people or not people:
            scenes.append(scene)
    hints = [_colour(plain_hint(control, scene)) for scene in scenes]
    base = Request("", size=(side, side), steps=steps, cfg_scale=pipe.config.cfg_scale)
    made, free = [], []
    for i, (scene, hint) in enumerate(zip(tqdm(scenes, desc=control, mininterval=10), hints, strict=True)):
        request = replace(base, prompt=scene.caption, seed=i)
        made.append(pipe(replace(request, controls=(ControlUnit(control, hint),))).images[0])
        free.append(pipe(request).images[0])
    given = [_lines(control, scene.image) for scene in scenes]
    found = [_lines(control, picture) for picture in made]
    loose = [_lines(control, picture) for picture in free]
    other = given[1:] + given[:1]

    def mean(a: list[Image], b: list[Image]) -> float:
        return float(np.mean([edge_f1(x, y) for x, y in zip(a, b, strict=True)]))

    return Obedience(
        control,
        DETECTORS.get(control, "canny"),
        mean(found, given),
        mean(found, other),
        mean(loose, given),
        tuple(zip(scenes, hints, made, strict=True))[:16],
    )


def sheet(examples: tuple[tuple[Scene, Image, Image], ...], columns: int = 4) -> Image:
    """Return a picture of scene, hint and result side by side, ``columns`` such triples in a row."""
    return triples_sheet(tuple((scene.image, hint, made) for scene, hint, made in examples), columns)


def triples_sheet(pictures: tuple[tuple[Image, Image, Image], ...], columns: int = 4) -> Image:
    """Return a picture of triples, each side by side, ``columns`` of them in a row."""
    triples = [np.hstack(triple) for triple in pictures]
    triples += [np.full_like(triples[0], 255)] * (-len(triples) % columns)
    rows = [np.hstack(triples[i : i + columns]) for i in range(0, len(triples), columns)]
    return np.asarray(np.vstack(rows), np.uint8)
