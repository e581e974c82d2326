"""What an app says under its heading: which weights are missing, and which detector is a stand-in."""

from __future__ import annotations

from dataclasses import dataclass

import annotators
from annotators.networks import find_weights, stand_in_words
from apps.page import look
from apps.page.model import ALONE, Model, explain_missing, stand_in
from apps.spec import App
from core.errors import WeightsMissing

BRING_MAP = "Or bring a map of your own: {where}set Preprocessor to “None: my image is already a map”."


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
    return _about_detector(app, "under Advanced options ") + _about_control(app, model)


def about_unit(app: App, detects: bool, model: Model) -> str:
    """Return the notes of a unit that takes ``app``, as far as they are known while the model may be loading.

    A unit that does not detect, since it is brought a map, needs no detector.
    """
    detector = _about_detector(app, "") if detects else ""
    return detector + (_about_control(app, model) if model.finished else "")


def _about_detector(app: App, where: str) -> str:
    detector = detector_state(app.annotator)
    bring = f"\n{BRING_MAP.format(where=where)}"
    problem = _in_two_lines(detector.problem) + bring if detector.problem else ""
    return look.notice(problem) + look.notice(detector.remark, "remark")


def _about_control(app: App, model: Model) -> str:
    missing = model.error or explain_missing(model.get(), app.control) or ""
    remark = "" if missing else stand_in(model.name, app.control)
    if app.alone and missing and not model.error:
        missing, remark = "", f"{ALONE}\n{_in_two_lines(missing)}"
    return look.notice(_in_two_lines(missing)) + look.notice(remark, "remark")


def _in_two_lines(message: str) -> str:
    """Say first what is missing, then how to get it: the messages for a terminal have a line a fact."""
    lines = message.splitlines()
    return "\n".join(filter(None, (" ".join(lines[:3]), " · ".join(lines[3:]))))
