"""The endpoint, as programs use it: over loopback, through gradio_client and by hand."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file

from apps import all_apps, all_pages, ui
from apps.page import api
from core.errors import NumericalError
from core.images import to_rgb
from core.metadata import read_request
from tests.apps.fakes import FakePipeline, paint
from tests.apps.pictures import scene, write_bad, write_unusual
from tests.apps.serving import served

NAMES = [
    *(
        "image",
        "prompt",
        "num_samples",
        "resolution",
        "strength",
        "start",
        "end",
        "guess_mode",
        "preprocessor",
    ),
    *("low_threshold", "high_threshold", "steps", "sampler", "cfg_scale", "seed", "eta"),
    *("added_prompt", "negative_prompt", "control_interval", "cache_interval", "token_merging_ratio"),
]


@pytest.fixture(scope="module")
def pipeline() -> FakePipeline:
    return FakePipeline()


@pytest.fixture(scope="module")
def url(pipeline: FakePipeline, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(all_apps(), pipeline, tmp_path_factory.mktemp("served")) as address:
        yield address


@pytest.fixture(scope="module")
def client(url: str, tmp_path_factory: pytest.TempPathFactory) -> Client:
    return Client(url, verbose=False, download_files=tmp_path_factory.mktemp("downloads"))


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    scene().save(path)
    return path


def refused(client: Client, image: Any, **values: Any) -> str:
    """Return the message that this call is answered with."""
    with pytest.raises(Exception) as told:
        client.predict(image, **{"prompt": "a fox", **values}, api_name="/canny")
    return str(told.value)


def post(url: str, name: str, values: list[Any]) -> str:
    """Queue a run by hand, so that nothing is checked on the way, and return the server's last message."""
    fn_index = next(
        d["id"] for d in httpx.get(f"{url}config").json()["dependencies"] if d["api_name"] == name
    )
    body = json.dumps({"data": values, "fn_index": fn_index, "session_hash": f"by-hand-{time.time_ns()}"})
    session = json.loads(body)["session_hash"]
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{url}gradio_api/queue/join", content=body, headers=headers)
    if answer.status_code != 200:
        return answer.text
    with httpx.stream("GET", f"{url}gradio_api/queue/data?session_hash={session}", timeout=60) as stream:
        for line in stream.iter_lines():
            if '"process_completed"' in line:
                return line
    raise AssertionError("The run never ended.")


def defaults(client: Client, **changes: Any) -> list[Any]:
    parameters = client.view_api(return_format="dict")["named_endpoints"]["/canny"]["parameters"]
    return [
        changes.get(p["parameter_name"], p["parameter_default"] if p["parameter_has_default"] else None)
        for p in parameters
    ]


def test_the_endpoint_is_described_with_names_defaults_and_words(client: Client) -> None:
    described = client.view_api(return_format="dict")["named_endpoints"]
    assert list(described) == [f"/{app.name}" for app in all_apps()]
    parameters = described["/canny"]["parameters"]
    assert [p["parameter_name"] for p in parameters] == NAMES
    assert [p["parameter_name"] for p in parameters if not p["parameter_has_default"]] == ["image"]
    assert "Draw pictures that follow the structure" in described["/canny"]["description"]
    assert parameters[0]["example_input"]["meta"] == {"_type": "gradio.FileData"}


def test_a_call_with_only_an_image_and_a_prompt_gives_the_map_a_picture_and_the_seed(
    client: Client, pipeline: FakePipeline, photo: Path
) -> None:
    files, seed = client.predict(image=handle_file(photo), prompt="a fox", api_name="/canny")
    request = pipeline.requests[-1]
    assert len(files) == 2 and seed == request.seed
    assert (request.steps, request.sampler, request.cfg_scale) == (20, "ddim", 9.0)
    np.testing.assert_array_equal(to_rgb(files[0]), 255 - request.controls[0].hint)
    np.testing.assert_array_equal(to_rgb(files[1]), paint(request, seed))


