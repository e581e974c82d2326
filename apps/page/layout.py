"""The components of one app, laid out: inputs on the left, results on the right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component

import annotators
from annotators.base import Checkbox, Slider
from apps.editors.canvas import CANVAS, Canvas
from apps.editors.canvas import lay_out as lay_out_canvas
from apps.editors.mask import MaskEditor
from apps.editors.mask import lay_out as lay_out_mask
from apps.page import look
from apps.page.settings import (
    ADVISED_FOR_GUESSING,
    GUESS_MODE,
    PROMPT,
    SPEED,
    Choice,
    Number,
    Setting,
    Text,
)
from apps.spec import MASK, App, Page
from core.images import fit_size

IMAGE_HEIGHT = 300
KINDS: dict[type[Setting], Any] = {
    Checkbox: gr.Checkbox,
    Choice: gr.Dropdown,
    Text: gr.Textbox,
    Number: gr.Number,
    Slider: gr.Slider,
}
# Shown side by side.
RANDOMIZE, ADVISE = "randomize", "advise"
PAIRS = {"start": "end", "detect_resolution": "auto_resolution", "steps": "sampler", "seed": RANDOMIZE}


@dataclass(frozen=True, slots=True, kw_only=True)
class Common:
    """What the handlers of every page that draws read and write; ``settings`` are what a run has once."""

    prompt: gr.Textbox
    run: gr.Button
    cancel: gr.Button
    size: gr.HTML
    settings: dict[str, Component]
    randomize: gr.Checkbox
    advise: gr.Button
    results: Results


@dataclass(frozen=True, slots=True)
class Results:
    """The right half of a page that draws."""

    status: gr.HTML
    mend: gr.Button
    gallery: gr.Gallery
    examples: gr.Dataset | None
    restore: gr.File


@dataclass(frozen=True, slots=True, kw_only=True)
class Widgets(Common):
    """One app's widgets. ``settings`` are in the order of the declared settings."""

    image: gr.Image | gr.ImageEditor
    canvas: Canvas | None
    mask: MaskEditor | None
    notice: gr.HTML


def lay_out(app: App, declared: tuple[Setting, ...]) -> Widgets:
    """Draw one app inside the current Blocks context."""
    gr.Markdown(f"## Control Stable Diffusion with {app.title}", elem_classes="heading")
    notice = gr.HTML(visible=False, elem_classes="plain", elem_id=f"{app.name}-notice")
    with gr.Row(equal_height=False, elem_classes="work"):
        with gr.Column(scale=5, min_width=300, elem_classes="inputs"):
            canvas = lay_out_canvas(app.name) if app.editor == CANVAS else None
            mask = lay_out_mask(app.name) if app.editor == MASK else None
            image = canvas.editor if canvas else mask.editor if mask else image_input(app.name)
            size = size_line(app.name, _first_size(canvas, declared))
            prompt, run, cancel = ask(app.name)
            settings, randomize, advise = advanced(app.name, declared)
        results = lay_out_results(app, f"Use it {_mended(app)}")
    return Widgets(
        image=image,
        canvas=canvas,
        mask=mask,
        prompt=prompt,
        run=run,
        cancel=cancel,
        size=size,
        settings=settings,
        randomize=randomize,
        advise=advise,
        notice=notice,
        results=results,
    )


def size_line(name: str, size: tuple[int, int] | None = None) -> gr.HTML:
    """Draw the line that says how large the pictures will be."""
    return gr.HTML(look.size_line(size), elem_classes="plain", elem_id=f"{name}-size")


def ask(name: str) -> tuple[gr.Textbox, gr.Button, gr.Button]:
    """Draw the place for the prompt, the button that runs and the one that cancels."""
    prompt = gr.Textbox(
        label=PROMPT.label,
        placeholder="What should be drawn? Press Enter to run.",
        elem_id=f"{name}-prompt",
        max_lines=4,
    )
    run = gr.Button("Run", variant="primary", elem_id=f"{name}-run")
    return prompt, run, gr.Button("Cancel", variant="stop", visible=False, elem_id=f"{name}-cancel")


def lay_out_results(page: Page, mend_label: str = "", columns: int = 2) -> Results:
    """Draw the right half, pictures in ``columns``; ``mend_label`` is on the button that changes a map."""
    name = page.name
    with gr.Column(scale=7, min_width=300, elem_classes="results"):
        return Results(
            status=gr.HTML(look.summary("Ready"), elem_classes="plain", elem_id=f"{name}-status"),
            mend=gr.Button(mend_label, size="sm", visible=False, elem_id=f"{name}-mend"),
            gallery=gr.Gallery(
                label="Output",
                show_label=False,
                columns=columns,
                object_fit="contain",
                format="png",
                interactive=False,
                fit_columns=False,
                buttons=["download", "download_all", "fullscreen"],
                elem_id=f"{name}-gallery",
            ),
            examples=example_row(page),
            restore=gr.File(
                label="Restore settings: drop a PNG made here",
                file_types=[".png"],
                height=76,
                elem_id=f"{name}-restore",
                elem_classes="restore",
            ),
        )


