"""Several visitors at once, over loopback: one batch, each with their own pictures and settings."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.client import Job
from PIL import Image

from apps import find_pages
from apps.page.model import MOST_AT_ONCE, Model, runs_at_once
from core.images import to_rgb
from core.metadata import read_request
from core.pipeline import ControlNetPipeline
from core.runtime.batcher import Batcher
from tests.apps.pictures import scene
from tests.apps.serving import served
from tests.gated import PATIENCE, Gated, wait_for
from tests.tiny_model import tiny_pipeline

VISITORS: tuple[dict[str, Any], ...] = (
    {"prompt": "a red car", "seed": 3},
    {"prompt": "two blue trees by the sea", "seed": 70, "cfg_scale": 4.0, "low_threshold": 30},
    {"prompt": "a house", "seed": 3, "strength": 0.5, "negative_prompt": "night"},
    {"prompt": "", "seed": 900, "strength": 1.5},
)


@pytest.fixture(scope="module")
def pipe() -> ControlNetPipeline:
    return tiny_pipeline()


@pytest.fixture
def gated(pipe: ControlNetPipeline) -> Gated:
    return Gated(pipe)


@pytest.fixture
def batcher(gated: Gated) -> Batcher:
    return Batcher(gated, 4)


@pytest.fixture
def url(batcher: Batcher, tmp_path: Path) -> Iterator[str]:
    pages = find_pages(["canny", "annotator"])
    with served(pages, Model.ready(batcher, at_once=8), tmp_path / "served") as address:
        yield address


class Visitor:
    """A client of its own, as another person's would be."""

    def __init__(self, url: str, folder: Path, name: str) -> None:
        self.client = Client(url, verbose=False, download_files=folder / name)
        self.photo = folder / f"{name}.png"
        picture = scene()
        (picture if name < "2" else picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)).save(self.photo)

    def ask(self, **values: Any) -> Job:
        given = {"steps": 3, "resolution": 256, **values}
        return self.client.submit(handle_file(self.photo), api_name="/canny", **given)


def check(files: list[str], seed: int, asked: dict[str, Any], pipe: ControlNetPipeline) -> None:
    """See that what came is what was asked for, and the picture the one of these settings drawn alone."""
    assert seed == asked["seed"] and len(files) == 2
    stored = read_request(files[1])
    assert (stored.prompt or "").startswith(asked["prompt"]) and stored.picture_seed == asked["seed"]
    request = stored.to_request()
    assert request.cfg_scale == asked.get("cfg_scale", 9.0)
    assert request.controls[0].strength == asked.get("strength", 1.0)
    assert asked.get("negative_prompt", "") in request.negative_prompt
    assert stored.settings["low_threshold"] == asked.get("low_threshold", 100)
    np.testing.assert_array_equal(to_rgb(files[0]), 255 - request.controls[0].hint)
    off = np.abs(to_rgb(files[1]).astype(int) - pipe(request).images[0].astype(int))
    assert off.max() <= 1 and (off > 0).mean() < 0.01


def test_visitors_who_wait_are_drawn_together_and_get_their_own(
    url: str, batcher: Batcher, gated: Gated, pipe: ControlNetPipeline, tmp_path: Path
) -> None:
    first = Visitor(url, tmp_path, "first").ask(prompt="a cat", seed=1, sampler="unipc")
    assert gated.started.acquire(timeout=PATIENCE)
    visitors = [Visitor(url, tmp_path, str(i)) for i in range(4)]
    jobs = []
    for i, (visitor, asked) in enumerate(zip(visitors, VISITORS, strict=True)):
        jobs.append(visitor.ask(**asked))
        wait_for(batcher, i + 1)
    gated.open()
    first.result(timeout=PATIENCE)
    for job, asked in zip(jobs, VISITORS, strict=True):
        files, seed = job.result(timeout=PATIENCE)
        check(files, seed, asked, pipe)
    assert gated.batches == [[1], [3, 70, 3, 900]]


def test_one_who_cancels_costs_the_others_nothing(
    url: str, batcher: Batcher, gated: Gated, pipe: ControlNetPipeline, tmp_path: Path
) -> None:
    first = Visitor(url, tmp_path, "first").ask(prompt="a cat", seed=1, sampler="unipc")
    assert gated.started.acquire(timeout=PATIENCE)
    visitors = [Visitor(url, tmp_path, str(i)) for i in range(4)]
    jobs = []
    for i, (visitor, asked) in enumerate(zip(visitors, VISITORS, strict=True)):
        jobs.append(visitor.ask(**asked, steps=20))
        wait_for(batcher, i + 1)
    jobs[0].cancel()  # while it waits
    wait_for(batcher, 3)
    gated.steps.release(4)  # the first's three, and one of the batch
    first.result(timeout=PATIENCE)
    assert gated.started.acquire(timeout=PATIENCE)
    cancelling = threading.Thread(target=jobs[1].cancel)  # while it is drawn: between two steps
    cancelling.start()
    while cancelling.is_alive():
        gated.steps.release()
        cancelling.join(0.2)
    gated.open()
    for job, asked in list(zip(jobs, VISITORS, strict=True))[2:]:
        files, seed = job.result(timeout=PATIENCE)
        check(files, seed, asked, pipe)
    assert gated.batches == [[1], [70, 3, 900]] and gated.finished == [1, 3, 900]
    assert not pipe._lock.locked()


def test_an_error_of_one_visitor_is_told_to_that_one_alone(
    url: str, batcher: Batcher, gated: Gated, pipe: ControlNetPipeline, tmp_path: Path
) -> None:
    first = Visitor(url, tmp_path, "first").ask(prompt="a cat", seed=1, sampler="unipc")
    assert gated.started.acquire(timeout=PATIENCE)
    wrong = Visitor(url, tmp_path, "0").ask(prompt="a BREAK " * 20, seed=2)
    with pytest.raises(Exception, match="shorten it"):
        wrong.result(timeout=PATIENCE)
    right = Visitor(url, tmp_path, "1").ask(**VISITORS[0])
    wait_for(batcher, 1)
    gated.open()
    first.result(timeout=PATIENCE)
    files, seed = right.result(timeout=PATIENCE)
    check(files, seed, VISITORS[0], pipe)


def test_all_runs_share_one_queue_with_room_for_the_next_batch(url: str) -> None:
    """The lowest limit counts where several events name one queue, so that one left behind would show."""
    from apps.page.events import QUEUE

    dependencies = httpx.get(f"{url}config").json()["dependencies"]
    assert any(d["api_name"] == "annotate" for d in dependencies)
    limits = {d["concurrency_limit"] for d in dependencies if d.get("concurrency_id") == QUEUE}
    assert limits <= {8}


@pytest.mark.parametrize(("max_batch", "runs"), [(1, 1), (2, 4), (8, 16), (32, MOST_AT_ONCE), (None, 16)])
def test_there_are_more_runs_than_a_batch_holds_unless_batches_are_off(
    max_batch: int | None, runs: int
) -> None:
    assert runs_at_once(max_batch) == runs
