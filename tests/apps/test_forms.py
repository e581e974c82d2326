"""What the page sends by form: an example stands for its own picture."""

from __future__ import annotations

from pathlib import Path

import pytest

from apps import all_apps
from apps.page.forms import AppForm
from apps.spec import App
from tests.apps.pictures import scene


@pytest.mark.parametrize("app", all_apps(), ids=lambda app: app.name)
def test_an_example_is_drawn_from_its_own_file_whatever_the_page_still_holds(
    app: App, tmp_path: Path
) -> None:
    other = tmp_path / "other.png"
    scene().save(other)
    form = AppForm(app, 256, 9.0)
    sent = {field.name: getattr(field, "default", None) for field in form.fields}
    sent |= {"image": {"path": str(other), "meta": {"_type": "gradio.FileData"}}, "prompt": "a fox"}
    (of_page,) = form.plan(sent).sources
    (of_example,) = form.plan(sent, form.example(0)).sources
    assert of_page.path == str(other)
    assert of_example.path == str(app.present_examples[0].path)
