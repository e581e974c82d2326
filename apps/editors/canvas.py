"""White paper to draw on with black strokes, as in the ControlNet 1.0 demo for interactive scribbles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr
import numpy as np
from gradio.components.image_editor import EditorData
from numpy.typing import NDArray

from annotators.base import Slider

CANVAS = "canvas"  # what an app's ``editor`` calls it
WIDTH = Slider("canvas_width", "Canvas Width", 256, 1024, 512)
HEIGHT = Slider("canvas_height", "Canvas Height", 256, 1024, 512)
BRUSH_RADIUS, ERASER_RADIUS = 5, 16
SHOWN_HEIGHT = 440
BLACK = "#000000"


@dataclass(frozen=True, slots=True)
class Canvas:
    """The paper and what brings a new one; ``size`` is its (height, width)."""

    editor: gr.ImageEditor
    size: gr.State
    width: gr.Slider
    height: gr.Slider
    open: gr.Button

    def read(self, payload: Any) -> str:
        """Return the path of the drawing as Gradio hands it over, checked: the paper with its strokes.

        Raises:
            ValueError: there is no paper.
        """
        found = self.editor.preprocess(EditorData.model_validate(payload)) if payload else None
        if not found or not found["composite"]:
            raise ValueError("There is no drawing: open the canvas and draw, or pick an example.")
        return str(found["composite"])


def lay_out(name: str) -> Canvas:
    """Draw the canvas of the app called ``name`` inside the current Blocks context."""
    with gr.Row(equal_height=True, elem_classes="pair"):
        width, height = (_slider(name, size) for size in (WIDTH, HEIGHT))
    button = gr.Button("Open drawing canvas!", size="sm", elem_id=f"{name}-open")
    editor = gr.ImageEditor(
        new_paper(WIDTH.default, HEIGHT.default),
        type="filepath",
        image_mode="RGB",
        format="png",
        sources=(),
        transforms=(),
        layers=False,
        brush=gr.Brush(BRUSH_RADIUS, colors=[BLACK], default_color=BLACK, color_mode="fixed"),
        eraser=gr.Eraser(ERASER_RADIUS),
        canvas_size=(int(WIDTH.default), int(HEIGHT.default)),
        height=SHOWN_HEIGHT,
        label="Canvas",
        show_label=False,
        buttons=["fullscreen"],
        elem_id=f"{name}-image",
        elem_classes="canvas",
    )
    size = gr.State((int(HEIGHT.default), int(WIDTH.default)))
    return Canvas(editor, size, width, height, button)


def new_paper(width: Any, height: Any) -> NDArray[np.uint8]:
    """Return white paper, (height, width, 3) uint8.

    Raises:
        ValueError: a side is out of range; says what is allowed.
    """
    return np.full((int(HEIGHT.check(height)), int(WIDTH.check(width)), 3), 255, np.uint8)


def _slider(name: str, size: Slider) -> gr.Slider:
    return gr.Slider(
        size.minimum,
        size.maximum,
        size.default,
        step=size.step,
        label=size.label,
        min_width=140,
        elem_id=f"{name}-{size.name}",
    )
