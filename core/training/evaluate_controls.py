"""Measure whether every ControlNet of the demo model is obeyed, on scenes that training never saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from core.pipeline import ControlNetPipeline
from core.request import MAX_BATCH, ControlUnit, Request, Result, check_number
from core.training.detectors.measures import MEASURES, Measure
from core.training.hints import in_colour, plain_hint
from core.training.toyworld.scene import Scene, held_out_scenes
from core.training.toyworld.sprites import SpriteLibrary

Image = NDArray[np.uint8]
Triple = tuple[Image, Image, Image]


@dataclass(frozen=True, slots=True)
class Obedience:
    """How well one control is obeyed, by its figure: against its own hint, another scene's, without control.

    ``scene`` is the figure of the scenes' own pictures: what the detector itself makes of them. ``examples``
    are scene, hint and result.
    """

    control: str
    measure: Measure
    scenes: int
    obeyed: float
    shuffled: float
    uncontrolled: float
    scene: float
    examples: tuple[Triple, ...]

    def row(self) -> str:
        """Return a row of a Markdown table."""
        values = (self.obeyed, self.shuffled, self.uncontrolled, self.scene)
        weights = self.measure.check()
        by = f"{self.measure.detector}{' (demo)' if weights is not None and weights.demo else ''}"
        figures = " | ".join(f"{value:.3g}" if value >= 10 else f"{value:.3f}" for value in values)
        return f"| {self.control} | {self.measure.figure} | {by} | {self.scenes} | {figures} |"


HEADER = (
    "| control | figure | detector | scenes | with its hint | against another's | no control | the scenes "
    "themselves |\n|---|---|---|---|---|---|---|---|"
)


class Drawn:
    """Pictures of the demo model for held-out scenes; each is drawn once, whoever asks.

    ``seconds`` are those of each picture, in a batch its share of them.
    """

    def __init__(
        self, pipe: ControlNetPipeline, library: SpriteLibrary, count: int, steps: int, batch: int = 1
    ) -> None:
        """Draw ``count`` scenes a control, of the pipeline's own size, in ``steps`` steps, ``batch`` at once.

        Raises:
            ValueError: ``batch`` is out of range.
        """
        check_number("batch", batch, 1, MAX_BATCH, integer=True)
        self.pipe, self.count, self.batch = pipe, count, batch
        self.sets = {people: self._scenes(library, people) for people in (False, True)}
        side = pipe.resolution
        self.base = Request("", size=(side, side), steps=steps, cfg_scale=pipe.config.cfg_scale)
        self.seconds: list[float] = []
        self._pictures: dict[tuple[str | None, bool], list[Image]] = {}

    def _scenes(self, library: SpriteLibrary, people: bool) -> list[Scene]:
        return held_out_scenes(library, self.count, self.pipe.resolution, people=people)

    def pictures(self, control: str | None, people: bool) -> list[Image]:
        """Return the pictures of the scenes, or of those with people, with a control or without."""
        key = control, people
        if key not in self._pictures:
            requests = [self._request(scene, control, i) for i, scene in enumerate(self.sets[people])]
            self._pictures[key] = self.draw(requests, control or "no control")
        return self._pictures[key]

    def _request(self, scene: Scene, control: str | None, seed: int) -> Request:
        units: tuple[ControlUnit, ...] = ()
        if control is not None:
            units = (ControlUnit(control, in_colour(plain_hint(control, scene))),)
        return replace(self.base, prompt=scene.caption, controls=units, seed=seed)

    def draw(self, requests: Sequence[Request], what: str) -> list[Image]:
        """Return the picture of each request; they differ only in what may differ in a batch."""
        made: list[Image] = []
        with tqdm(total=len(requests), desc=what, mininterval=10) as bar:
            for i in range(0, len(requests), self.batch):
                some = requests[i : i + self.batch]
                results = [self.pipe(some[0])] if len(some) == 1 else self._together(some)
                made += [result.images[0] for result in results]
                self.seconds += [result.seconds / len(some) for result in results]
                bar.update(len(some))
        return made

    def _together(self, requests: Sequence[Request]) -> list[Result]:
        results: dict[int, Result] = {}
        for i, update in self.pipe.sample_together(requests):
            if isinstance(update, Exception):
                raise update
            if isinstance(update, Result):
                results[i] = update
        return [results[i] for i in range(len(requests))]


def obedience(drawn: Drawn, control: str) -> Obedience:
    """Compare what is drawn from hint and caption, and from the caption alone, with the hint.

    Raises:
        WeightsMissing: the control's detector is not on this computer; says how to get it.
    """
    measure = MEASURES[control]
    measure.check()
    scenes = drawn.sets[measure.people]
    true = [measure.true(scene) for scene in scenes]
    made, free = drawn.pictures(control, measure.people), drawn.pictures(None, measure.people)
    found = [measure.found(picture) for picture in made]
    hints = [in_colour(plain_hint(control, scene)) for scene in scenes[:16]]
    return Obedience(
        control,
        measure,
        len(scenes),
        measure.score(found, true),
        measure.score(found, true[1:] + true[:1]),
        measure.score([measure.found(picture) for picture in free], true),
        measure.score([measure.found(scene.image) for scene in scenes], true),
        tuple((s.image, h, m) for s, h, m in zip(scenes[:16], hints, made[:16], strict=True)),
    )


def sheet(examples: Sequence[Triple], columns: int = 4) -> Image:
    """Return a picture of triples, each side by side, ``columns`` of them in a row."""
    triples = [np.hstack(triple) for triple in examples]
    triples += [np.full_like(triples[0], 255)] * (-len(triples) % columns)
    rows = [np.hstack(triples[i : i + columns]) for i in range(0, len(triples), columns)]
    return np.asarray(np.vstack(rows), np.uint8)
