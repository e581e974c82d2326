from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import annotators
from annotators.maps import LINES
from annotators.networks import Weights
from apps import find_apps
from apps.page import drawing
from apps.page.drawing import draw, make_hint, size_of
from apps.page.files import PictureFolder
from apps.page.model import Model, Pipeline
from apps.page.plan import plan_one
from apps.page.settings import Settings, declare, parse
from core.errors import NumericalError, WeightsMissing
from core.images import fit_size, to_rgb
from core.metadata import read_request
from tests.apps.fakes import FakePipeline, paint
from tests.apps.pictures import scene, write_bad, write_unusual

(CANNY,) = find_apps(["canny"])


def settings(**changes: Any) -> Settings:
    declared = declare(annotators.load("canny"), 256)
    return parse({"prompt": "a fox", **{s.name: s.default for s in declared}, "seed": 7, **changes}, declared)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    scene().save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> PictureFolder:
    return PictureFolder(tmp_path / "served")


def test_the_map_comes_first_then_previews_then_the_pictures(
    photo: Path, folder: PictureFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawing, "PREVIEW_SECONDS", 0.0)
    pipeline = FakePipeline()
    frames = []
    for frame in draw(
        plan_one(CANNY, photo, settings(num_samples=2, steps=5)), Model.ready(pipeline), folder
    ):
        assert all(path.is_file() for path in frame.files)
        frames.append(frame)
    assert [frame.step for frame in frames] == [0, 1, 2, 3, 4, 5, 5]
    assert [len(frame.files) for frame in frames] == [1, 2, 2, 2, 2, 2, 3]
    assert frames[3].seconds_left == pytest.approx(0.01 * 2)
    shown = to_rgb(frames[0].files[0])
    np.testing.assert_array_equal(shown, 255 - pipeline.requests[0].controls[0].hint)
    for path, seed in zip(frames[-1].files[1:], (7, 8), strict=True):
        np.testing.assert_array_equal(to_rgb(path), paint(pipeline.requests[0], seed))


def test_previews_are_as_far_apart_as_they_are_wanted(photo: Path, folder: PictureFolder) -> None:
    plan, model = plan_one(CANNY, photo, settings(steps=5)), Model.ready(FakePipeline())

    assert [frame.step for frame in draw(plan, model, folder, 0.0)] == [0, 1, 2, 3, 4, 5, 5]
    assert [frame.step for frame in draw(plan, model, folder, 3600.0)] == [0, 1, 5, 5]


def test_without_previews_the_map_alone_is_shown_meanwhile(photo: Path, folder: PictureFolder) -> None:
    plan, model = plan_one(CANNY, photo, settings(steps=5)), Model.ready(FakePipeline())

    frames = list(draw(plan, model, folder, 0.0, previews=False))

    assert [frame.step for frame in frames] == [0, 1, 2, 3, 4, 5, 5]
    assert [len(frame.files) for frame in frames] == [1, 1, 1, 1, 1, 1, 2]


