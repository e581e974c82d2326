"""Apps that start from a picture: what is marked on it, what is asked for, and what comes back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from numpy.typing import NDArray
from PIL import Image

from apps import find_apps
from apps.editors.mask import MaskEditor, background, lay_out
from apps.page.drawing import draw
from apps.page.files import PictureFolder
from apps.page.masks import fit_mask, read_picture, shade, with_holes
from apps.page.model import Model
from apps.page.notices import about
from apps.page.plan import plan_one
from apps.page.restore import restore
from apps.page.settings import Settings, declare_app, parse
from core.errors import WeightsMissing
from core.images import to_rgb
from core.request import Request
from tests.apps.fakes import FakePipeline
from tests.apps.pictures import scene
from tests.apps.serving import served

INPAINT, TILE, IP2P, SHUFFLE = find_apps(["inpaint", "tile", "ip2p", "shuffle"])


def settings(app: Any, **changes: Any) -> Settings:
    declared = declare_app(app, 256)
    return parse(
        {"prompt": "a fox", "seed": 5, "steps": 2, **{s.name: s.default for s in declared}} | changes,
        declared,
    )


def square(height: int = 200, width: int = 300) -> NDArray[np.uint8]:
    mask = np.zeros((height, width), np.uint8)
    mask[50:100, 60:160] = 255
    return mask


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A picture with a transparent part under which its colours go on."""
    path = tmp_path / "photo.png"
    Image.fromarray(with_holes(np.asarray(scene(300, 200).convert("RGB")), square())).save(path)
    return path


def drawn(app: Any, path: Path, pipeline: FakePipeline, folder: Path, **changes: Any) -> Sequence[Path]:
    plan = plan_one(app, path, settings(app, **changes))
    *_, last = draw(plan, Model.ready(pipeline), PictureFolder(folder))
    return last.files


def asked(app: Any, path: Path, folder: Path, **changes: Any) -> Request:
    pipeline = FakePipeline()
    drawn(app, path, pipeline, folder, **changes)
    return pipeline.requests[0]


# Masks


def test_transparent_parts_are_the_mask_and_keep_their_colours(photo: Path) -> None:
    picture, mask = read_picture(photo)
    assert np.array_equal(mask, square())
    assert np.array_equal(picture, np.asarray(scene(300, 200).convert("RGB")))


def test_a_picture_without_transparency_has_nothing_marked(tmp_path: Path) -> None:
    scene(300, 200).convert("RGB").save(tmp_path / "a.jpg")
    picture, mask = read_picture(tmp_path / "a.jpg")
    assert np.array_equal(picture, to_rgb(tmp_path / "a.jpg")) and not mask.any()


@pytest.mark.parametrize("blur", [0.0, 5.0])
def test_a_mask_covers_what_was_marked_and_fades_outwards(blur: float) -> None:
    mask = fit_mask(square(256, 256), (256, 256), blur)
    marked = square(256, 256) == 255
    assert np.array_equal(mask == 255, marked)
    assert ((mask > 0) & ~marked).any() == (blur > 0)
    assert mask[0, 0] == 0


def test_an_empty_mask_is_told() -> None:
    with pytest.raises(ValueError, match="Nothing is marked: paint over"):
        fit_mask(np.zeros((64, 64), np.uint8), (64, 64), 5.0)


def test_the_shown_picture_is_darker_where_it_will_be_drawn_anew() -> None:
    picture = np.full((200, 300, 3), 200, np.uint8)
    shown = shade(picture, square())
    assert (shown[square() == 255] == 70).all() and (shown[square() == 0] == 200).all()


# Requests


def test_inpainting_asks_for_the_picture_its_mask_and_the_control(photo: Path, tmp_path: Path) -> None:
    request = asked(INPAINT, photo, tmp_path / "served", mask_blur=0.0, denoise=0.8)
    assert request.height_width == (256, 384) and request.denoise == 0.8
    assert request.init is not None and request.mask is not None
    assert np.array_equal(request.init, request.controls[0].hint)
    assert request.controls[0].control == "inpaint"
    share = (request.mask == 255).mean()
    assert share == pytest.approx((square() == 255).mean(), rel=0.05)


def test_tile_starts_from_the_picture_and_the_others_from_noise(photo: Path, tmp_path: Path) -> None:
    request = asked(TILE, photo, tmp_path / "served")
    assert request.init is not None and request.denoise == TILE.denoise and request.mask is None
    assert np.array_equal(request.controls[0].hint, request.init)
    for app in (IP2P, SHUFFLE):
        assert asked(app, photo, tmp_path / "served").init is None


def test_nothing_marked_is_told_before_anything_is_drawn(tmp_path: Path) -> None:
    scene(300, 200).convert("RGB").save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="Nothing is marked"):
        asked(INPAINT, tmp_path / "a.png", tmp_path / "served")