def test_downloads_are_the_saved_bytes_with_their_settings(client: Client, photo: Path) -> None:
    files, seed = client.predict(
        handle_file(photo), "a fox", num_samples=2, seed=5, steps=3, api_name="/canny"
    )
    assert seed == 5
    assert [Path(file).name for file in files] == ["canny-map-5.png", "canny-5.png", "canny-6.png"]
    assert [read_request(file).picture_seed for file in files] == [5, 5, 6]
    assert all(Path(file).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for file in files)


def test_every_file_is_told_of_once_but_for_the_map_with_its_pictures(
    client: Client, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "SIGN_SECONDS", 0.0)
    told = [files for files, _ in client.submit(handle_file(photo), "a fox", steps=6, api_name="/canny")]

    counts = [len(files) for files in told]
    assert counts[0] == 1 and counts[-1] == 2
    assert len(counts) > 4 and not any(counts[1:-1])


def test_the_queue_looks_for_work_seldom_enough() -> None:
    """Gradio's own thousand times a second takes a tenth of a processor, also where nobody is."""
    plain = gr.Blocks().queue()._queue
    assert plain.sleep_when_free < ui.LOOK_SECONDS  # it still has these, and is still in a hurry
    assert plain.progress_update_sleep_when_free < ui.PROGRESS_SECONDS
    ours = ui.build(all_apps()[:1], FakePipeline())._queue
    assert (ours.sleep_when_free, ours.progress_update_sleep_when_free) == (
        ui.LOOK_SECONDS,
        ui.PROGRESS_SECONDS,
    )


def test_what_shows_no_progress_has_the_browser_look_for_none() -> None:
    config = ui.build(all_pages(), FakePipeline()).get_config_file()
    hidden = [d for d in config["dependencies"] if d["show_progress"] == "hidden"]
    assert len(hidden) > 100 and all(d["show_progress_on"] == [] for d in hidden)


def test_unusual_pictures_work_through_the_endpoint(client: Client, tmp_path: Path) -> None:
    for name, path in write_unusual(tmp_path).items():
        files, _ = client.predict(handle_file(path), "a fox", steps=1, api_name="/canny")
        assert len(files) == 2, name


def test_bad_files_are_refused_with_the_reason_and_the_server_goes_on(
    client: Client, tmp_path: Path, photo: Path
) -> None:
    for path, reason in write_bad(tmp_path).values():
        assert reason in refused(client, handle_file(path))
    assert client.predict(handle_file(photo), "a fox", steps=1, api_name="/canny")


@pytest.mark.parametrize("image", [None, 5, "/etc/hostname", {"path": "/etc/hostname"}, ["a", "b"]])
def test_what_is_no_upload_is_refused_in_words(client: Client, image: Any) -> None:
    message = refused(client, image)
    assert "There is no picture" in message if image is None else "give a picture file" in message