def _first_size(canvas: Canvas | None, declared: tuple[Setting, ...]) -> tuple[int, int] | None:
    if canvas is None:
        return None
    height, width = canvas.size.value
    return fit_size(height, width, next(int(s.default) for s in declared if s.name == "resolution"))


def image_input(name: str, height: int = IMAGE_HEIGHT) -> gr.Image:
    """Draw the place for a picture of the page called ``name``."""
    return gr.Image(
        type="filepath",
        image_mode=None,
        format="png",
        sources=["upload", "clipboard", "webcam"],
        height=height,
        label="Image",
        show_label=False,
        elem_id=f"{name}-image",
        buttons=["fullscreen"],
    )


def _mended(app: App) -> str:
    """Return what the change of the detector's kind of maps is called, such as "inverted"."""
    return annotators.load(app.annotator).kind.mended.partition(":")[0].rpartition(" ")[2]


def advanced(name: str, declared: tuple[Setting, ...]) -> tuple[dict[str, Component], gr.Checkbox, gr.Button]:
    """Draw the settings under "Advanced options".

    Return them in their order, what asks for a new seed, and what sets the values advised for guess mode.
    """
    with gr.Accordion("Advanced options", open=False, elem_id=f"{name}-advanced"):
        made = components(name, [setting for setting in declared if setting not in SPEED])
        with gr.Accordion("Speed", open=False, elem_id=f"{name}-speed"):
            quick = components(name, SPEED)
    made |= quick
    randomize, advise = made.pop(RANDOMIZE), made.pop(ADVISE)
    assert isinstance(randomize, gr.Checkbox) and isinstance(advise, gr.Button)
    return made, randomize, advise


def components(page: str, declared: Sequence[Setting], hidden: Sequence[str] = ()) -> dict[str, Component]:
    """Draw settings, partners side by side; return them in their order, last what goes with some of them.

    Those whose names are in ``hidden`` are there, but not shown.
    """

    def draw(setting: Setting) -> Component:
        no_choice = isinstance(setting, Choice) and len(setting.choices) == 1
        return component(page, setting, visible=setting.name not in hidden and not no_choice)

    made: dict[str, Component] = {}
    by_name = {setting.name: setting for setting in declared}
    for setting in declared:
        if setting.name in made:
            continue
        partner = PAIRS.get(setting.name)
        if partner is None or (partner not in by_name and partner != RANDOMIZE):
            made[setting.name] = draw(setting)
            if setting.name == GUESS_MODE:
                made[ADVISE] = _advise(page)
            continue
        with gr.Row(equal_height=True, elem_classes="pair"):
            made[setting.name] = draw(setting)
            made[partner] = _randomize(page) if partner == RANDOMIZE else draw(by_name[partner])
    extra = {name: made[name] for name in (RANDOMIZE, ADVISE) if name in made}
    return {setting.name: made[setting.name] for setting in declared} | extra


def _advise(page: str) -> gr.Button:
    steps, scale = (f"{value:g}" for value in ADVISED_FOR_GUESSING.values())
    label = f"Use what is advised: {steps} steps, guidance scale {scale}"
    return gr.Button(label, size="sm", visible=False, elem_id=f"{page}-{ADVISE}")


def _randomize(page: str) -> gr.Checkbox:
    return gr.Checkbox(
        value=True,
        label="Randomize",
        info="A new seed for every run.",
        elem_id=f"{page}-{RANDOMIZE}",
        min_width=120,
    )


def component(page: str, setting: Setting, **more: Any) -> Component:
    """Draw a setting of the page called ``page``; ``more`` are Gradio's own."""
    return KINDS[type(setting)](**properties(setting), elem_id=f"{page}-{setting.name}", **more)


def properties(setting: Setting) -> dict[str, Any]:
    """Return what the component of a setting shows, as Gradio names it."""
    shown: dict[str, Any] = {"value": setting.default, "label": setting.label, "info": setting.info or None}
    if isinstance(setting, Choice):
        choices = [(label, word) for word, label in setting.choices]
        return shown | {"choices": choices, "filterable": False, "min_width": 140}
    if isinstance(setting, Text):
        return shown | {"lines": setting.lines, "max_lines": 6}
    if isinstance(setting, Slider):
        bounds = {"minimum": setting.minimum, "maximum": setting.maximum, "step": setting.step}
        shown |= {**bounds, "min_width": 140}
    if isinstance(setting, Number):
        shown["precision"] = 0 if setting.whole else None
    return shown


def example_row(page: Page, label: str = "Examples: one click makes a picture") -> gr.Dataset | None:
    """Draw the examples whose pictures are there."""
    present = page.present_examples
    if not present:
        return None
    return gr.Dataset(
        components=["image"],
        component_props=[{"type": "filepath", "format": "png", "image_mode": None}],
        samples=[[str(example.path)] for example in present],
        label=label,
        type="index",
        layout="gallery",
        samples_per_page=12,
        elem_id=f"{page.name}-examples",
        elem_classes="examples",
    )