def test_maps_are_made_in_a_thread_that_is_gone_when_drawing_begins(
    photo: Path, folder: PictureFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[threading.Thread] = []
    make = drawing.make_hints

    def watched(sources: Any) -> Any:
        used.append(threading.current_thread())
        return make(sources)

    monkeypatch.setattr(drawing, "make_hints", watched)
    next(draw(plan_one(CANNY, photo, settings()), Model.ready(FakePipeline()), folder))
    assert used[0] is not threading.current_thread() and not used[0].is_alive()


@pytest.mark.parametrize("demo", [True, False])
def test_pictures_tell_which_detector_made_the_map(
    photo: Path, folder: PictureFolder, monkeypatch: pytest.MonkeyPatch, demo: bool
) -> None:
    detector = type(annotators.load("canny"))
    monkeypatch.setattr(detector, "used_weights", lambda self: Weights("some_weights", "Some", demo))
    frames = list(draw(plan_one(CANNY, photo, settings()), Model.ready(FakePipeline()), folder))
    assert all(frame.maps == ("Map by the demo detector" if demo else "Map",) for frame in frames)
    for path in frames[-1].files:
        assert read_request(path).settings["detector_weights"] == "some_weights"


def test_previews_have_the_shape_of_the_picture_and_are_gone_afterwards(
    photo: Path, folder: PictureFolder
) -> None:
    frames = draw(plan_one(CANNY, photo, settings()), Model.ready(FakePipeline()), folder)
    next(frames)
    with Image.open(next(frames).files[1]) as preview:
        assert preview.size == (320, 256)
    list(frames)
    assert sorted(path.name for path in folder.path.iterdir()) == ["canny-7.png", "canny-map-7.png"]


def test_previews_come_no_faster_than_they_can_be_shown(photo: Path, folder: PictureFolder) -> None:
    frames = list(draw(plan_one(CANNY, photo, settings(steps=100)), Model.ready(FakePipeline()), folder))
    assert len(frames) < 50
    assert frames[-2].step == 100


def test_the_map_is_there_before_the_model_is(
    photo: Path, folder: PictureFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawing, "LOADING_SECONDS", 0.001)
    allowed = threading.Event()

    def load() -> Pipeline:
        allowed.wait(10)
        return FakePipeline()

    frames = draw(plan_one(CANNY, photo, settings()), Model("demo", "Demo", 256, load), folder)
    assert next(frames).files[0].is_file()
    assert "Loading Demo" in next(frames).text
    allowed.set()
    assert list(frames)[-1].result is not None


def test_closing_frees_the_pipeline_and_deletes_the_previews(photo: Path, folder: PictureFolder) -> None:
    pipeline = FakePipeline()
    frames = draw(plan_one(CANNY, photo, settings()), Model.ready(pipeline), folder)
    next(frames)
    preview = next(frames).files[1]
    assert pipeline.lock.locked() and preview.is_file()
    frames.close()
    assert not pipeline.lock.locked() and pipeline.closed_early.is_set() and not preview.exists()


def test_missing_weights_are_told_in_the_pipelines_words(photo: Path, folder: PictureFolder) -> None:
    pipeline = FakePipeline(
        missing="control_sd15_canny is missing. Get it with: python -m core.weights get it"
    )
    frames = draw(plan_one(CANNY, photo, settings()), Model.ready(pipeline), folder)
    next(frames)
    with pytest.raises(WeightsMissing, match="python -m core.weights get it"):
        next(frames)
    assert not pipeline.requests


def test_an_error_while_drawing_frees_the_pipeline(photo: Path, folder: PictureFolder) -> None:
    pipeline = FakePipeline(failure=NumericalError("Not finite: choose float32."))
    with pytest.raises(NumericalError):
        list(draw(plan_one(CANNY, photo, settings()), Model.ready(pipeline), folder))
    assert not pipeline.lock.locked()


def test_the_original_size_rule_is_announced_before_the_run(tmp_path: Path) -> None:
    for width, height in [(320, 256), (100, 900), (1, 1), (1000, 333)]:
        path = tmp_path / "any.png"
        Image.new("RGB", (width, height)).save(path)
        announced = size_of(path, 256)
        assert announced == fit_size(height, width, 256)
        assert make_hint(CANNY, path, settings()).hint.shape[:2] == announced


def test_a_camera_picture_on_its_side_is_announced_upright(tmp_path: Path) -> None:
    image, exif = Image.new("RGB", (320, 256)), Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "side.jpg", exif=exif)
    assert size_of(tmp_path / "side.jpg", 256) == (320, 256)
    assert make_hint(CANNY, tmp_path / "side.jpg", settings()).hint.shape[:2] == (320, 256)


def test_unusual_pictures_work(tmp_path: Path) -> None:
    for name, path in write_unusual(tmp_path).items():
        hint = make_hint(CANNY, path, settings()).hint
        assert hint.shape[:2] == size_of(path, 256), name
        assert hint.any() or name == "one_pixel", name


def test_bad_files_are_refused_with_the_reason(tmp_path: Path) -> None:
    for name, (path, reason) in write_bad(tmp_path).items():
        with pytest.raises(ValueError, match=reason):
            make_hint(CANNY, path, settings())
        if name == "truncated.png":  # its size can be read; the damage shows when it is decoded
            assert size_of(path, 256) == (256, 256)
            continue
        with pytest.raises(ValueError, match=reason):
            size_of(path, 256)


def test_a_ready_map_is_taken_as_it_is_or_inverted(tmp_path: Path) -> None:
    lines = np.zeros((256, 256, 3), np.uint8)
    lines[100:104] = 255
    Image.fromarray(lines).save(tmp_path / "map.png")
    taken = make_hint(CANNY, tmp_path / "map.png", settings(preprocessor="none"))
    np.testing.assert_array_equal(taken.hint, lines)
    np.testing.assert_array_equal(taken.preview, lines)  # just what the network gets
    inverted = make_hint(CANNY, tmp_path / "map.png", settings(preprocessor="invert"))
    np.testing.assert_array_equal(inverted.hint, 255 - lines)


