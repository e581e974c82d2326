"""A page with several controls, in a real browser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps import find_pages
from core.images import to_rgb
from tests.apps.fakes import FakePipeline
from tests.apps.serving import served
from tests.browser import steps as visitor

pytestmark = pytest.mark.browser
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def joint_url(pipeline: FakePipeline, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(find_pages(["multi"]), pipeline, tmp_path_factory.mktemp("served")) as address:
        yield address


def choose(page: Any, unit: int, label: str) -> None:
    page.locator(f"#multi-detector_{unit} input").click()
    page.get_by_role("option", name=label, exact=True).click()


def test_two_units_are_filled_drawn_downloaded_and_restored(
    open_page: Open, joint_url: str, pipeline: FakePipeline, photo: Path, tmp_path: Path
) -> None:
    page = open_page(joint_url)
    visitor.upload(page, photo, "multi-1")
    page.locator("#multi-size").get_by_text("320 × 256").wait_for()
    page.locator("#multi-2-same").click()
    page.wait_for_selector("#multi-2-image img")
    choose(page, 2, "M-LSD")
    page.locator("#multi-2-options > button").click()
    page.wait_for_selector("#multi-2-value_threshold")
    assert page.locator("#multi-2-low_threshold").count() == 0
    visitor.set_number(page, "value_threshold", 0.2, "multi-2")
    visitor.set_number(page, "strength", 0.5, "multi-2")
    visitor.ask(page, "a red house", "multi")
    visitor.wait_until_done(page, "multi")
    request = pipeline.requests[-1]
    assert [unit.control for unit in request.controls] == ["canny", "mlsd"]
    assert [unit.strength for unit in request.controls] == [1.0, 0.5]
    assert visitor.captions(page, "multi") == ["Map 1: Canny", "Map 2: M-LSD", f"Seed {request.seed}"]
    source = page.locator("#multi-gallery .thumbnail-lg img").nth(2).get_attribute("src")
    (tmp_path / "made.png").write_bytes(page.request.get(source).body())

    fresh = open_page(joint_url)
    visitor.drop(fresh, "#multi-restore", tmp_path / "made.png")
    fresh.locator("#multi-status").get_by_text("Settings restored").wait_for()
    fresh.wait_for_selector("#multi-2-image img")
    assert visitor.number(fresh, "strength", "multi-2") == 0.5
    fresh.locator("#multi-run").click()
    visitor.wait_until_done(fresh, "multi")
    again = pipeline.requests[-1]
    assert (again.prompt, again.seed) == (request.prompt, request.seed)
    for ours, theirs in zip(again.controls, request.controls, strict=True):
        assert (ours.control, ours.strength) == (theirs.control, theirs.strength)
        np.testing.assert_array_equal(ours.hint, theirs.hint)
    assert to_rgb(tmp_path / "made.png").shape == (256, 320, 3)


def test_units_are_added_and_removed_and_a_removed_one_does_not_count(
    open_page: Open, joint_url: str, pipeline: FakePipeline, photo: Path
) -> None:
    page = open_page(joint_url)
    assert page.locator("#multi-2").is_visible() and page.locator("#multi-3").count() == 0
    for unit in (3, 4):
        page.locator("#multi-add").click()
        page.wait_for_selector(f"#multi-{unit}")
    page.wait_for_selector("#multi-add", state="detached")
    visitor.upload(page, photo, "multi-1")
    page.locator("#multi-3-same").click()
    page.wait_for_selector("#multi-3-image img")
    page.locator("#multi-3-remove").click()
    page.wait_for_selector("#multi-3", state="detached")
    visitor.ask(page, "a red house", "multi")
    visitor.wait_until_done(page, "multi")
    assert len(pipeline.requests[-1].controls) == 1
    page.locator("#multi-add").click()
    page.wait_for_selector("#multi-3")
    assert page.locator("#multi-3-image img").count() == 0


def test_one_click_on_an_example_fills_the_units_and_makes_a_picture(
    open_page: Open, joint_url: str, pipeline: FakePipeline
) -> None:
    page = open_page(joint_url)
    page.locator("#multi-examples button").nth(1).click()
    visitor.wait_until_done(page, "multi")
    request = pipeline.requests[-1]
    assert [unit.control for unit in request.controls] == ["depth", "canny"]
    assert visitor.preprocessor(page, "multi-1").startswith("None: my image is already")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_of_several_units_is_wider_than_a_phone(
    open_page: Open, joint_url: str, photo: Path, scheme: str
) -> None:
    page = open_page(joint_url, 390, 844, scheme)
    visitor.upload(page, photo, "multi-1")
    page.locator("#multi-2-same").click()
    page.wait_for_selector("#multi-2-image img")
    for unit in (1, 2):
        page.locator(f"#multi-{unit}-options > button").click()
    page.locator("#multi-run").click()
    visitor.wait_until_done(page, "multi")
    assert visitor.too_wide(page) == []
