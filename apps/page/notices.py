"""What an app says under its heading: which weights are missing, and which detector is a stand-in."""

from __future__ import annotations

from dataclasses import dataclass

import annotators
from annotators.networks import find_weights, stand_in_words
from apps.page import look
from apps.page.model import Model, explain_missing
from apps.spec import App
from core.errors import WeightsMissing

BRING_MAP = (
    "Or bring a map of your own: under Advanced options set Preprocessor to “None: my image is already a "
    "map”."
)


@dataclass(frozen=True, slots=True)
class DetectorState:
    """How a detector stands: ``problem`` says what is missing, ``remark`` that a stand-in is at work."""

    problem: str = ""
    remark: str = ""


def detector_state(name: str) -> DetectorState:
    """Look which of a detector's weights are here."""
    annotator = annotators.load(name)
    if annotator.weights is None:
        return DetectorState()
    try:
        found = find_weights(annotator.weights, annotator.demo_weights)
    except WeightsMissing as error:
        return DetectorState(problem=str(error))
    if not found.demo:
        return DetectorState()
    return DetectorState(remark=stand_in_words(found, annotator.weights))


def about(app: App, model: Model) -> str:
    """Return the notes of an app as HTML; nothing where all is well. The model has been loaded, or failed."""
    detector = detector_state(app.annotator)
    missing = model.error or explain_missing(model.get(), app.control) or ""
    problem = f"{_in_two_lines(detector.problem)}\n{BRING_MAP}" if detector.problem else ""
    notes = (
        look.notice(problem),
        look.notice(detector.remark, "remark"),
        look.notice(_in_two_lines(missing)),
    )
    return "".join(notes)


def _in_two_lines(message: str) -> str:
    """Say first what is missing, then how to get it: the messages for a terminal have a line a fact."""
    lines = message.splitlines()
    return "\n".join(filter(None, (" ".join(lines[:3]), " · ".join(lines[3:]))))
