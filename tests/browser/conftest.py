"""A real browser, offline, and pages served on loopback."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from apps import find_apps
from tests.apps.fakes import FakePipeline
from tests.apps.pictures import scene
from tests.apps.serving import served

FLAGS = [
    *("--no-sandbox", "--headless", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-quic"),
]


def find_chromium() -> str | None:
    named = os.environ.get("CHROMIUM")
    return named or next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    path = find_chromium()
    if path is None and not os.environ.get("CI"):
        pytest.skip("There is no Chromium: install it, or name it in CHROMIUM.")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield running
        running.close()


@pytest.fixture(scope="module")
def pipeline() -> FakePipeline:
    return FakePipeline()


@pytest.fixture(scope="module")
def url(pipeline: FakePipeline, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(find_apps(["canny"]), pipeline, tmp_path_factory.mktemp("served")) as address:
        yield address


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Open addresses; afterwards, none may have asked for anything beyond loopback or logged an error."""
    contexts, requests, errors = [], [], []

    def visit(address: str, width: int = 1280, height: int = 800, scheme: str = "light") -> Any:
        size = {"width": width, "height": height}
        context = browser.new_context(viewport=size, color_scheme=scheme, accept_downloads=True)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(40_000)  # a busy machine is not a fault of the page
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        page.wait_for_selector("[id$='-run']")
        return page

    yield visit
    for context in contexts:
        context.close()
    outside = [r for r in requests if not r.startswith(("http://127.0.0.1:", "data:", "blob:"))]
    assert outside == [] and errors == []


@pytest.fixture(scope="session")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    scene().save(path)
    return path
