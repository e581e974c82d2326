"""A folder annotated as a training set: exact hints and photos, a complete list, and no model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

import annotators
import core
from annotators.base import Annotator, Detected
from apps import batch
from apps.batching import tasks
from core.images import resize, to_rgb
from tests.apps.batching.conftest import Batch
from tests.apps.pictures import scene, write_bad

ROOT = Path(__file__).parents[3]
SIDE = 512


@pytest.fixture
def run(photos: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> Batch:
    def refuse(name: str, **options: Any) -> None:
        raise AssertionError("A model was loaded.")

    def run(*arguments: str, app: str = "canny") -> int:
        where = ["--input", str(photos), "--output", str(out)]
        return batch.main(["--app", app, "--maps-only", *where, *arguments])

    monkeypatch.setattr(core, "load_pipeline", refuse, raising=False)
    return run


def lines(out: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (out / "prompt.json").read_text("utf-8").splitlines()]


def pairs(*names: str, prompt: str = "a fox") -> list[dict[str, str]]:
    return [{"source": f"source/{n}.png", "target": f"target/{n}.png", "prompt": prompt} for n in names]


def test_the_hint_is_what_the_network_gets_and_the_photo_has_its_size(
    run: Batch, photos: Path, out: Path
) -> None:
    assert run("--prompt", "a fox", "--low-threshold", "50") == 0
    assert lines(out) == pairs("a", "b", "c")
    for name, size in (("a.png", (512, 576)), ("b.jpg", (512, 640)), ("c.webp", (512, 768))):
        annotation = annotators.load("canny")(photos / name, size=size, low_threshold=50)
        stem = Path(name).stem
        source, target = (cv2.imread(str(out / f / f"{stem}.png")) for f in ("source", "target"))
        assert source is not None and target is not None
        assert np.array_equal(source[:, :, ::-1], annotation.hint)
        assert np.array_equal(target[:, :, ::-1], resize(to_rgb(photos / name), size))
    assert sorted(p.name for p in out.iterdir()) == ["prompt.json", "source", "target"]


def test_no_model_is_imported(run: Batch, photos: Path, out: Path) -> None:
    code = (
        "import sys; from apps import batch; assert batch.main(sys.argv[1:]) == 0; "
        "print('imported', sorted(m for m in sys.modules if m.startswith(('core.', 'torch', 'gradio'))))"
    )
    command = [sys.executable, "-c", code, "--app", "canny", "--maps-only", "--prompt", "x"]
    done = subprocess.run(
        [*command, "--input", str(photos), "--output", str(out)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    imported = done.stdout.splitlines()[-1]
    assert imported.startswith("imported") and "core.images" in imported
    for name in ("core.models", "core.pipeline", "core.loading", "core.sampling", "torch", "gradio"):
        assert f"'{name}" not in imported
    assert len(lines(out)) == 3


def test_an_interrupted_set_is_whole_after_the_same_command(
    run: Batch, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detected: list[str] = []
    make_hint = tasks.make_hint

    def stop_at_second(app: Any, path: Path, settings: Any) -> Any:
        detected.append(path.name)
        if len(detected) == 2:
            raise KeyboardInterrupt
        return make_hint(app, path, settings)

    monkeypatch.setattr(tasks, "make_hint", stop_at_second)
    assert run("--prompt", "a fox") == 130
    assert lines(out) == pairs("a")
    assert run("--prompt", "a fox") == 0
    assert lines(out) == pairs("a", "b", "c")
    assert detected == ["a.png", "b.jpg", "b.jpg", "c.webp"]


def test_a_list_that_was_lost_is_written_again_without_new_maps(run: Batch, out: Path) -> None:
    assert run("--prompt", "a fox") == 0
    (out / "prompt.json").unlink()
    before = (out / "source" / "a.png").stat().st_mtime_ns
    assert run("--prompt", "a fox") == 0
    assert lines(out) == pairs("a", "b", "c")
    assert (out / "source" / "a.png").stat().st_mtime_ns == before


def test_a_part_of_the_folder_keeps_the_other_lines(run: Batch, photos: Path, out: Path) -> None:
    assert run("--prompt", "a fox") == 0
    assert run("--prompt", "a bear", "--limit", "1") == 0
    assert lines(out) == [*pairs("a", prompt="a bear"), *pairs("b", "c")]
    scene().save(photos / "aa.png")
    assert run() == 0  # no new prompt: those that are there stay
    assert [line["prompt"] for line in lines(out)] == ["a bear", "", "a fox", "a fox"]
    (out / "source" / "b.png").unlink()
    (photos / "b.jpg").unlink()
    assert run() == 0
    assert [line["source"] for line in lines(out)] == ["source/a.png", "source/aa.png", "source/c.png"]


def test_captions_may_come_from_a_list_and_from_texts(
    run: Batch, photos: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list.json").write_text('{"source": "source/a.png", "prompt": "ein Bär"}\n', "utf-8")
    (photos / "b.txt").write_text("a fox")
    assert run("--prompts", str(tmp_path / "list.json")) == 0
    assert [line["prompt"] for line in lines(out)] == ["ein Bär", "a fox", ""]
    assert "1 lines" in capsys.readouterr().out
    (photos / "b.txt").unlink()
    assert run("--prompts", str(out / "prompt.json")) == 0  # the list that was made is itself one
    assert [line["prompt"] for line in lines(out)] == ["ein Bär", "a fox", ""]


def test_other_detector_settings_need_overwrite_and_other_drawing_settings_do_not(
    run: Batch, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == 0
    before = (out / "source" / "a.png").stat().st_mtime_ns
    assert run("--steps", "5", "--seed", "3") == 0
    assert run("--high-threshold", "120") == 1
    assert "high_threshold was 200, now 120" in capsys.readouterr().err
    assert (out / "source" / "a.png").stat().st_mtime_ns == before
    assert run("--high-threshold", "120", "--overwrite") == 0
    assert (out / "source" / "a.png").stat().st_mtime_ns > before


def test_bad_files_are_told_and_have_no_line(run: Batch, photos: Path, out: Path) -> None:
    write_bad(photos)
    assert run("--prompt", "a fox") == 1
    assert lines(out) == pairs("a", "b", "c")


def test_a_damaged_list_is_told_before_the_work(
    run: Batch, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out.mkdir()
    (out / "prompt.json").write_text('{"source": "source/a.png", "prompt"')
    assert run() == 1
    assert "prompt.json, line 1" in capsys.readouterr().err
    assert not (out / "source").exists()


def test_the_size_is_that_of_the_format_whatever_weights_are_here(run: Batch, out: Path) -> None:
    assert run("--limit", "1") == 0
    assert min(to_rgb(out / "source" / "a.png").shape[:2]) == SIDE
    assert run("--limit", "1", "--model", "demo", "--output", str(out / "demo")) == 0
    assert min(to_rgb(out / "demo" / "source" / "a.png").shape[:2]) == 256


class Points(Annotator):
    """Tells a point, as a detector of poses does."""

    def detect(self, image: NDArray[np.uint8], *_: Any, **params: Any) -> Detected:
        return Detected(image, {"people": [{"pose_keypoints_2d": [1.0, 2.0, 0.5]}], "canvas_width": 9})


def test_key_points_are_written_beside(run: Batch, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = Points()
    monkeypatch.setattr(annotators, "load", lambda name: points)
    assert run("--pose-json", "--limit", "1", app="pose") == 0
    found = json.loads((out / "pose" / "a.json").read_text())
    assert found == {"people": [{"pose_keypoints_2d": [1.0, 2.0, 0.5]}], "canvas_width": 9}
    (out / "pose" / "a.json").unlink()
    assert run("--pose-json", "--limit", "1", app="pose") == 0
    assert (out / "pose" / "a.json").exists()
