"""The page as a visitor meets it, in a real browser, drawing with a pipeline that needs no weights."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from core.images import to_rgb
from core.metadata import read_request
from tests.apps.fakes import FakePipeline, paint
from tests.apps.pictures import write_bad, write_unusual
from tests.browser import steps as visitor

pytestmark = pytest.mark.browser
Open = Callable[..., Any]


@pytest.fixture
def slowly(pipeline: FakePipeline) -> Iterator[FakePipeline]:
    """Make every step take 50 ms, so that there is something to watch and to cancel."""
    pipeline.gate = threading.Event()
    pipeline.stepping.clear()
    pipeline.closed_early.clear()
    yield pipeline
    pipeline.gate = pipeline.hold = None


def test_a_visitor_drops_a_photo_and_sees_size_map_preview_and_picture(
    open_page: Open, url: str, slowly: FakePipeline, photo: Path
) -> None:
    page = open_page(url)
    slowly.hold = threading.Event()
    visitor.drop(page, "#canny-image", photo)
    page.locator("#canny-size").get_by_text("320 × 256").wait_for()
    visitor.ask(page, "a red house")
    page.wait_for_selector("#canny-cancel")
    page.wait_for_function("document.querySelectorAll('#canny-gallery .caption-label').length === 1")
    assert visitor.captions(page) == ["Map"]
    slowly.hold.set()
    page.wait_for_function("document.querySelectorAll('#canny-gallery .caption-label').length === 2")
    assert visitor.captions(page) == ["Map", "Preview"]
    page.locator("#canny-status").get_by_text("of 20").wait_for()
    assert "left" in visitor.status(page)
    visitor.wait_until_done(page)
    seed = slowly.requests[-1].seed
    assert visitor.captions(page) == ["Map", f"Seed {seed}"]
    assert f"Seed {seed}" in visitor.status(page) and "320 × 256 px" in visitor.status(page)
    page.wait_for_selector("#canny-run")
    assert page.locator("#canny-cancel").count() == 0
    visitor.open_options(page)
    assert visitor.number(page, "seed") == seed
    assert slowly.requests[-1].prompt.startswith("a red house, ")


def test_the_size_follows_the_resolution_before_the_run(open_page: Open, url: str, photo: Path) -> None:
    page = open_page(url)
    visitor.upload(page, photo)
    visitor.open_options(page)
    assert visitor.number(page, "resolution") == 256
    visitor.set_number(page, "resolution", 512)
    page.locator("#canny-size").get_by_text("640 × 512").wait_for()


def test_cancel_stops_the_pipeline_and_the_next_run_works(
    open_page: Open, url: str, slowly: FakePipeline, photo: Path
) -> None:
    page = open_page(url)
    visitor.upload(page, photo)
    visitor.open_options(page)
    visitor.set_number(page, "steps", 100)
    visitor.ask(page, "a red house")
    page.locator("#canny-status").get_by_text("Step").wait_for()
    page.locator("#canny-cancel").click()
    assert slowly.closed_early.wait(40)
    assert not slowly.lock.locked()
    page.locator("#canny-status").get_by_text("Stopped").wait_for()
    page.wait_for_selector("#canny-run")
    assert visitor.number(page, "steps") == 100
    slowly.gate = None
    page.locator("#canny-run").click()
    visitor.wait_until_done(page)
    assert visitor.captions(page)[0] == "Map" and len(visitor.captions(page)) == 2


def test_one_click_on_an_example_makes_a_picture(open_page: Open, url: str, pipeline: FakePipeline) -> None:
    page = open_page(url)
    page.locator("#canny-examples button").nth(1).click()
    visitor.wait_until_done(page)
    prompt = page.locator("#canny-prompt textarea").input_value()
    assert prompt and pipeline.requests[-1].prompt.startswith(prompt)
    assert page.locator("#canny-image img").count() == 1


def test_a_fixed_seed_is_used_and_kept(
    open_page: Open, url: str, pipeline: FakePipeline, photo: Path
) -> None:
    page = open_page(url)
    visitor.upload(page, photo)
    visitor.open_options(page)
    page.locator("#canny-randomize input").uncheck()
    visitor.set_number(page, "seed", 1234)
    page.locator("#canny-run").click()
    visitor.wait_until_done(page)
    assert pipeline.requests[-1].seed == 1234 and visitor.number(page, "seed") == 1234


def test_a_downloaded_picture_dropped_back_restores_every_setting_and_the_map(
    open_page: Open, url: str, pipeline: FakePipeline, photo: Path, tmp_path: Path
) -> None:
    page = open_page(url)
    visitor.upload(page, photo)
    visitor.open_options(page)
    chosen = {"num_samples": 2, "resolution": 320, "strength": 0.55, "start": 0.1, "end": 0.9, "steps": 7}
    chosen |= {"low_threshold": 30, "high_threshold": 90, "cfg_scale": 3.3, "eta": 0.25}
    for name, value in chosen.items():
        visitor.set_number(page, name, value)
    page.locator("#canny-guess_mode input").check()
    page.locator("#canny-negative_prompt textarea").fill("rain")
    visitor.ask(page, "a red house, at dusk")
    visitor.wait_until_done(page)
    request = pipeline.requests[-1]
    page.locator("#canny-gallery .thumbnail-lg").nth(2).click()
    with page.expect_download() as download:
        page.locator(
            "#canny-gallery [aria-label='Download'], #canny-gallery [title='Download']"
        ).first.click()
    saved = tmp_path / download.value.suggested_filename
    download.value.save_as(saved)
    assert saved.name == f"canny-{request.seed + 1}.png"
    assert read_request(saved).picture_seed == request.seed + 1
    np.testing.assert_array_equal(to_rgb(saved), paint(request, request.seed + 1))

    fresh = open_page(url)
    visitor.open_options(fresh)
    visitor.drop(fresh, "#canny-restore", saved)
    fresh.locator("#canny-status").get_by_text("Settings restored").wait_for()
    assert {name: visitor.number(fresh, name) for name in chosen} == chosen
    assert visitor.number(fresh, "seed") == request.seed
    assert fresh.locator("#canny-guess_mode input").is_checked()
    assert not fresh.locator("#canny-randomize input").is_checked()
    assert fresh.locator("#canny-prompt textarea").input_value() == "a red house, at dusk"
    assert fresh.locator("#canny-negative_prompt textarea").input_value() == "rain"
    assert "already a map" in fresh.locator("#canny-preprocessor input").input_value()
    fresh.wait_for_selector("#canny-image img")
    fresh.locator("#canny-run").click()
    visitor.wait_until_done(fresh)
    again = pipeline.requests[-1]
    assert again.seed == request.seed and again.prompt == request.prompt
    np.testing.assert_array_equal(again.controls[0].hint, request.controls[0].hint)


def test_bad_files_are_told_and_the_settings_stay(open_page: Open, url: str, tmp_path: Path) -> None:
    page = open_page(url)
    for path, reason in write_bad(tmp_path).values():
        visitor.upload(page, path)
        visitor.ask(page, "a red house")
        page.locator(".toast-body").get_by_text(reason).first.wait_for()
        page.locator("#canny-status").get_by_text(reason).wait_for()
        page.wait_for_selector("#canny-run")
        assert page.locator("#canny-prompt textarea").input_value() == "a red house"
        page.locator(
            "#canny-image [aria-label='Remove Image'], #canny-image [aria-label='Clear']"
        ).first.click()
        page.locator(".toast-close").first.click()


def test_a_run_without_a_picture_and_with_a_huge_prompt_is_told(
    open_page: Open, url: str, photo: Path
) -> None:
    page = open_page(url)
    visitor.ask(page, "a red house")
    page.locator("#canny-status").get_by_text("There is no picture").wait_for()
    visitor.upload(page, photo)
    page.locator("#canny-prompt textarea").fill("x" * 100_001)
    page.locator("#canny-run").click()
    page.locator("#canny-status").get_by_text("100,001 characters").wait_for()


def test_unusual_pictures_are_drawn(open_page: Open, url: str, tmp_path: Path) -> None:
    page = open_page(url)
    for path in write_unusual(tmp_path).values():
        page.locator("#canny-image input[type=file]").set_input_files(str(path))
        page.locator("#canny-size").get_by_text("Will make").wait_for()
        visitor.ask(page, path.stem)
        visitor.wait_until_done(page)
        page.locator(
            "#canny-image [aria-label='Remove Image'], #canny-image [aria-label='Clear']"
        ).first.click()
        page.locator("#canny-size").get_by_text("Drop a picture").wait_for()
        page.evaluate("document.querySelector('#canny-status').querySelector('b').textContent = ''")


def test_a_picture_without_settings_is_refused_by_restore(open_page: Open, url: str, photo: Path) -> None:
    page = open_page(url)
    visitor.drop(page, "#canny-restore", photo)
    page.locator(".toast-body").get_by_text("carries no settings").first.wait_for()
    page.locator("#canny-status").get_by_text("carries no settings").wait_for()
    page.locator("#canny-restore").get_by_text("Drop File Here").wait_for()


def test_guess_mode_explains_itself_sets_what_is_advised_and_needs_no_prompt(
    open_page: Open, url: str, pipeline: FakePipeline, photo: Path
) -> None:
    page = open_page(url)
    visitor.upload(page, photo)
    page.locator("#canny-run").click()
    page.locator(".toast-body").get_by_text("Guess Mode, under Advanced options").wait_for()
    visitor.wait_until_done(page)
    visitor.open_options(page)
    assert "no prompt is needed" in page.locator("#canny-guess_mode").inner_text()
    assert page.locator("#canny-advise").count() == 0
    page.locator("#canny-guess_mode input").check()
    page.locator("#canny-advise").click()
    page.wait_for_function("document.querySelector('#canny-steps input[type=number]').value === '50'")
    assert visitor.number(page, "cfg_scale") == 4
    page.evaluate("document.querySelector('#canny-status').querySelector('b').textContent = ''")
    page.locator("#canny-run").click()
    visitor.wait_until_done(page)
    request = pipeline.requests[-1]
    assert (request.guess_mode, request.steps, request.cfg_scale) == (True, 50, 4.0)
    page.locator("#canny-guess_mode input").uncheck()
    page.wait_for_selector("#canny-advise", state="detached")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_a_phone(open_page: Open, url: str, photo: Path, scheme: str) -> None:
    page = open_page(url, 390, 844, scheme)
    visitor.upload(page, photo)
    visitor.open_options(page)
    page.locator("#canny-run").click()
    visitor.wait_until_done(page)
    assert visitor.too_wide(page) == []


def test_results_are_in_view_on_a_desktop_without_scrolling(open_page: Open, url: str, photo: Path) -> None:
    page = open_page(url)
    visitor.upload(page, photo)
    visitor.ask(page, "a red house")
    visitor.wait_until_done(page)
    box = page.locator("#canny-gallery .thumbnail-lg").nth(1).bounding_box()
    assert box["y"] + box["height"] <= 800
    run = page.locator("#canny-run").bounding_box()
    assert run["y"] + run["height"] <= 800


def test_dark_mode_follows_the_system_and_the_switch_and_is_remembered(open_page: Open, url: str) -> None:
    light, dark = open_page(url), open_page(url, scheme="dark")
    assert min(visitor.colours(light, "body")) > 200 > 60 > max(visitor.colours(dark, "body"))
    light.locator(".cn-theme-switch").click()
    assert max(visitor.colours(light, "body")) < 60
    light.reload()
    light.wait_for_selector("#canny-run")
    light.wait_for_function("document.body.classList.contains('dark')")
    assert max(visitor.colours(light, "body")) < 60


def test_the_header_says_which_model_draws_and_how_to_get_the_other(open_page: Open, url: str) -> None:
    head = open_page(url).locator("#head")
    head.get_by_text("ready").wait_for()
    assert "Toy-world demo model" in head.inner_text()
    assert "python -m core.weights get sd15 control_sd15_canny" in head.inner_text()


def test_the_map_can_be_enlarged_and_is_lossless(
    open_page: Open, url: str, pipeline: FakePipeline, photo: Path, tmp_path: Path
) -> None:
    page = open_page(url)
    visitor.upload(page, photo)
    visitor.ask(page, "a red house")
    visitor.wait_until_done(page)
    source = page.locator("#canny-gallery .thumbnail-lg img").first.get_attribute("src")
    (tmp_path / "map.png").write_bytes(page.request.get(source).body())
    np.testing.assert_array_equal(to_rgb(tmp_path / "map.png"), 255 - pipeline.requests[-1].controls[0].hint)
    assert Image.open(tmp_path / "map.png").format == "PNG"
