"""A folder of photos, and the command line over it with a pipeline that needs no weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import core
from apps import batch
from tests.apps.fakes import FakePipeline
from tests.apps.pictures import scene

Batch = Callable[..., int]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, name in enumerate(("a.png", "b.jpg", "c.webp")):
        scene(300 + 40 * i, 260).save(folder / name)
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def pipelines(monkeypatch: pytest.MonkeyPatch) -> list[FakePipeline]:
    """The pipelines that were loaded."""
    loaded: list[FakePipeline] = []

    def load(name: str, **options: Any) -> FakePipeline:
        loaded.append(FakePipeline())
        return loaded[-1]

    monkeypatch.setattr(core, "load_pipeline", load, raising=False)
    return loaded


@pytest.fixture
def run(photos: Path, out: Path, pipelines: list[FakePipeline]) -> Batch:
    def run(*arguments: str, app: str = "canny", source: Path = photos, prompt: str | None = "a fox") -> int:
        said = [] if prompt is None else ["--prompt", prompt]
        where = ["--input", str(source), "--output", str(out)]
        return batch.main(["--app", app, *where, "--model", "demo", "--steps", "2", *said, *arguments])

    return run


def files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
