"""Several controls at once: what a unit asks for, how pictures are fitted, the endpoint, and the way back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gradio_client import Client, handle_file
from PIL import Image

import annotators
from annotators.base import Slider
from apps import all_apps, controls_of, find_apps, find_pages
from apps.page.drawing import draw, make_hint, make_hints
from apps.page.files import PictureFolder
from apps.page.forms import JointForm
from apps.page.model import Model
from apps.page.plan import Plan, plan_one
from apps.page.restore import restore, restore_units
from apps.page.settings import declare, declare_run, declare_unit, parse
from apps.spec import Joint
from core.config import load_config
from core.images import crop_to_proportions, fit_size, to_rgb
from core.metadata import read_request
from core.request import Request
from tests.apps.fakes import FakePipeline
from tests.apps.pictures import scene, write_bad
from tests.apps.serving import served

(PAGE,) = find_pages(["multi"])
assert isinstance(PAGE, Joint)
JOINT: Joint = PAGE
FORM = JointForm(JOINT, 256, 9.0)
Pictures = tuple[Path, Path]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    """A photo, 320 x 256, and a ready map of other proportions, 300 x 500 (height, width)."""
    folder = tmp_path_factory.mktemp("pictures")
    scene(320, 256).save(folder / "photo.png")
    lines = np.zeros((300, 500, 3), np.uint8)
    lines[:, 248:252] = 255
    Image.fromarray(lines).save(folder / "map.png")
    return folder / "photo.png", folder / "map.png"


def upload(path: Path) -> dict[str, Any]:
    return {"path": str(path), "meta": {"_type": "gradio.FileData"}}


def values(**changes: Any) -> dict[str, Any]:
    """Return what a call leaves out, and the changes."""
    given = {field.name: getattr(field, "default", None) for field in FORM.fields}
    assert changes.keys() <= given.keys()
    return {**given, "prompt": "a fox", **changes}


def two_units(pictures: Pictures, **changes: Any) -> Plan:
    photo, ready = pictures
    given = {
        "image_2": upload(photo), "detector_2": "canny", "low_threshold_2": 30, "strength_2": 0.5,
        "image_4": upload(ready), "detector_4": "mlsd", "preprocessor_4": "none", "start_4": 0.1,
        "end_4": 0.8, "seed": 7,
    }  # fmt: skip
    return FORM.plan(values(**{**given, **changes}))


def test_units_may_take_every_app_that_is_given_a_picture() -> None:
    assert set(FORM.apps) == {app.name for app in find_apps(JOINT.apps)}
    of_1_0 = {app.control for app in all_apps() if not app.group}
    assert of_1_0 <= set(controls_of([JOINT])) <= set(load_config("sd15").controls)
    assert len(JOINT.first) == 4 and JOINT.shown == 2


def test_examples_are_there_and_work_without_weights_that_do_not_come_along() -> None:
    assert JOINT.present_examples == JOINT.examples and len(JOINT.examples) >= 3
    for example in JOINT.examples:
        for one in (example, *example.others):
            assert one.app in {"canny", "hed", "mlsd"} or one.preprocessor == "none"
        assert example.prompt and 1 + len(example.others) >= JOINT.shown


@pytest.mark.parametrize("name", JOINT.apps)
def test_a_unit_and_a_run_together_ask_for_what_the_app_alone_asks_for(name: str) -> None:
    annotator = annotators.load(FORM.apps[name].annotator)
    together = {*declare_unit(annotator, 256), *declare_run(256, 9.0)}
    assert together == set(declare(annotator, 256, 9.0))
    assert {s.name for s in FORM.own[name]} <= set(FORM.slots)


@pytest.mark.parametrize("name", JOINT.apps)
def test_what_is_left_out_has_the_default_of_the_units_detector(name: str, pictures: Pictures) -> None:
    (source,) = FORM.plan(values(image_1=upload(pictures[0]), detector_1=name, seed=3)).sources
    alone = declare(annotators.load(FORM.apps[name].annotator), 256, 9.0)
    defaults = {s.name: s.default for s in alone}
    assert source.settings == parse({"prompt": "a fox", **defaults, "seed": 3}, alone)


def test_units_without_a_picture_do_not_count_and_each_keeps_its_own_settings(pictures: Pictures) -> None:
    first, second = two_units(pictures).sources
    assert (first.app.name, second.app.name) == ("canny", "mlsd")
    assert (first.title, first.label) == ("Unit 2", "Map 2: Canny")
    assert dict(first.settings.detector)["low_threshold"] == 30
    assert (first.settings.strength, second.settings.strength) == (0.5, 1.0)
    assert (second.settings.start, second.settings.end, second.settings.preprocessor) == (0.1, 0.8, "none")


def test_a_random_seed_is_drawn_once_for_all_units(pictures: Pictures) -> None:
    first, second = two_units(pictures, seed=-1).sources
    assert first.settings.seed == second.settings.seed >= 0


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"image_2": None, "image_4": None}, "no picture in any unit"),
        ({"low_threshold_2": 300}, "^Unit 2: low_threshold is 300"),
        ({"distance_threshold_2": 1.0}, "^Unit 2: canny has no control distance_threshold: it has"),
        ({"detector_4": "cany"}, "^Unit 4: detector_4 is 'cany': give one of canny"),
        ({"start_4": 0.9}, "^Unit 4: start is 0.9, after end 0.8"),
        ({"steps": 0}, "^steps is 0"),
        ({"image_2": "photo.png"}, "^Unit 2: image is 'photo.png'"),
    ],
)
def test_what_is_wrong_is_told_with_its_unit(pictures: Pictures, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        two_units(pictures, **changes)


def test_the_page_sends_no_values_of_controls_that_a_detector_lacks(pictures: Pictures) -> None:
    sent = []
    for field in FORM.fields:  # as components have them: those not shown have values too
        default = getattr(field, "default", getattr(getattr(field, "setting", None), "default", None))
        sent.append(upload(pictures[0]) if field.name == "image_1" else default)
    (source,) = FORM.plan(FORM.named(sent)).sources
    assert dict(source.settings.detector) == {"low_threshold": 100, "high_threshold": 200}


@pytest.mark.parametrize("size", [(300, 500), (500, 300), (64, 64), (1, 900), (257, 321)])
def test_a_picture_is_cut_in_the_middle_to_the_firsts_proportions(size: tuple[int, int]) -> None:
    picture = np.zeros((*size, 3), np.uint8)
    picture[:, :, 0], picture[:, :, 1] = np.arange(size[1]) % 251, (np.arange(size[0]) % 251)[:, None]
    cut = crop_to_proportions(picture, (256, 320))
    height, width = cut.shape[:2]
    assert size[0] == height or size[1] == width
    assert abs(height * 320 - width * 256) <= 320  # within a pixel
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    np.testing.assert_array_equal(cut, picture[top : top + height, left : left + width])


def test_the_first_picture_decides_the_size_and_the_same_picture_is_not_cut(pictures: Pictures) -> None:
    photo, _ = pictures
    first, second = make_hints(two_units(pictures).sources)
    assert first.hint.shape == second.hint.shape == (*fit_size(256, 320, 256), 3)
    twice = two_units(pictures, image_4=upload(photo), detector_4="canny", preprocessor_4="detect")
    one, other = make_hints(twice.sources)
    alone = make_hint(twice.sources[1].app, photo, twice.sources[1].settings)
    np.testing.assert_array_equal(other.hint, alone.hint)
    assert one.hint.any()


def drawn(plan: Plan, folder: Path) -> tuple[Request, tuple[Path, ...]]:
    pipeline = FakePipeline()
    *_, last = draw(plan, Model.ready(pipeline), PictureFolder(folder))
    return pipeline.requests[0], last.files


def test_all_controls_reach_the_pipeline_and_all_maps_are_shown(pictures: Pictures, tmp_path: Path) -> None:
    plan = two_units(pictures, num_samples=2)
    request, files = drawn(plan, tmp_path)
    first, second = request.controls
    assert (first.control, first.strength, second.control) == ("canny", 0.5, "mlsd")
    assert (second.start, second.end) == (0.1, 0.8)
    names = ["multi-map-1-7.png", "multi-map-2-7.png", "multi-7.png", "multi-8.png"]
    assert [file.name for file in files] == names
    np.testing.assert_array_equal(to_rgb(files[1]), second.hint)


def test_a_map_that_seems_wrong_is_told_with_its_unit(pictures: Pictures, tmp_path: Path) -> None:
    inverted = tmp_path / "inverted.png"
    Image.fromarray(255 - to_rgb(pictures[1])).save(inverted)
    plan = two_units(pictures, image_4=upload(inverted))
    note = next(iter(draw(plan, Model.ready(FakePipeline()), PictureFolder(tmp_path)))).note
    assert note.startswith("Unit 4: Your map seems to be dark on light")


def test_an_unreadable_picture_is_told_with_its_unit(pictures: Pictures, tmp_path: Path) -> None:
    path, reason = write_bad(tmp_path)["truncated.png"]
    with pytest.raises(ValueError, match=f"^Unit 4: .*{reason}"):
        make_hints(two_units(pictures, image_4=upload(path)).sources)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_every_unit_comes_back_from_each_file(pictures: Pictures, tmp_path: Path, index: int) -> None:
    request, files = drawn(two_units(pictures, steps=9, guess_mode=True), tmp_path)
    found, units = restore_units(files[index], FORM)
    assert found.prompt == "a fox" and found.notes == ()
    assert (found.values["steps"], found.values["seed"], found.values["guess_mode"]) == (9, 7, True)
    assert [unit.app for unit in units] == ["canny", "mlsd"]
    assert units[0].values["low_threshold"] == 30 and units[0].values["strength"] == 0.5
    assert (units[1].values["start"], units[1].values["end"]) == (0.1, 0.8)
    for unit, control in zip(units, request.controls, strict=True):
        assert unit.hint is not None and unit.values["preprocessor"] == "none"
        np.testing.assert_array_equal(unit.hint, control.hint)


def test_what_comes_back_makes_the_same_request(pictures: Pictures, tmp_path: Path) -> None:
    request, files = drawn(two_units(pictures), tmp_path / "first")
    found, units = restore_units(files[-1], FORM)
    again = values(**found.values, prompt=found.prompt)
    for number, unit in enumerate(units, 1):
        assert unit.hint is not None
        Image.fromarray(unit.hint).save(tmp_path / f"{number}.png")
        again |= {f"{name}_{number}": value for name, value in unit.values.items()}
        again |= {f"detector_{number}": unit.app, f"image_{number}": upload(tmp_path / f"{number}.png")}
    second, _ = drawn(FORM.plan(again), tmp_path / "second")
    assert second.prompt == request.prompt
    for ours, theirs in zip(second.controls, request.controls, strict=True):
        assert (ours.control, ours.strength, ours.start, ours.end) == (
            theirs.control, theirs.strength, theirs.start, theirs.end,
        )  # fmt: skip
        np.testing.assert_array_equal(ours.hint, theirs.hint)


def test_pictures_go_from_one_kind_of_page_to_the_other(pictures: Pictures, tmp_path: Path) -> None:
    (fake,) = find_apps(["fake_scribble"])
    declared = declare(annotators.load(fake.annotator), 256)
    chosen = {s.name: s.default for s in declared} | {"preprocessor": "none", "seed": 5, "strength": 0.7}
    plan = plan_one(fake, pictures[1], parse({"prompt": "a fox", **chosen}, declared))
    _, files = drawn(plan, tmp_path)
    _, (unit,) = restore_units(files[1], FORM)
    assert unit.app == "fake_scribble" and unit.values["strength"] == 0.7 and unit.hint is not None
    _, files = drawn(two_units(pictures), tmp_path)
    back = restore(files[-1], declared)
    assert back.values["strength"] == 0.5 and back.values["preprocessor"] == "none"


def test_more_controls_than_units_are_told(pictures: Pictures, tmp_path: Path) -> None:
    request, files = drawn(two_units(pictures), tmp_path)
    few = JointForm(Joint(name="few", title="", tab="", order=0, apps=("canny",), first=("canny",)), 256, 9.0)
    found, units = restore_units(files[-1], few)
    assert len(units) == 1 and any("mlsd" in note for note in found.notes)


@pytest.fixture(scope="module")
def pipeline() -> FakePipeline:
    return FakePipeline()


@pytest.fixture(scope="module")
def client(pipeline: FakePipeline, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with served([JOINT], pipeline, tmp_path_factory.mktemp("served")) as url:
        yield Client(url, verbose=False, download_files=tmp_path_factory.mktemp("downloads"))


def test_the_endpoint_takes_units_by_name_and_needs_none_of_them_but_one_image(
    client: Client, pipeline: FakePipeline, pictures: Pictures
) -> None:
    described = client.view_api(return_format="dict")["named_endpoints"]
    assert list(described) == ["/multi"] and "several controls" in described["/multi"]["description"]
    parameters = described["/multi"]["parameters"]
    assert [p["parameter_name"] for p in parameters] == [field.name for field in FORM.fields]
    assert all(p["parameter_has_default"] for p in parameters)
    photo, ready = pictures
    files, seed = client.predict(
        prompt="a fox",
        image_1=handle_file(photo),
        detector_1="canny",
        low_threshold_1=40,
        image_3=handle_file(ready),
        detector_3="depth",
        preprocessor_3="none",
        strength_3=0.5,
        seed=5,
        api_name="/multi",
    )
    request = pipeline.requests[-1]
    assert [unit.control for unit in request.controls] == ["canny", "depth"]
    assert len(files) == 3 and seed == 5
    stored = read_request(files[-1])
    assert [unit.control for unit in stored.controls] == ["canny", "depth"]
    assert stored.settings["low_threshold_1"] == 40 and stored.settings["detector_2"] == "depth"


def test_the_endpoint_tells_what_is_wrong_with_the_unit(client: Client, pictures: Pictures) -> None:
    with pytest.raises(Exception, match="Unit 1: canny has no control distance_threshold"):
        client.predict(image_1=handle_file(pictures[0]), distance_threshold_1=1.0, api_name="/multi")
    with pytest.raises(Exception, match="no picture in any unit"):
        client.predict(prompt="a fox", api_name="/multi")


def test_a_slot_that_detectors_share_means_the_same_kind_of_value() -> None:
    for own in FORM.own.values():
        for setting in own:
            shared = FORM.slots[setting.name]
            assert type(setting) is type(shared)
            if isinstance(setting, Slider) and isinstance(shared, Slider):
                same = (shared.minimum, shared.maximum, shared.step)
                assert (setting.minimum, setting.maximum, setting.step) == same
