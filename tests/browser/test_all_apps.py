"""Every app on one page: its example, its maps, its looks; the canvas, the offer to mend, all detectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import annotators
from apps import all_apps, all_pages, find_pages
from core.images import to_rgb
from core.weights.registry import Registry
from tests.apps.fakes import FakePipeline
from tests.apps.serving import served
from tests.browser import steps as visitor

pytestmark = pytest.mark.browser
Open = Callable[..., Any]
DRAWING = "scribble_interactive"
SHOTS = Path(__file__).parents[1] / "artifacts"  # to be looked at; git ignores them


@pytest.fixture(scope="module")
def all_url(pipeline: FakePipeline, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(all_pages(), pipeline, tmp_path_factory.mktemp("all")) as address:
        yield address


def keep(page: Any, name: str) -> None:
    SHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png")


def map_shown(page: Any, app: str, folder: Path) -> np.ndarray:
    source = page.locator(f"#{app}-gallery .thumbnail-lg img").first.get_attribute("src")
    (folder / "map.png").write_bytes(page.request.get(source).body())
    return to_rgb(folder / "map.png")


def test_one_click_on_an_example_makes_a_picture_in_every_app(
    open_page: Open, all_url: str, pipeline: FakePipeline, tmp_path: Path
) -> None:
    page = open_page(all_url)
    for app in all_apps():
        example = app.present_examples[0]
        visitor.open_tab(page, app.tab)
        page.locator(f"#{app.name}-examples button").first.click()
        visitor.wait_until_done(page, app.name)
        keep(page, f"{app.name}-done")
        request = pipeline.requests[-1]
        assert request.prompt.startswith(example.prompt)
        hint = request.controls[0].hint
        assert request.controls[0].control == app.control and hint.any()
        if example.preprocessor == "none":
            np.testing.assert_array_equal(map_shown(page, app.name, tmp_path), hint)


def test_an_example_sets_the_preprocessor_and_the_next_one_sets_it_back(
    open_page: Open, all_url: str
) -> None:
    page = open_page(all_url)
    (scribble,) = find_pages(["scribble"])
    kinds = [example.preprocessor for example in scribble.examples]
    visitor.open_tab(page, scribble.tab)
    visitor.open_options(page, "scribble")
    for kind, words in (("none", "None: my image is already a map"), ("detect", "Scribbles")):
        page.locator("#scribble-examples button").nth([str(k) for k in kinds].index(kind)).click()
        page.wait_for_function(
            "(text) => document.querySelector('#scribble-preprocessor input').value === text", arg=words
        )
        visitor.wait_until_done(page, "scribble")


def test_an_inverted_map_is_mended_in_one_click(
    open_page: Open, url: str, pipeline: FakePipeline, tmp_path: Path
) -> None:
    lines = np.full((256, 256, 3), 255, np.uint8)
    lines[100:104] = 0
    Image.fromarray(lines).save(tmp_path / "lines.png")
    page = open_page(url)
    visitor.upload(page, tmp_path / "lines.png")
    visitor.open_options(page)
    page.locator("#canny-preprocessor input").click()
    page.get_by_role("option", name="None: my image is already a map").click()
    page.locator("#canny-run").click()
    page.locator(".toast-body").get_by_text("dark on light").first.wait_for()
    page.locator("#canny-mend").get_by_text("Use it inverted").wait_for()
    visitor.wait_until_done(page)
    np.testing.assert_array_equal(pipeline.requests[-1].controls[0].hint, lines)
    asked = len(pipeline.requests)
    page.locator("#canny-mend").click()
    page.wait_for_function("!document.querySelector('#canny-mend')")
    visitor.wait_until_done(page)
    assert len(pipeline.requests) == asked + 1
    np.testing.assert_array_equal(pipeline.requests[-1].controls[0].hint, 255 - lines)


def test_a_drawing_on_the_canvas_becomes_the_hint(
    open_page: Open, pipeline: FakePipeline, tmp_path: Path
) -> None:
    with served(find_pages([DRAWING]), pipeline, tmp_path) as url:
        page = open_page(url)
        page.locator(f"#{DRAWING}-size").get_by_text("256 × 256").wait_for()
        page.wait_for_selector(f"#{DRAWING}-image [aria-label='Brush Size']")
        visitor.stroke(page, f"#{DRAWING}-image canvas", (0.3, 0.5), (0.7, 0.5))
        visitor.ask(page, "a red house", DRAWING)
        visitor.wait_until_done(page, DRAWING)
        hint = pipeline.requests[-1].controls[0].hint
        rows, columns = np.nonzero(hint[:, :, 0])
        assert set(np.unique(hint)) == {0, 255}
        assert abs(rows.mean() - 128) < 12 and np.ptp(rows) < 20 and np.ptp(columns) > 60
        visitor.set_number(page, "canvas_width", 1024, DRAWING)
        page.locator(f"#{DRAWING}-open").click()
        page.locator(f"#{DRAWING}-size").get_by_text("512 × 256").wait_for()
        page.close()  # before its server goes


def test_all_detectors_run_on_one_picture_and_say_what_they_lack(
    open_page: Open, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Registry, "find", lambda self, name: None)
    monkeypatch.setattr(annotators.load("pose"), "_cache", type(annotators.load("pose")._cache)())
    with served(find_pages(["annotator"]), None, tmp_path) as url:
        page = open_page(url)
        assert "not on this computer" in page.locator("#annotator-pose-note").inner_text()
        visitor.upload(page, photo, "annotator")
        page.locator("#annotator-run").click()
        visitor.wait_until_done(page, "annotator")
        page.wait_for_selector("#annotator-canny-map img")
        assert "NOT for commercial use" in page.locator("#annotator-pose-note").inner_text()
        assert page.locator("#annotator-pose-map").count() == 0
        assert page.locator("#head .cn-badge").count() == 0
        page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
def test_nothing_sticks_out_of_any_tab(
    open_page: Open, all_url: str, width: int, height: int, scheme: str
) -> None:
    page = open_page(all_url, width, height, scheme)
    for entry in all_pages():
        visitor.open_tab(page, entry.tab)
        page.wait_for_selector(f"#{entry.name}-run")
        keep(page, f"{entry.name}-{width}-{scheme}")
        assert visitor.too_wide(page) == [], entry.name


def test_the_tabs_that_open_by_themselves_fit_a_desktop(
    open_page: Open, pipeline: FakePipeline, tmp_path: Path
) -> None:
    with served(find_pages([]), pipeline, tmp_path) as url:
        page = open_page(url, 1280, 800)
        page.wait_for_selector("#canny-run")
        assert page.locator(".overflow-menu > button:visible").count() == 0
        page.close()


def test_what_is_painted_over_is_what_is_drawn_anew(
    open_page: Open, pipeline: FakePipeline, photo: Path, tmp_path: Path
) -> None:
    with served(find_pages(["inpaint"]), pipeline, tmp_path) as url:
        page = open_page(url)
        page.wait_for_selector(
            "#inpaint-image [aria-label='Upload button'], #inpaint-image input[type=file]", state="attached"
        )
        page.wait_for_selector("#inpaint-image canvas", state="attached")  # else it takes no file
        page.locator("#inpaint-image input[type=file]").first.set_input_files(str(photo))
        page.locator("#inpaint-size").get_by_text("px").wait_for()
        visitor.ask(page, "a red house", "inpaint")
        page.locator("#inpaint-status").get_by_text("Nothing is marked").wait_for()
        page.wait_for_selector("#inpaint-image [aria-label='Brush Size']")
        visitor.stroke(page, "#inpaint-image canvas", (0.4, 0.5), (0.6, 0.5))
        visitor.ask(page, "a red house", "inpaint")
        visitor.wait_until_done(page, "inpaint")
        request = pipeline.requests[-1]
        assert request.mask is not None and request.init is not None
        rows, columns = np.nonzero(request.mask == 255)
        height, width = request.height_width
        assert abs(rows.mean() - height / 2) < height / 8 and np.ptp(columns) > width / 8
        assert 0.005 < (request.mask == 255).mean() < 0.4
        wanted = to_rgb(photo)
        assert abs(float(request.init.mean()) - float(wanted.mean())) < 2
        page.close()  # before its server goes
