"""A picture on which somebody paints over what to draw anew."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from gradio.components.image_editor import EditorData
from numpy.typing import NDArray
from PIL import Image

from apps.page.files import PictureFolder
from apps.page.masks import read_picture, with_holes

BRUSH_RADIUS, ERASER_RADIUS = 24, 24
SHOWN_HEIGHT = 440
PAINT = "#ff2d78"  # which few pictures hold, so that what is marked stands out
TITLE = "Picture: paint over what to draw anew"


@dataclass(frozen=True, slots=True)
class MaskEditor:
    """The picture with the paint on it, and the place for a mask that is a file."""

    editor: gr.ImageEditor
    upload: gr.Image

    def read(self, payload: Any) -> str | None:
        """Return the path of the picture, transparent where it is painted over, as Gradio hands both over."""
        found = self.editor.preprocess(EditorData.model_validate(payload)) if payload else None
        if not found or not found["background"]:
            return None
        picture, mask = read_picture(str(found["background"]))
        for layer in found["layers"]:
            mask = np.maximum(mask, _painted(str(layer), mask.shape))
        folder = PictureFolder(Path(self.editor.GRADIO_CACHE))
        return str(folder.save_plain(with_holes(picture, mask), "masked.png"))

    def add(self, payload: Any, given: str | None) -> str | None:
        """Return the path of the picture with a mask from a file: what is light there is marked."""
        path = self.read(payload)
        if path is None or given is None:
            return path
        picture, mask = read_picture(path)
        with Image.open(given) as image:
            light = image.convert("L").resize((mask.shape[1], mask.shape[0]))
        more = np.where(np.asarray(light) > 127, np.uint8(255), np.uint8(0))
        folder = PictureFolder(Path(self.editor.GRADIO_CACHE))
        return str(folder.save_plain(with_holes(picture, np.maximum(mask, more)), "masked.png"))


def background(payload: Any) -> Any:
    """Return the file of the picture under the paint, as Gradio hands it over."""
    return payload.get("background") if isinstance(payload, dict) and "background" in payload else payload


def lay_out(name: str) -> MaskEditor:
    """Draw the editor of the app called ``name`` inside the current Blocks context."""
    editor = gr.ImageEditor(
        type="filepath",
        image_mode="RGBA",
        format="png",
        sources=("upload", "clipboard"),
        transforms=(),
        layers=False,
        brush=gr.Brush(BRUSH_RADIUS, colors=[PAINT], default_color=PAINT, color_mode="fixed"),
        eraser=gr.Eraser(ERASER_RADIUS),
        height=SHOWN_HEIGHT,
        label=TITLE,
        buttons=["fullscreen"],
        elem_id=f"{name}-image",
        elem_classes="mask",
    )
    with gr.Accordion("A mask from a file", open=False):
        upload = gr.Image(
            type="filepath",
            image_mode="L",
            format="png",
            sources=["upload", "clipboard"],
            height=160,
            label="Mask: white is drawn anew",
            buttons=[],
            elem_id=f"{name}-mask",
        )
    return MaskEditor(editor, upload)


def _painted(path: str, size: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return (h, w) uint8: 255 where a layer has paint, at the picture's size."""
    with Image.open(path) as layer:
        alpha = layer.convert("RGBA").getchannel("A").resize((size[1], size[0]))
    return np.where(np.asarray(alpha) > 0, np.uint8(255), np.uint8(0))
