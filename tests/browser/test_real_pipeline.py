"""The page with the real pipeline: the bundled demo model where its weights are, else a tiny random one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps import find_apps
from core import ControlNetPipeline, load_pipeline
from core.images import to_rgb
from core.metadata import read_request
from tests.apps.serving import served
from tests.browser import steps as visitor
from tests.tiny_model import tiny_pipeline

pytestmark = pytest.mark.browser
DEMO = Path(__file__).parents[2] / "ckpts" / "demo"


@pytest.fixture(scope="module")
def real() -> ControlNetPipeline:
    there = all((DEMO / name).is_file() for name in ("base.safetensors", "canny.safetensors"))
    return load_pipeline("demo", device="cpu") if there else tiny_pipeline()


@pytest.fixture(scope="module")
def real_url(real: ControlNetPipeline, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(find_apps(["canny"]), real, tmp_path_factory.mktemp("served")) as address:
        yield address


def test_upload_run_cancel_run_again_and_the_same_picture_from_its_own_png(
    open_page: Callable[..., Any], real_url: str, real: ControlNetPipeline, photo: Path, tmp_path: Path
) -> None:
    page = open_page(real_url)
    visitor.upload(page, photo)
    visitor.open_options(page)
    visitor.set_number(page, "resolution", 256)
    visitor.set_number(page, "steps", 100)
    visitor.ask(page, "a red car on green grass")
    page.wait_for_function("document.querySelectorAll('#canny-gallery .caption-label').length === 2")
    page.locator("#canny-cancel").click()
    page.locator("#canny-status").get_by_text("Stopped").wait_for()

    visitor.set_number(page, "steps", 4)
    page.locator("#canny-run").click()
    visitor.wait_until_done(page)
    first = save_picture(page, tmp_path / "first.png")
    stored = read_request(first)
    assert stored.steps == 4 and stored.model == real.name
    assert to_rgb(first).shape == (256, 320, 3)

    fresh = open_page(real_url)
    visitor.drop(fresh, "#canny-restore", first)
    fresh.locator("#canny-status").get_by_text("Settings restored").wait_for()
    fresh.locator("#canny-run").click()
    visitor.wait_until_done(fresh)
    np.testing.assert_array_equal(to_rgb(save_picture(fresh, tmp_path / "again.png")), to_rgb(first))


def save_picture(page: Any, target: Path) -> Path:
    source = page.locator("#canny-gallery .thumbnail-lg img").nth(1).get_attribute("src")
    target.write_bytes(page.request.get(source).body())
    return target
