"""A folder drawn from the command line: what is written, what is skipped, what is said of failures."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

import annotators
import core
from apps import batch
from apps.batching import tasks
from apps.batching.options import parse_options
from apps.page.restore import restore
from apps.spec import EXAMPLES_DIR
from core.errors import SuiteError, WeightsMissing
from core.images import to_rgb
from core.metadata import read_request
from core.request import Progress, Request, Result
from tests.apps.batching.conftest import Batch, files
from tests.apps.fakes import FakePipeline, paint
from tests.apps.pictures import scene, write_bad, write_unusual


def stamps(folder: Path) -> dict[str, int]:
    return {name: (folder / name).stat().st_mtime_ns for name in files(folder)}


def requests(pipelines: list[FakePipeline]) -> list[Request]:
    return [request for pipeline in pipelines for request in pipeline.requests]


def test_each_picture_gives_a_picture_and_a_map_that_carry_the_settings(
    run: Batch, photos: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--seed", "7", "--strength", "0.5", "--low-threshold", "50") == 0
    assert files(out) == ["a.png", "b.png", "c.png", "maps/a.png", "maps/b.png", "maps/c.png"]
    assert "Made 3, skipped 0, failed 0." in capsys.readouterr().out
    stored = read_request(out / "b.png")
    request = stored.to_request()
    hint = annotators.load("canny")(photos / "b.jpg", size=(256, 320), low_threshold=50)
    assert np.array_equal(request.controls[0].hint, hint.hint)
    assert np.array_equal(to_rgb(out / "maps/b.png"), hint.preview)
    assert np.array_equal(to_rgb(out / "b.png"), paint(request, 7))
    assert (request.seed, request.steps, request.controls[0].strength) == (7, 2, 0.5)
    assert request.prompt == "a fox, best quality, extremely detailed"
    assert (stored.model, stored.settings["app"], stored.settings["low_threshold"]) == ("demo", "canny", 50)


def test_the_page_takes_the_settings_back(run: Batch, out: Path) -> None:
    assert run("--seed", "7", "--cfg-scale", "4.5", "--sampler", "unipc", "--guess-mode") == 0
    _, options = parse_options(["--app", "canny", "--input", "x", "--output", "y", "--model", "demo"])
    found = restore(out / "a.png", options.declared)
    assert found.prompt == "a fox" and not found.notes
    names = ("seed", "cfg_scale", "sampler", "guess_mode", "steps")
    assert [found.values[name] for name in names] == [7, 4.5, "unipc", True, 2]


def test_what_is_there_is_skipped_and_no_model_is_loaded(
    run: Batch, out: Path, pipelines: list[FakePipeline], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == 0
    before = stamps(out)
    assert run() == 0
    assert stamps(out) == before and len(pipelines) == 1
    assert "Made 0, skipped 3, failed 0." in capsys.readouterr().out


@pytest.mark.parametrize("lost", ["b.png", "maps/b.png"])
def test_a_picture_with_a_file_missing_is_made_again(
    run: Batch, out: Path, pipelines: list[FakePipeline], lost: str
) -> None:
    assert run() == 0
    (out / lost).unlink()
    assert run() == 0
    assert (out / lost).exists() and len(pipelines[1].requests) == 1


def test_one_bad_file_does_not_stop_the_rest(
    run: Batch, photos: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = write_bad(photos)
    assert run() == 1
    assert files(out) == ["a.png", "b.png", "c.png", "maps/a.png", "maps/b.png", "maps/c.png"]
    said = capsys.readouterr().out
    assert f"Made 3, skipped 0, failed {len(bad)}." in said
    for name, (_, reason) in bad.items():
        assert any(line.startswith(f"  {name}: ") and reason in line for line in said.splitlines()), name


def test_unusual_pictures_work(run: Batch, tmp_path: Path, out: Path) -> None:
    (tmp_path / "unusual").mkdir()
    written = write_unusual(tmp_path / "unusual")
    assert run(source=tmp_path / "unusual") == 0
    assert [name for name in files(out) if "/" not in name] == sorted(f"{name}.png" for name in written)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--steps", "3"), "steps was 2, now 3"),
        (("--seed", "1"), "seed was 0, now 1"),
        (("--high-threshold", "150"), "high_threshold was 200, now 150"),
        (("--prompt", "a cat"), "prompt was “a fox”, now “a cat”"),
        (("--end", "0.5"), "end was 1.0, now 0.5"),
    ],
)
def test_other_settings_are_told_and_nothing_is_touched(
    run: Batch, out: Path, arguments: tuple[str, str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--limit", "2") == 0
    before = stamps(out)
    assert run(*arguments) == 1
    assert stamps(out) == before
    told = capsys.readouterr().err
    assert "2 of the pictures were made otherwise" in told and said in told and "--overwrite" in told


def test_loras_and_autoencoders_are_settings_too(
    run: Batch, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    style, vae = tmp_path / "style.safetensors", tmp_path / "other.vae.safetensors"
    for path in (style, vae):
        path.touch()
    arguments = ("--lora", f"{style}:0.8", "--vae", str(vae))
    assert run("--limit", "1", *arguments) == 0
    assert run("--limit", "1", *arguments) == 0 and "skipped 1" in capsys.readouterr().out
    assert run("--limit", "1", "--lora", str(style)) == 1
    told = capsys.readouterr().err
    assert "loras was “style:0.8”, now “style:1”" in told and "vae was “other.vae.safetensors”" in told
    assert run("--limit", "1") == 1
    with pytest.raises(SystemExit):
        run("--lora", str(tmp_path / "none.safetensors"))
    assert "there is no such file" in capsys.readouterr().err


def test_overwrite_makes_again_only_what_was_made_otherwise(
    run: Batch, photos: Path, out: Path, pipelines: list[FakePipeline]
) -> None:
    assert run() == 0
    (photos / "b.txt").write_text("a bear")
    assert run() == 1
    assert run("--overwrite") == 0
    assert [request.prompt.partition(",")[0] for request in pipelines[-1].requests] == ["a bear"]
    assert run("--overwrite") == 0 and len(pipelines) == 2


def test_a_picture_that_changed_and_a_file_from_elsewhere_are_noticed(
    run: Batch, photos: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out.mkdir()
    scene(64, 64).save(out / "a.png")
    assert run() == 1
    assert "a.png: what is there was not made by such a run" in capsys.readouterr().err
    assert run("--overwrite") == 0
    scene(500, 260).save(photos / "b.jpg")
    assert run() == 1
    assert "b.jpg: the picture itself has changed" in capsys.readouterr().err


def interrupt_at(count: int) -> Callable[[FakePipeline, Request], Iterator[Progress | Result]]:
    sample = FakePipeline.sample

    def interrupted(self: FakePipeline, request: Request) -> Iterator[Progress | Result]:
        for event in sample(self, request):
            yield event
            if len(self.requests) == count:
                raise KeyboardInterrupt

    return interrupted


def test_ctrl_c_ends_with_the_summary_and_the_same_command_goes_on(
    run: Batch,
    out: Path,
    pipelines: list[FakePipeline],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(FakePipeline, "sample", interrupt_at(2))
        assert run() == 130
    assert files(out) == ["a.png", "maps/a.png"]
    said = capsys.readouterr().out
    assert "Made 1, skipped 0, failed 0." in said and "Not reached: 2." in said
    assert pipelines[0].closed_early.is_set() and not pipelines[0].lock.locked()
    assert run() == 0
    assert len(files(out)) == 6 and len(pipelines[1].requests) == 2


def test_pictures_with_one_stem_do_not_overwrite_each_other(run: Batch, photos: Path, out: Path) -> None:
    scene(256, 400).save(photos / "a.jpg")
    assert run("--limit", "2") == 0
    assert files(out) == ["a.jpg.png", "a.png.png", "maps/a.jpg.png", "maps/a.png.png"]
    assert [to_rgb(out / name).shape[:2] for name in ("a.jpg.png", "a.png.png")] == [(384, 256), (256, 320)]


def test_the_seed_is_every_picture_s_own_whatever_was_skipped(
    run: Batch, out: Path, pipelines: list[FakePipeline]
) -> None:
    assert run("--num-samples", "2", "--seed", "5", "--limit", "1") == 0
    assert run("--num-samples", "2", "--seed", "5") == 0
    names = [f"{stem}_{i}.png" for stem in "abc" for i in (1, 2)]
    assert [name for name in files(out) if "/" not in name] == names
    assert [read_request(out / name).picture_seed for name in names] == [5, 6, 5, 6, 5, 6]
    assert [request.seed for request in requests(pipelines)] == [5, 5, 5]


def test_seed_minus_one_takes_new_seeds_that_stay(run: Batch, out: Path) -> None:
    assert run("--seed", "-1") == 0
    seeds = {read_request(out / name).seed for name in ("a.png", "b.png", "c.png")}
    before = stamps(out)
    assert len(seeds) == 3
    assert run("--seed", "-1") == 0 and stamps(out) == before


def test_folders_in_the_folder_are_mirrored_and_the_output_in_it_is_not_read(
    run: Batch, photos: Path, pipelines: list[FakePipeline]
) -> None:
    (photos / "maps").mkdir()
    scene().save(photos / "maps" / "a.png")
    inside = ["--recursive", "--output", str(photos / "out")]
    assert run(*inside) == 0 and run(*inside) == 0
    assert len(requests(pipelines)) == 4
    assert files(photos / "out") == [
        *("a.png", "b.png", "c.png", "in_maps/a.png"),
        *("maps/a.png", "maps/b.png", "maps/c.png", "maps/in_maps/a.png"),
    ]


def test_every_picture_can_have_its_own_prompt(
    run: Batch, photos: Path, tmp_path: Path, pipelines: list[FakePipeline]
) -> None:
    (tmp_path / "prompts.json").write_text('{"source": "a.png", "prompt": "a fox"}\n')
    (photos / "b.txt").write_text("a bear")
    status = run("--prompts", str(tmp_path / "prompts.json"), "--added-prompt", "", prompt=None)
    assert [request.prompt for request in requests(pipelines)] == ["a fox", "a bear"]
    assert status == 1  # c has none


def test_guess_mode_needs_no_prompt(run: Batch, pipelines: list[FakePipeline]) -> None:
    assert run("--guess-mode", "--added-prompt", "", prompt=None) == 0
    assert {(request.prompt, request.guess_mode) for request in requests(pipelines)} == {("", True)}


@pytest.mark.parametrize("failure", [SuiteError("Too much: give fewer steps."), TypeError("a bug")])
def test_a_failing_picture_is_told_with_its_reason(
    run: Batch,
    out: Path,
    failure: Exception,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(core, "load_pipeline", lambda name, **_: FakePipeline(failure=failure), raising=False)
    assert run("--limit", "2") == 1
    said = capsys.readouterr().out
    known = isinstance(failure, SuiteError)
    assert said.count("give fewer steps" if known else "something went wrong inside (TypeError)") == 2
    assert not files(out)


def test_weights_that_turn_out_to_be_missing_are_told_once_and_end_the_run(
    run: Batch, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def miss(*_: Any) -> None:
        raise WeightsMissing("The hands' weights are not here: get them.")

    monkeypatch.setattr(tasks, "make_hint", miss)
    assert run() == 1
    said = capsys.readouterr().out
    assert said.count("get them") == 1 and "Not reached: 2." in said
    assert not files(out)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names themselves")
def test_a_name_that_is_no_text_is_told(run: Batch, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "a.png").rename(photos / os.fsdecode(b"\xff.png"))
    assert run() == 1
    said = capsys.readouterr().out
    assert "Made 2, skipped 0, failed 1." in said and "\\udcff.png: its name is no UTF-8 text" in said


def test_a_full_disk_stops_the_run_and_leaves_no_half_file(
    run: Batch, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(image: NDArray[np.uint8], handle: Any, *rest: Any, **more: Any) -> None:
        handle.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tasks, "save_png", full)
    assert run() == 1
    said = capsys.readouterr().out
    assert "failed 1." in said and "Not reached: 2." in said and "free some space" in said
    assert not files(out)


def test_a_doubt_about_ready_maps_is_told_in_the_summary(
    run: Batch, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in photos.iterdir():
        drawing = Image.new("RGB", (256, 256), "white")
        ImageDraw.Draw(drawing).rectangle((50, 50, 200, 200), outline="black")
        drawing.save(path)
    assert run("--preprocessor", "none") == 0
    assert "  3 of the maps: " in capsys.readouterr().out


def test_the_demo_model_draws_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from core.loading import load_pipeline

    loaded: list[Any] = []

    def load(name: str, **options: Any) -> Any:
        loaded.append(load_pipeline(name, **options))
        return loaded[-1]

    monkeypatch.setattr(core, "load_pipeline", load, raising=False)
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for name in ("toy_fox.png", "toy_deer.png"):
        (photos / name).write_bytes((EXAMPLES_DIR / name).read_bytes())
    where = ["--input", str(photos), "--output", str(out)]
    settings = ["--model", "demo", "--steps", "2", "--device", "cpu", "--dtype", "float32"]
    assert batch.main(["--app", "canny", *where, *settings, "--prompt", "a fox"]) == 0
    assert files(out) == ["maps/toy_deer.png", "maps/toy_fox.png", "toy_deer.png", "toy_fox.png"]
    again = loaded[0](read_request(out / "toy_fox.png").to_request())
    assert np.array_equal(to_rgb(out / "toy_fox.png"), again.images[0])