@pytest.mark.parametrize(
    ("ground", "kind", "warned"), [(255, "none", True), (0, "none", False), (255, "invert", False)]
)
def test_a_map_that_seems_inverted_is_warned_of_once(
    tmp_path: Path, folder: PictureFolder, ground: int, kind: str, warned: bool
) -> None:
    lines = np.full((256, 256, 3), ground, np.uint8)
    lines[100:104] = 255 - ground
    Image.fromarray(lines).save(tmp_path / "map.png")
    frames = draw(
        plan_one(CANNY, tmp_path / "map.png", settings(preprocessor=kind)),
        Model.ready(FakePipeline()),
        folder,
    )
    assert [bool(frame.note) for frame in frames].count(True) == int(warned)


def test_the_thresholds_reach_the_detector(photo: Path) -> None:
    few = make_hint(CANNY, photo, settings(low_threshold=250, high_threshold=255)).hint
    many = make_hint(CANNY, photo, settings(low_threshold=1, high_threshold=2)).hint
    assert (few > 0).sum() < (many > 0).sum()


def test_every_setting_reaches_the_request(photo: Path, folder: PictureFolder) -> None:
    pipeline = FakePipeline()
    changed = settings(
        num_samples=3, strength=0.5, start=0.1, end=0.9, guess_mode=True, steps=4, sampler="unipc",
        cfg_scale=3.0, seed=11, eta=0.5, added_prompt="b", negative_prompt="c", resolution=320,
        control_interval=2, cache_interval=3, token_merging_ratio=0.25,
    )  # fmt: skip
    list(draw(plan_one(CANNY, photo, changed), Model.ready(pipeline), folder))
    request = pipeline.requests[0]
    assert (request.prompt, request.negative_prompt) == ("a fox, b", "c")
    assert (request.num_samples, request.steps, request.sampler) == (3, 4, "unipc")
    assert (request.cfg_scale, request.eta, request.seed, request.guess_mode) == (3.0, 0.5, 11, True)
    assert request.speed_options == {
        "control_interval": 2, "cache_interval": 3, "token_merging_ratio": 0.25,
    }  # fmt: skip
    unit = request.controls[0]
    assert (unit.control, unit.strength, unit.start, unit.end) == ("canny", 0.5, 0.1, 0.9)
    assert unit.size == fit_size(256, 320, 320)


def test_every_file_carries_the_settings(photo: Path, folder: PictureFolder) -> None:
    *_, last = draw(plan_one(CANNY, photo, settings(num_samples=2)), Model.ready(FakePipeline()), folder)
    stored = [read_request(path) for path in last.files]
    assert [s.picture_seed for s in stored] == [7, 7, 8]
    for one in stored:
        assert (one.seed, one.model, one.num_samples) == (7, "demo", 2)
        assert one.settings["app"] == "canny" and one.settings["low_threshold"] == 100


@pytest.mark.parametrize(
    ("ground", "kind", "offered"), [(255, "none", True), (0, "none", False), (255, "invert", False)]
)
def test_mending_is_offered_just_where_it_takes_the_doubt_away(
    tmp_path: Path, folder: PictureFolder, ground: int, kind: str, offered: bool
) -> None:
    lines = np.full((256, 256, 3), ground, np.uint8)
    lines[100:104] = 255 - ground
    Image.fromarray(lines).save(tmp_path / "map.png")
    frames = draw(
        plan_one(CANNY, tmp_path / "map.png", settings(preprocessor=kind)),
        Model.ready(FakePipeline()),
        folder,
    )
    assert [frame.mendable for frame in frames].count(True) == int(offered)


def test_mending_is_not_offered_for_a_doubt_that_it_would_not_take_away(
    tmp_path: Path, folder: PictureFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = dataclasses.replace(LINES, doubt=lambda given: "Strange.")
    monkeypatch.setattr(type(annotators.load("canny")), "kind", kind)
    scene().save(tmp_path / "map.png")
    frames = draw(
        plan_one(CANNY, tmp_path / "map.png", settings(preprocessor="none")),
        Model.ready(FakePipeline()),
        folder,
    )
    first = next(frames)
    assert first.note == "Strange." and not first.mendable
