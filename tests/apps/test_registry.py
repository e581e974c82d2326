from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import annotators
from apps import all_apps, find_apps
from core.config import load_config

ROOT = Path(__file__).parents[2]


def test_every_app_has_its_detector_and_a_controlnet_of_stable_diffusion() -> None:
    assert all_apps()
    for app in all_apps():
        assert app.annotator in annotators.names()
        assert app.control in load_config("sd15").controls


def test_every_example_is_there_and_has_a_prompt() -> None:
    for app in all_apps():
        assert app.present_examples == app.examples
        assert all(example.prompt for example in app.examples)


@pytest.mark.parametrize(
    "name", ["canny", "CANNY", "Canny2Image", "gradio_canny2image.py", "gradio-canny2image"]
)
def test_an_app_is_found_by_its_name_and_aliases_in_any_case(name: str) -> None:
    assert [app.name for app in find_apps([name])] == ["canny"]


def test_an_app_named_twice_opens_once() -> None:
    assert len(find_apps(["canny", "edges"])) == 1


def test_a_wrong_name_lists_the_right_ones() -> None:
    with pytest.raises(ValueError, match="no app 'cany'.*canny"):
        find_apps(["cany"])


def test_names_are_unambiguous() -> None:
    words = [word for app in all_apps() for word in (app.name, *app.aliases)]
    assert len(words) == len({word.lower() for word in words})


def test_listing_the_apps_imports_neither_gradio_nor_torch() -> None:
    code = "import apps, sys; apps.all_apps(); print({'gradio', 'torch', 'cv2'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
