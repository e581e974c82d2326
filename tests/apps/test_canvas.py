from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from apps.editors.canvas import Canvas, lay_out, new_paper
from core.images import to_rgb


@pytest.fixture(scope="module")
def canvas() -> Canvas:
    with gr.Blocks():
        return lay_out("any")


def drawn(folder: Path) -> dict[str, Any]:
    """Return what the page sends of a black stroke on white paper, through which nothing shows."""
    strokes = np.zeros((256, 320, 4), np.uint8)
    strokes[100:110, 20:300, 3] = 255
    paper = Image.new("RGBA", (320, 256), "white")
    files = {}
    for name, image in {
        "background": paper,
        "layer_0": Image.fromarray(strokes),
        "composite": Image.alpha_composite(paper, Image.fromarray(strokes)),
    }.items():
        image.save(folder / f"{name}.png")
        files[name] = gr.FileData(path=str(folder / f"{name}.png"), orig_name=f"{name}.png").model_dump()
    return {"background": files["background"], "layers": [files["layer_0"]], "composite": files["composite"]}


def test_new_paper_is_white_and_of_the_asked_size() -> None:
    paper = new_paper(300, 1024)
    assert paper.shape == (1024, 300, 3) and paper.dtype == np.uint8 and (paper == 255).all()


@pytest.mark.parametrize(("width", "height", "name"), [(255, 512, "width"), (512, 1025, "height")])
def test_paper_of_another_size_is_refused(width: int, height: int, name: str) -> None:
    with pytest.raises(ValueError, match=f"canvas_{name} is .* from 256 to 1024"):
        new_paper(width, height)


def test_strokes_arrive_black_on_white_without_loss(canvas: Canvas, tmp_path: Path) -> None:
    picture = to_rgb(canvas.read(drawn(tmp_path)))
    assert picture.shape == (256, 320, 3)
    assert (picture[100:110, 20:300] == 0).all()
    assert (picture == 255).sum() == (256 * 320 - 10 * 280) * 3


def test_what_the_editor_sends_in_pieces_arrives_too(canvas: Canvas, tmp_path: Path) -> None:
    sent = drawn(tmp_path)
    from gradio.components.image_editor import EditorDataBlobs

    blobs = {name: Path(sent[name]["path"]).read_bytes() for name in ("background", "composite")}
    canvas.editor.blob_storage["some-id"] = EditorDataBlobs(layers=[], **blobs)
    payload: dict[str, Any] = {"background": None, "layers": [], "composite": None, "id": "some-id"}
    np.testing.assert_array_equal(to_rgb(canvas.read(payload)), to_rgb(sent["composite"]["path"]))


@pytest.mark.parametrize("payload", [None, {"background": None, "layers": [], "composite": None}])
def test_no_paper_is_told(canvas: Canvas, payload: Any) -> None:
    with pytest.raises(ValueError, match="There is no drawing"):
        canvas.read(payload)
