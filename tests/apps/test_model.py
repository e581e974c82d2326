from __future__ import annotations

import threading
from pathlib import Path

import pytest

from apps.page.model import Model, Pipeline, choose, describe, explain_missing
from core.errors import SuiteError, WeightsMissing
from tests.apps.fakes import FakePipeline


@pytest.mark.parametrize(
    ("there", "chosen"),
    [
        (set(), "demo"),
        ({"sd15"}, "demo"),
        ({"control_sd15_canny"}, "demo"),
        ({"sd15", "control_sd15_canny"}, "sd15"),
    ],
)
def test_auto_takes_stable_diffusion_only_with_base_and_controlnet(there: set[str], chosen: str) -> None:
    assert choose("auto", ["canny"], there.__contains__) == chosen
    assert choose("AUTO", ["canny"], there.__contains__) == chosen


def test_auto_asks_the_registry_where_nothing_else_is_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CONTROLNET_CKPTS", str(tmp_path))
    assert choose("auto", ["canny"]) == "demo"


def test_a_named_model_is_taken_as_it_is() -> None:
    assert choose("sd21", ["canny"], lambda name: True) == "sd21"
    assert choose("SD21", ["canny"], lambda name: True) == "sd21"
    assert choose("My/File.ckpt", ["canny"], lambda name: True) == "My/File.ckpt"


def test_a_model_is_described_before_it_is_loaded(tmp_path: Path) -> None:
    assert describe("demo")[:2] == ("Toy-world demo model", 256)
    assert describe("sd15")[1:] == (512, 9.0)
    (tmp_path / "mine.safetensors").touch()
    assert describe(str(tmp_path / "mine.safetensors"))[0] == "mine.safetensors"


def test_nothing_is_loaded_before_start_and_then_once() -> None:
    loads: list[int] = []

    def load() -> Pipeline:
        loads.append(1)
        return FakePipeline()

    model = Model("demo", "Demo", 256, load)
    assert not model.finished and not loads
    threads = [threading.Thread(target=model.get) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert model.finished and model.error is None and len(loads) == 1


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (WeightsMissing("Get them with: python -m core.weights get demo"), "core.weights get demo"),
        (ValueError("There is no device 'tpu'."), "tpu"),
        (RuntimeError("secret path /home/ann"), "look at the program's log"),
    ],
)
def test_a_failed_load_is_told_in_words_for_people(error: Exception, words: str) -> None:
    def load() -> Pipeline:
        raise error

    model = Model("demo", "Demo", 256, load)
    with pytest.raises(SuiteError, match=words):
        model.get()
    assert "secret" not in (model.error or "")


def test_a_model_without_such_a_controlnet_says_so_instead_of_failing() -> None:
    class Other(FakePipeline):
        def explain_missing(self, control: str) -> str | None:
            raise ValueError(f"This model has no {control}.")

    assert explain_missing(Other(), "hands") == "This model has no hands."