def test_a_file_of_the_server_cannot_be_named_as_the_image(client: Client, url: str, photo: Path) -> None:
    named = {"path": str(photo), "meta": {"_type": "gradio.FileData"}}
    assert '"success":false' in post(url, "canny", defaults(client, image=named)).replace(" ", "")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "steps is 0: give a whole number from 1 to 100."),
        ({"steps": 101}, "steps is 101"),
        ({"steps": "many"}, "steps is 'many'"),
        ({"num_samples": 13}, "num_samples is 13"),
        ({"resolution": 100_000}, "resolution is 100000"),
        ({"cfg_scale": None}, "cfg_scale is None"),
        ({"seed": 2**31}, "from -1 to 2147483647"),
        ({"sampler": "dpm"}, "sampler is 'dpm': give one of ddim, euler_a, dpmpp_2m, unipc."),
        ({"start": 0.6, "end": 0.5}, "start is 0.6, after end 0.5"),
        ({"low_threshold": 256}, "low_threshold is 256"),
        ({"guess_mode": "no"}, "guess_mode is 'no': give true or false."),
        ({"prompt": 7}, "prompt is 7: give a text."),
        ({"prompt": "x" * 10_000_000}, "prompt has 10,000,000 characters"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_wrong_values_are_refused_by_name(
    client: Client, photo: Path, values: dict[str, Any], message: str
) -> None:
    assert message in refused(client, handle_file(photo), **values)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_none_are_refused(client: Client, url: str, number: float) -> None:
    answer = post(url, "canny", defaults(client, cfg_scale=number))
    assert "cfg_scale is" in answer and "give a number" in answer


def test_an_unknown_error_is_logged_and_its_words_are_kept_inside(
    client: Client, pipeline: FakePipeline, photo: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline.failure = RuntimeError("secret path /home/ann")
    try:
        message = refused(client, handle_file(photo))
    finally:
        pipeline.failure = None
    assert "log has the details" in message and "secret" not in message
    assert any(record.exc_info for record in caplog.records)


def test_a_known_error_while_drawing_is_told_in_its_words(
    client: Client, pipeline: FakePipeline, photo: Path
) -> None:
    pipeline.failure = NumericalError("The latents are not finite: choose float32.")
    try:
        assert "choose float32" in refused(client, handle_file(photo))
    finally:
        pipeline.failure = None


def test_cancelling_a_job_stops_it_and_frees_the_pipeline(
    client: Client, pipeline: FakePipeline, photo: Path
) -> None:
    pipeline.gate = threading.Event()
    pipeline.stepping.clear()
    pipeline.closed_early.clear()
    try:
        job = client.submit(handle_file(photo), "a fox", steps=100, api_name="/canny")
        assert pipeline.stepping.wait(40)
        job.cancel()
        assert pipeline.closed_early.wait(40)
        assert not pipeline.lock.locked()
    finally:
        pipeline.gate = None
    assert client.predict(handle_file(photo), "a fox", steps=1, api_name="/canny")


def test_a_client_that_goes_away_frees_the_pipeline(
    client: Client, url: str, pipeline: FakePipeline, photo: Path
) -> None:
    pipeline.gate = threading.Event()
    pipeline.closed_early.clear()
    try:
        other = Client(url, verbose=False)
        other.submit(handle_file(photo), "a fox", steps=100, api_name="/canny")
        pipeline.stepping.clear()
        assert pipeline.stepping.wait(40)
        other.close()
        assert pipeline.closed_early.wait(40)
    finally:
        pipeline.gate = None
    assert client.predict(handle_file(photo), "a fox", steps=1, api_name="/canny")


def test_two_callers_at_once_each_get_their_own_pictures(client: Client, url: str, photo: Path) -> None:
    jobs = [
        client.submit(handle_file(photo), "a fox", seed=seed, steps=5, api_name="/canny") for seed in range(4)
    ]
    for seed, job in enumerate(jobs):
        files, used = job.result(timeout=90)
        assert used == seed and read_request(files[1]).seed == seed


def test_only_the_apps_can_be_called(client: Client, url: str) -> None:
    public = [d for d in httpx.get(f"{url}config").json()["dependencies"] if d["api_visibility"] == "public"]
    assert [d["api_name"] for d in public] == [app.name for app in all_apps()]
    with pytest.raises(ValueError, match="Cannot find a function"):
        client.predict(api_name="/run")


def test_the_page_asks_for_nothing_from_elsewhere(url: str) -> None:
    assert httpx.get(f"{url}config").json()["analytics_enabled"] is False
    assert httpx.get(f"{url}monitoring/summary").status_code in {403, 404}


def test_a_password_keeps_strangers_out(tmp_path: Path) -> None:
    with served(all_apps(), FakePipeline(), tmp_path, auth=("ann", "secret")) as address:
        assert httpx.get(f"{address}config").status_code == 401
        join = f"{address}gradio_api/queue/join"
        assert httpx.post(join, json={"data": [], "fn_index": 0, "session_hash": "x"}).status_code == 401
        assert Client(address, verbose=False, auth=("ann", "secret")).view_api(return_format="dict")
