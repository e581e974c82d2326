"""The command line: every setting by its name, and what is said of wrong ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import core
from annotators.base import Checkbox, Slider
from apps import all_apps, batch
from apps.batching.options import parse_options
from apps.page.settings import Choice, Setting, Text
from apps.spec import App
from core.errors import WeightsMissing
from tests.apps.batching.conftest import Batch, files
from tests.apps.fakes import FakePipeline

SHARES = {"start": 0.25, "end": 0.5}  # the one must not be after the other


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--app", "cany"), "There is no app 'cany': give one of canny, "),
        (("--model", "sd16"), "no such model"),
        (("--device", "toaster"), "toaster"),
        (("--steps", "500"), "from 1 to 100"),
        (("--steps", "2.5"), "a whole number"),
        (("--strength", "much"), "strength is 'much'"),
        (("--sampler", "magic"), "give one of ddim"),
        (("--start", "0.8", "--end", "0.2"), "start at most end"),
        (("--limit", "0"), "a whole number from 1"),
        (("--value-threshold", "0.1"), "unrecognized arguments"),
        (("--input", "/nowhere"), "does not exist: give a folder"),
        (("--input", __file__), "is a file: give a folder"),
        (("--prompts", "/nowhere.json"), "cannot be read"),
        (("--pose-json",), "give --app pose"),
        (("--maps-only", "--preprocessor", "none"), "leave --preprocessor out"),
    ],
)
def test_wrong_usage_says_what_is_allowed_and_ends_with_2(
    run: Batch, out: Path, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(*arguments)
    assert stopped.value.code == 2 and not out.exists()
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "target", "extra", "message"),
    [
        ("photos", "photos", (), "give another"),
        ("out/maps", "out", (), "lies inside of --output"),
        ("out/photos", "out", ("--recursive",), "lies inside of --output"),
        ("empty", "out", (), "holds no pictures"),
    ],
)
def test_folders_that_would_be_mixed_up_are_refused(
    tmp_path: Path,
    photos: Path,
    source: str,
    target: str,
    extra: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / source).mkdir(parents=True, exist_ok=True)
    where = ["--input", str(tmp_path / source), "--output", str(tmp_path / target)]
    with pytest.raises(SystemExit) as stopped:
        batch.main(["--app", "canny", *where, "--prompt", "x", *extra])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_no_prompt_at_all_is_wrong_usage(run: Batch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(prompt=None)
    assert stopped.value.code == 2 and "There is no prompt: give --prompt" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_told_first(
    run: Batch, tmp_path: Path, pipelines: list[FakePipeline], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert run("--output", str(tmp_path / "file" / "out")) == 1
    assert "cannot be written" in capsys.readouterr().err and pipelines == []


@pytest.mark.parametrize("part", ["detector", "base", "control"])
def test_missing_weights_are_told_once_before_the_run(
    run: Batch, out: Path, part: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = "The weights are not here.\nRun: python -m core.weights get them"

    def load(name: str, **options: Any) -> FakePipeline:
        if part == "base":
            raise WeightsMissing(told)
        return FakePipeline(missing=told)

    def find(name: str, demo: str | None = None) -> None:
        raise WeightsMissing(told)

    monkeypatch.setattr(core, "load_pipeline", load, raising=False)
    if part == "detector":
        monkeypatch.setattr(batch, "find_weights", find)
    assert run(app="hed" if part == "detector" else "canny") == 1
    said = capsys.readouterr()
    assert (said.out + said.err).count("python -m core.weights get them") == 1
    assert not files(out)


def another_value(setting: Setting) -> str | float:
    """Return a value that is allowed and not the default."""
    if setting.name in SHARES:
        return SHARES[setting.name]
    if isinstance(setting, Slider):
        return setting.minimum if setting.default == setting.maximum else setting.maximum
    return "words" if isinstance(setting, Text) else setting.choices[-1][0]  # type: ignore[union-attr]


@pytest.mark.parametrize("app", all_apps(), ids=lambda app: app.name)
def test_every_setting_of_the_page_has_an_option_of_its_name(app: App) -> None:
    base = ["--app", app.name, "--input", "x", "--output", "y", "--model", "demo", "--no-guess-mode"]
    _, options = parse_options(base)
    given: list[str] = []
    wanted: dict[str, object] = {}
    for setting in options.declared:
        flag = setting.name.replace("_", "-")
        if isinstance(setting, Checkbox):
            given.append(f"--no-{flag}" if setting.default else f"--{flag}")
            wanted[setting.name] = not setting.default
        else:
            wanted[setting.name] = another_value(setting)
            given += [f"--{flag}", str(wanted[setting.name])]
    _, changed = parse_options([*base, *given])
    assert changed.values == wanted
    one_word = {s.name for s in options.declared if isinstance(s, Choice) and len(s.choices) == 1}
    assert not any(changed.values[name] == options.values[name] for name in wanted.keys() - one_word)


def test_the_options_are_every_setting_and_the_folder_s(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse_options(["--app", "canny", "--help"])
    said = capsys.readouterr().out
    assert stopped.value.code == 0
    for flag in ("--low-threshold", "--prompts", "--recursive", "--limit", "--pose-json", "--low-vram"):
        assert flag in said
