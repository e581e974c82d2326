from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import annotators
from apps import all_apps, all_pages, find_apps, find_pages
from core.config import load_config

ROOT = Path(__file__).parents[2]


# The original's files and headings: gradio_<file>2image.py, "Control Stable Diffusion with <heading>".
ORIGINALS = {
    "canny": ("canny", "Canny Edge Maps"),
    "hough": ("mlsd", "Hough Line Maps"),
    "hed": ("hed", "HED Maps"),
    "scribble": ("scribble", "Scribble Maps"),
    "scribble_interactive": ("scribble_interactive", "Interactive Scribbles"),
    "fake_scribble": ("fake_scribble", "Fake Scribble Maps"),
    "pose": ("pose", "Human Pose"),
    "seg": ("segmentation", "Segmentation Maps"),
    "depth": ("depth", "Depth Maps"),
    "normal": ("normal", "Normal Maps"),
}


def test_every_app_has_its_detector_and_a_controlnet_of_stable_diffusion() -> None:
    for app in all_apps():
        assert app.annotator in annotators.names()
        assert app.control in load_config("sd15").controls


def test_the_tabs_stand_in_the_originals_order() -> None:
    assert [app.name for app in all_apps() if not app.group] == list(dict(ORIGINALS.values()))


def test_apps_of_control_1_1_open_by_their_names_by_their_groups_or_with_all() -> None:
    group = find_pages(["1.1"])
    assert {page.group for page in group} == {"1.1"} and len(group) >= 4
    assert {page.name for page in find_pages([])} == {p.name for p in all_pages()} - {p.name for p in group}
    assert find_pages(["canny", "1.1"]) == (*find_pages(["canny"]), *group)


@pytest.mark.parametrize("file", ORIGINALS)
def test_the_originals_names_and_headings_are_kept(file: str) -> None:
    name, title = ORIGINALS[file]
    stem = file.replace("scribble_", "scribble2image_", 1) if "interactive" in file else f"{file}2image"
    for alias in (f"gradio_{stem}.py", stem, file.upper()):
        (app,) = find_apps([alias])
        assert (app.name, app.title) == (name, title)


def test_every_example_is_there_and_has_a_prompt() -> None:
    for app in all_apps():
        assert app.present_examples == app.examples and len(app.examples) >= 3
        assert all(example.prompt for example in app.examples)


@pytest.mark.parametrize("name", ["pose", "segmentation", "depth", "normal"])
def test_apps_with_large_detectors_have_examples_for_none_and_for_the_demo_one(name: str) -> None:
    (app,) = find_apps([name])
    assert any(example.preprocessor == "none" for example in app.examples)
    detected = [example.image for example in app.examples if example.preprocessor != "none"]
    assert any(image.startswith("toy_") for image in detected)


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        *((alias, "canny") for alias in ("CANNY", "Canny2Image", "gradio-canny2image")),
        *(("openpose", "pose"), ("fake-scribble", "fake_scribble"), ("Seg", "segmentation")),
    ],
)
def test_an_app_is_found_by_its_name_and_aliases_in_any_case(alias: str, name: str) -> None:
    assert [app.name for app in find_apps([alias])] == [name]


def test_all_means_everything_wherever_it_stands() -> None:
    assert find_pages(["canny", "ALL"]) == all_pages()
    assert set(all_apps()) <= set(all_pages())


def test_an_app_named_twice_opens_once() -> None:
    assert len(find_apps(["canny", "edges"])) == 1


def test_a_wrong_name_lists_the_right_ones() -> None:
    with pytest.raises(ValueError, match="no app 'cany'.*canny.*segmentation.*all"):
        find_apps(["cany"])


def test_names_are_unambiguous() -> None:
    words = [word for page in all_pages() for word in (page.name, *page.aliases)]
    assert len(words) == len({word.lower() for word in words})


def test_listing_the_apps_imports_neither_gradio_nor_torch() -> None:
    code = "import apps, sys; apps.all_pages(); print({'gradio', 'torch', 'cv2'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
