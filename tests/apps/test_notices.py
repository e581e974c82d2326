from __future__ import annotations

import pytest

import annotators
from annotators.networks import Weights
from apps import find_apps
from apps.page import notices
from apps.page.model import Model, explain_missing, stand_in
from apps.page.notices import about, detector_state
from core.errors import WeightsMissing
from core.weights.registry import Registry
from tests.apps.fakes import FakePipeline

(CANNY,) = find_apps(["canny"])
MODEL = Model.ready(FakePipeline())
MESSAGE = "Depth (midas) is missing.\nFile: dpt.pt.\nLicence: MIT.\nGet it: python -m core.weights get midas"


@pytest.fixture
def weighty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the detector of the canny app have weights."""
    monkeypatch.setattr(type(annotators.load("canny")), "weights", "midas")


def test_a_detector_without_weights_and_a_model_with_all_need_no_words() -> None:
    assert about(CANNY, MODEL) == ""


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no weights be on this computer, whatever is."""
    monkeypatch.setattr(Registry, "find", lambda self, name: None)


def test_missing_detector_weights_say_how_to_get_them_and_that_a_ready_map_does_too(
    weighty: None, no_weights: None
) -> None:
    note = about(CANNY, MODEL)
    for words in ("493 MB", "Licence: MIT", "python -m core.weights get midas", "None: my image is already"):
        assert words in note
    assert note.count("cn-notice") == 1 and 'role="alert"' in note


def test_a_stand_in_is_named_as_one_with_the_way_to_the_real_detector(
    weighty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "find_weights", lambda *names: Weights("x", "Toy-world depth", demo=True))
    note = about(CANNY, MODEL)
    assert "Toy-world depth: demo detector, trained on toy scenes; on photographs it is only a guess" in note
    assert "493 MB, licence MIT: python -m core.weights get midas" in note and 'role="note"' in note


def test_the_real_weights_need_no_words(weighty: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "find_weights", lambda *names: Weights("midas", "MiDaS", demo=False))
    assert detector_state("canny") == notices.DetectorState()


def test_both_the_detector_and_the_controlnet_may_be_missing(
    weighty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*names: str) -> Weights:
        raise WeightsMissing(MESSAGE)

    monkeypatch.setattr(notices, "find_weights", missing)
    note = about(CANNY, Model.ready(FakePipeline(missing="control_sd15_canny is missing.")))
    assert note.count('role="alert"') == 2 and "control_sd15_canny" in note


def test_every_detector_that_needs_weights_says_where_they_come_from(no_weights: None) -> None:
    for name in annotators.names():
        annotator, state = annotators.load(name), detector_state(name)
        if annotator.weights is not None:
            assert f"python -m core.weights get {annotator.weights}" in state.problem
            assert "Licence" in state.problem


def test_a_control_that_stands_in_for_another_is_told() -> None:
    assert stand_in("demo", "softedge") == "This model's control for hed maps stands in for softedge."
    assert stand_in("demo", "lineart") == "This model's control for canny maps stands in for lineart."
    for model, control in (("demo", "hed"), ("sd15", "softedge"), ("demo", "shuffle"), ("my.ckpt", "canny")):
        assert stand_in(model, control) == ""


def test_a_control_that_only_stable_diffusion_has_is_told_with_the_way_to_it() -> None:
    class Demo(FakePipeline):
        def explain_missing(self, control: str) -> str | None:
            raise ValueError("control is 'shuffle': the demo has canny.")

    told = explain_missing(Demo(), "shuffle")
    assert told is not None and "python -m core.weights get sd15 shuffle" in told