@pytest.mark.parametrize("app", [INPAINT, TILE])
def test_without_its_control_such_an_app_draws_all_the_same_and_says_so(
    app: Any, photo: Path, tmp_path: Path
) -> None:
    pipeline = FakePipeline(missing="It is not on this computer.")

    class Bare(FakePipeline):
        def explain_missing(self, control: str) -> str | None:
            return pipeline.missing

        def sample(self, request: Request) -> Any:
            assert request.controls == () and request.init is not None
            raise WeightsMissing("so far and no further")

    with pytest.raises(WeightsMissing, match="so far"):
        drawn(app, photo, Bare(), tmp_path / "served")
    note = about(app, Model.ready(Bare()))
    assert "by the base model alone" in note and "It is not on this computer." in note
    with pytest.raises(WeightsMissing, match="not on this computer"):
        drawn(IP2P, photo, pipeline, tmp_path / "served")


def test_everything_comes_back_from_the_picture(photo: Path, tmp_path: Path) -> None:
    changes = {"mask_blur": 7.5, "denoise": 0.7}
    files = drawn(INPAINT, photo, FakePipeline(), tmp_path / "served", **changes)
    request = asked(INPAINT, photo, tmp_path / "served", **changes)
    back = restore(files[1], declare_app(INPAINT, 256))
    assert back.notes == () and back.values["denoise"] == 0.7 and back.values["mask_blur"] == 7.5
    assert back.hint is not None and back.mask is not None
    Image.fromarray(with_holes(back.hint, back.mask)).save(tmp_path / "again.png")
    again = asked(INPAINT, tmp_path / "again.png", tmp_path / "served", **changes)
    assert request.init is not None and request.mask is not None and again.init is not None
    assert np.array_equal(again.init, request.init)
    assert again.mask is not None and np.array_equal(again.mask, request.mask)


# The editor


@pytest.fixture(scope="module")
def editor() -> MaskEditor:
    with gr.Blocks():
        return lay_out("any")


def sent(folder: Path, size: tuple[int, int] = (300, 200)) -> dict[str, Any]:
    """Return what the page sends of a picture with a square painted over."""
    paint = np.zeros((200, 300, 4), np.uint8)
    paint[square() == 255] = (255, 45, 120, 255)
    files = {}
    for name, image in {"background": scene(*size).convert("RGBA"), "layer": Image.fromarray(paint)}.items():
        image.save(folder / f"{name}.png")
        files[name] = gr.FileData(path=str(folder / f"{name}.png"), orig_name=f"{name}.png").model_dump()
    return {"background": files["background"], "layers": [files["layer"]], "composite": files["layer"]}


def test_paint_becomes_the_mask_and_leaves_the_picture_as_it_was(editor: MaskEditor, tmp_path: Path) -> None:
    path = editor.read(sent(tmp_path))
    assert path is not None
    picture, mask = read_picture(path)
    assert np.array_equal(mask, square())
    assert np.array_equal(picture, np.asarray(scene(300, 200).convert("RGB")))


def test_a_mask_from_a_file_adds_to_the_paint_whatever_its_size(editor: MaskEditor, tmp_path: Path) -> None:
    given = np.zeros((100, 150), np.uint8)
    given[75:] = 255
    Image.fromarray(given).save(tmp_path / "mask.png")
    path = editor.add(sent(tmp_path), str(tmp_path / "mask.png"))
    assert path is not None
    mask = read_picture(path)[1]
    assert np.array_equal(mask[:140], square()[:140]) and (mask[152:] == 255).all()


def test_without_a_picture_there_is_nothing_to_read(editor: MaskEditor) -> None:
    assert editor.read(None) is None and editor.add(None, None) is None
    assert background({"background": {"path": "x"}}) == {"path": "x"} and background(None) is None


def test_the_endpoint_takes_a_picture_with_transparent_parts(photo: Path, tmp_path: Path) -> None:
    pipeline = FakePipeline()
    with served([INPAINT], pipeline, tmp_path / "served") as url:
        client = Client(url, verbose=False)
        files, seed = client.predict(
            image=handle_file(str(photo)), prompt="a fox", seed=3, steps=2, mask_blur=0, api_name="/inpaint"
        )
        assert seed == 3 and len(files) == 2
        opaque = tmp_path / "opaque.png"
        scene(300, 200).convert("RGB").save(opaque)
        with pytest.raises(AppError, match="Nothing is marked"):
            client.predict(image=handle_file(str(opaque)), prompt="a fox", api_name="/inpaint")
    mask = pipeline.requests[0].mask
    assert mask is not None and (mask == 255).mean() == pytest.approx((square() == 255).mean(), rel=0.05)


def test_the_endpoint_of_an_app_that_is_drawn_in_takes_a_file_too(tmp_path: Path) -> None:
    scene(300, 200).convert("RGB").save(tmp_path / "drawing.png")
    pipeline = FakePipeline()
    with served(find_apps(["scribble_interactive"]), pipeline, tmp_path / "served") as url:
        files, _ = Client(url, verbose=False).predict(
            image=handle_file(str(tmp_path / "drawing.png")), prompt="x", api_name="/scribble_interactive"
        )
    assert len(files) == 2 and pipeline.requests[0].height_width == (256, 384)
