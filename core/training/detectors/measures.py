"""Whether a picture obeys a map: what a detector finds in the picture, against what is true of the scene."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

import annotators
from annotators.ade20k import to_classes
from annotators.base import Annotation
from annotators.networks import Weights, find_weights
from annotators.skeleton import from_json
from core.training.figures import agreement, edge_f1, key_points_met, normal_angle, spearman
from core.training.hints import DETECTORS, found_lines, plain_hint
from core.training.toyworld.scene import Scene

Image = NDArray[np.uint8]
DRAWN = 64  # of 255: what counts as a line in a soft map


@dataclass(frozen=True, slots=True)
class Measure:
    """How a control is measured: by ``figure``, with what ``detector`` finds.

    ``found`` is given a picture (H, W, 3) and ``true`` a scene; both return what ``score`` compares, which
    is given the found and the true of many pictures.
    """

    figure: str
    detector: str
    found: Callable[[Image], Any]
    true: Callable[[Scene], Any]
    score: Callable[[Sequence[Any], Sequence[Any]], float]
    people: bool = False

    def check(self) -> Weights | None:
        """Return the weights at work; None where the detector needs none.

        Raises:
            WeightsMissing: they are not on this computer; says how to get them.
        """
        annotator = annotators.load(self.detector)
        return None if annotator.weights is None else find_weights(annotator.weights, annotator.demo_weights)


def find_map(detector: str, image: Image) -> Annotation:
    """Return what a detector finds in (H, W, 3) uint8 RGB, as the apps do at the picture's own size."""
    annotator = annotators.load(detector)
    size = image.shape[0], image.shape[1]
    return annotator(image, size=size, resolution=None if annotator.resolution is None else "auto")


def people_in(image: Image) -> list[NDArray[np.float64]]:
    """Return the key points (18, 3) of the people whom the pose detector finds."""
    data = find_map("pose", image).data
    return [] if data is None else [person.body for person in from_json(data)[0]]


def _lines(control: str, image: Image) -> Image:
    return np.where(found_lines(control, image) >= DRAWN, np.uint8(255), np.uint8(0))


def _depth(image: Image) -> Image:
    return find_map("depth", image).hint[:, :, 0]


def _classes(image: Image) -> Image:
    return to_classes(find_map("segmentation", image).hint)


def _true_classes(scene: Scene) -> Image:
    return to_classes(plain_hint("seg", scene))


def _mean(compare: Callable[[Any, Any], float]) -> Callable[[Sequence[Any], Sequence[Any]], float]:
    return lambda found, true: float(np.mean([compare(f, t) for f, t in zip(found, true, strict=True)]))


def _iou(found: Sequence[Image], true: Sequence[Image]) -> float:
    return agreement(zip(found, true, strict=True))[0]


def pck(found: Sequence[list[Any]], true: Sequence[Sequence[Any]]) -> float:
    """Return the share of the key points of many pictures that are where they should be."""
    counts = [key_points_met(f, t) for f, t in zip(found, true, strict=True)]
    return sum(met for met, _ in counts) / max(1, sum(there for _, there in counts))


def _of_lines(control: str) -> Measure:
    found = partial(_lines, control)
    return Measure(
        "edge F1 at 3 px", DETECTORS[control], found, lambda scene: found(scene.image), _mean(edge_f1)
    )


MEASURES: dict[str, Measure] = {
    **{control: _of_lines(control) for control in DETECTORS},
    "depth": Measure("Spearman", "depth", _depth, lambda scene: plain_hint("depth", scene), _mean(spearman)),
    "normal": Measure(
        "mean angle, degrees (less is better)",
        "normal",
        lambda image: find_map("normal", image).hint,
        lambda scene: plain_hint("normal", scene),
        _mean(normal_angle),
    ),
    "seg": Measure("mIoU over the classes present", "segmentation", _classes, _true_classes, _iou),
    "openpose": Measure("PCK@0.1", "pose", people_in, lambda scene: scene.people, pck, people=True),
}
