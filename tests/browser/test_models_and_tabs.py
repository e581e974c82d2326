"""What the page says while its model loads or lacks weights, and several apps on one page."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apps import find_apps
from apps.page.model import Model, Pipeline
from core.errors import WeightsMissing
from tests.apps.fakes import FakePipeline
from tests.apps.serving import served
from tests.browser import steps as visitor

pytestmark = pytest.mark.browser
(CANNY,) = find_apps(["canny"])
Open = Callable[..., Any]
GET_IT = "control_sd15_canny (723 MB) is missing. Get it with: python -m core.weights get control_sd15_canny"


def test_the_page_is_up_while_the_model_loads_and_a_run_waits_for_it(
    open_page: Open, photo: Path, tmp_path: Path
) -> None:
    allowed, pipeline = threading.Event(), FakePipeline()

    def load() -> Pipeline:
        allowed.wait(30)
        return pipeline

    with served([CANNY], Model("demo", "Toy-world demo model", 256, load), tmp_path) as url:
        page = open_page(url)
        page.locator("#head").get_by_text("loading").wait_for()
        visitor.upload(page, photo)
        visitor.ask(page, "a red house")
        page.locator("#canny-status").get_by_text("Loading Toy-world demo model").wait_for()
        page.wait_for_selector("#canny-gallery .caption-label")
        assert visitor.captions(page) == ["Map"]
        allowed.set()
        visitor.wait_until_done(page)
        page.locator("#head").get_by_text("ready").wait_for()


def test_a_model_that_cannot_be_loaded_says_why_and_how_to_mend_it(
    open_page: Open, photo: Path, tmp_path: Path
) -> None:
    def load() -> Pipeline:
        raise WeightsMissing(GET_IT)

    with served([CANNY], Model("sd15", "Stable Diffusion 1.5", 512, load), tmp_path) as url:
        page = open_page(url)
        page.locator("#head").get_by_text("not loaded").wait_for()
        assert "--model demo" in page.locator("#head").inner_text()
        page.locator(".cn-notice").get_by_text(GET_IT).first.wait_for()
        visitor.upload(page, photo)
        visitor.ask(page, "a red house")
        page.locator("#canny-status").get_by_text(GET_IT).wait_for()


def test_an_app_without_its_controlnet_opens_and_says_what_is_missing(
    open_page: Open, photo: Path, tmp_path: Path
) -> None:
    with served([CANNY], FakePipeline(missing=GET_IT), tmp_path) as url:
        page = open_page(url)
        page.locator(".cn-notice").get_by_text(GET_IT).wait_for()
        visitor.upload(page, photo)
        visitor.ask(page, "a red house")
        page.locator("#canny-status").get_by_text(GET_IT).wait_for()
        page.wait_for_selector("#canny-run")


def test_apps_are_tabs_that_share_the_image_the_prompt_and_one_queue(
    open_page: Open, photo: Path, tmp_path: Path
) -> None:
    second = dataclasses.replace(CANNY, name="second", tab="Second")
    third = dataclasses.replace(CANNY, name="third", tab="Third", examples=())
    pipeline = FakePipeline()
    with served([CANNY, second, third], pipeline, tmp_path) as url:
        page = open_page(url)
        visitor.upload(page, photo)
        page.locator("#canny-prompt textarea").fill("a red house")
        for app in (second, third):
            page.get_by_role("tab", name=app.tab).click()
            page.wait_for_selector(f"#{app.name}-image img")
            page.wait_for_function(
                "(id) => document.querySelector(id)?.value === 'a red house'",
                arg=f"#{app.name}-prompt textarea",
            )
        page.locator("#third-prompt textarea").fill("a blue house")
        page.locator("#third-run").click()
        visitor.wait_until_done(page, "third")
        assert pipeline.requests[-1].prompt.startswith("a blue house")
        page.get_by_role("tab", name=CANNY.tab).click()
        page.wait_for_function("document.querySelector('#canny-prompt textarea').value === 'a blue house'")
        page.locator(
            "#canny-image [aria-label='Remove Image'], #canny-image [aria-label='Clear']"
        ).first.click()
        page.get_by_role("tab", name=second.tab).click()
        page.locator("#second-size").get_by_text("Drop a picture").wait_for()
        assert page.locator("#second-image img").count() == 0
