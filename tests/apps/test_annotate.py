"""The page of all detectors: its maps, its endpoint, and that it needs no model."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
from gradio_client import Client, handle_file

import annotators
from annotators.base import Detected
from apps import find_pages
from apps.page.annotate import Bench, annotate
from apps.page.bench import declared_of, lay_out
from apps.spec import Card, Workbench
from core.images import fit_size, resize_image, to_rgb
from core.weights.registry import Registry
from tests.apps.pictures import scene
from tests.apps.serving import served

(PAGE,) = find_pages(["annotator"])
assert isinstance(PAGE, Workbench)
BENCH: Workbench = PAGE
CARDS = {card.annotator: card for card in BENCH.cards}
CANNY = CARDS["canny"]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    scene(500, 300).save(path)
    return path


@pytest.fixture
def handlers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    with gr.Blocks():
        return Bench(BENCH, lay_out(BENCH))


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with served([BENCH], None, tmp_path_factory.mktemp("served")) as url:
        yield Client(url, verbose=False, download_files=tmp_path_factory.mktemp("downloads"))


def values(name: str) -> list[Any]:
    return [setting.default for setting in declared_of(CARDS[name])]


def test_a_detector_runs_in_a_thread_that_ends_with_it(
    handlers: Bench, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[threading.Thread] = []

    def watched(*given: Any) -> Any:
        used.append(threading.current_thread())
        return annotate(*given)

    monkeypatch.setattr("apps.page.annotate.annotate", watched)
    named = {setting.name: setting.default for setting in declared_of(CANNY)}
    handlers.make(CANNY, str(photo), named)
    assert used[0] is not threading.current_thread() and not used[0].is_alive()


def card_of(handlers: Bench, name: str) -> Any:
    return next(card for card in handlers.widgets.cards if card.card.annotator == name)


def upload(path: Path) -> dict[str, Any]:
    return gr.FileData(path=str(path)).model_dump()


def test_every_detector_has_a_card() -> None:
    assert set(CARDS) == {name for name in annotators.names() if annotators.load(name).takes_maps}


def test_resolutions_are_the_originals() -> None:
    for card in BENCH.cards:
        resolution = declared_of(card)[0]
        assert (resolution.minimum, resolution.maximum, resolution.step) == (256, 1024, 64)  # type: ignore[union-attr]
        assert resolution.default == (384 if card.annotator in {"mlsd", "depth", "normal"} else 512)


def test_a_map_has_the_size_at_which_it_was_detected_and_is_not_inverted(photo: Path) -> None:
    picture = to_rgb(photo)
    made = annotate(CANNY, photo, 256, {"low_threshold": 50, "high_threshold": 60})
    assert made.hint.shape[:2] == fit_size(300, 500, 256)
    seen = resize_image(picture, 256)
    expected = annotators.load("canny").detect(seen, low_threshold=50, high_threshold=60)
    np.testing.assert_array_equal(made.hint[:, :, 0], expected)
    assert (made.hint > 0).mean() < 0.5


def test_a_saved_map_is_the_map(handlers: Bench, photo: Path) -> None:
    path, facts, _ = handlers.make(CANNY, str(photo), {s.name: s.default for s in declared_of(CANNY)})
    made = annotate(CANNY, photo, 512, {})
    np.testing.assert_array_equal(to_rgb(path), made.hint)
    assert path.suffix == ".png" and facts is None


def test_what_a_detector_found_can_be_saved_as_json(
    handlers: Bench, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    people = {"people": [{"pose": [1.5, 2.0, 1.0]}]}

    def detect(self: Any, image: np.ndarray, **params: Any) -> Detected:
        return Detected(np.zeros_like(image), people)

    monkeypatch.setattr(type(annotators.load("pose")), "detect", detect)
    note, shown, facts = handlers.run_one(card_of(handlers, "pose"), upload(photo), *values("pose"))
    assert facts["visible"] and json.loads(Path(facts["value"]).read_text()) == people
    assert shown["visible"] and Path(shown["value"]).is_file()


def test_missing_weights_are_told_in_the_maps_place_and_the_others_go_on(
    handlers: Bench, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Registry, "find", lambda self, name: None)
    annotators.load("pose")._cache = type(annotators.load("pose")._cache)()
    given = [value for card in BENCH.cards for value in values(card.annotator)]
    seen: dict[Any, Any] = {}
    for update in handlers.run_all(upload(photo), *given):
        seen |= update
    pose, canny = card_of(handlers, "pose"), card_of(handlers, "canny")
    assert "python -m core.weights get openpose_body" in seen[pose.note]["value"]
    assert "NOT for commercial use" in seen[pose.note]["value"]
    assert seen[pose.note]["visible"] and not seen[pose.map]["visible"]
    assert seen[canny.map]["visible"] and not seen[canny.note]["visible"]
    assert "Done" in seen[handlers.widgets.status]


def test_the_page_tells_what_is_missing_when_it_opens(
    handlers: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Registry, "find", lambda self, name: None)
    updates = handlers.check()
    for index, card in enumerate(BENCH.cards):
        needs = annotators.load(card.annotator).weights is not None
        assert (updates[2 * index]["visible"], updates[2 * index + 1]["visible"]) == (needs, not needs)


def test_no_picture_is_told_on_the_card(handlers: Bench) -> None:
    note, *_ = handlers.run_one(card_of(handlers, "canny"), None, *values("canny"))
    assert "There is no picture" in note["value"]


def test_a_card_may_have_its_own_defaults() -> None:
    card = Card("canny", "Canny", 384, (("low_threshold", 7),))
    assert {s.name: s.default for s in declared_of(card)} == {
        "resolution": 384,
        "low_threshold": 7,
        "high_threshold": 200,
    }


def test_the_endpoint_makes_one_map_with_the_detectors_defaults(client: Client, photo: Path) -> None:
    file, facts = client.predict(image=handle_file(photo), detector="canny", api_name="/annotate")
    np.testing.assert_array_equal(to_rgb(file), annotate(CANNY, photo, 512, {}).hint)
    assert facts is None
    file, _ = client.predict(
        handle_file(photo), "canny", resolution=256, low_threshold=50, high_threshold=60, api_name="/annotate"
    )
    expected = annotate(CANNY, photo, 256, {"low_threshold": 50, "high_threshold": 60})
    np.testing.assert_array_equal(to_rgb(file), expected.hint)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"detector": "cany"}, "detector is 'cany': give one of canny, hed"),
        ({"detector": "canny", "resolution": 4000}, "resolution is 4000: give a whole number from 256 to"),
        ({"detector": "canny", "value_threshold": 0.3}, "canny has no control value_threshold: it has resol"),
        ({"detector": "canny", "low_threshold": "x"}, "low_threshold is 'x'"),
    ],
)
def test_wrong_values_are_refused_by_name(
    client: Client, photo: Path, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(Exception, match=message):
        client.predict(image=handle_file(photo), **given, api_name="/annotate")


def test_the_page_of_detectors_alone_loads_no_model(tmp_path: Path) -> None:
    code = (
        "import apps.ui, launch, sys\n"
        "apps.ui.serve = lambda page, **options: ''\n"
        "apps.ui.gr.Blocks.block_thread = lambda self: None\n"
        "assert launch.main(['--app', 'annotator']) == 0\n"
        "print('core.pipeline' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-2:] == ["False", "False"]
