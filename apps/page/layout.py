"""The components of one app, laid out: inputs on the left, results on the right."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr
from gradio.components import Component

import annotators
from annotators.base import Checkbox, Slider
from apps.editors.canvas import CANVAS, Canvas
from apps.editors.canvas import lay_out as lay_out_canvas
from apps.page import look
from apps.page.settings import PROMPT, Choice, Number, Setting, Text
from apps.spec import App, Page
from core.images import fit_size

IMAGE_HEIGHT = 300
# Shown side by side.
PAIRS = {"start": "end", "detect_resolution": "auto_resolution", "steps": "sampler", "seed": "randomize"}


@dataclass(frozen=True, slots=True)
class Widgets:
    """What one app's handlers read and write. ``settings`` are in the order of the declared settings."""

    image: gr.Image | gr.ImageEditor
    canvas: Canvas | None
    prompt: gr.Textbox
    run: gr.Button
    cancel: gr.Button
    size: gr.HTML
    settings: dict[str, Component]
    randomize: gr.Checkbox
    restore: gr.File
    examples: gr.Dataset | None
    notice: gr.HTML
    status: gr.HTML
    mend: gr.Button
    gallery: gr.Gallery


def lay_out(app: App, declared: tuple[Setting, ...]) -> Widgets:
    """Draw one app inside the current Blocks context."""
    gr.Markdown(f"## Control Stable Diffusion with {app.title}", elem_classes="heading")
    notice = gr.HTML(visible=False, elem_classes="plain", elem_id=f"{app.name}-notice")
    with gr.Row(equal_height=False, elem_classes="work"):
        with gr.Column(scale=5, min_width=300, elem_classes="inputs"):
            canvas = lay_out_canvas(app.name) if app.editor == CANVAS else None
            image = canvas.editor if canvas else image_input(app.name)
            line = look.size_line(_first_size(canvas, declared))
            size = gr.HTML(line, elem_classes="plain", elem_id=f"{app.name}-size")
            prompt = gr.Textbox(
                label=PROMPT.label,
                placeholder="What should be drawn? Press Enter to run.",
                elem_id=f"{app.name}-prompt",
                max_lines=4,
            )
            run = gr.Button("Run", variant="primary", elem_id=f"{app.name}-run")
            cancel = gr.Button("Cancel", variant="stop", visible=False, elem_id=f"{app.name}-cancel")
            settings, randomize = _settings(app, declared)
        with gr.Column(scale=7, min_width=300, elem_classes="results"):
            status = gr.HTML(look.summary("Ready"), elem_classes="plain", elem_id=f"{app.name}-status")
            mend = gr.Button(
                f"Use it {_mended(app)}", size="sm", visible=False, elem_id=f"{app.name}-mend"
            )
            gallery = gr.Gallery(
                label="Output",
                show_label=False,
                columns=2,
                object_fit="contain",
                format="png",
                interactive=False,
                fit_columns=False,
                buttons=["download", "download_all", "fullscreen"],
                elem_id=f"{app.name}-gallery",
            )
            examples = example_row(app)
            restore = gr.File(
                label="Restore settings: drop a PNG made here",
                file_types=[".png"],
                height=76,
                elem_id=f"{app.name}-restore",
                elem_classes="restore",
            )
    return Widgets(
        image=image,
        canvas=canvas,
        prompt=prompt,
        run=run,
        cancel=cancel,
        size=size,
        settings=settings,
        randomize=randomize,
        restore=restore,
        examples=examples,
        notice=notice,
        status=status,
        mend=mend,
        gallery=gallery,
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


def _settings(app: App, declared: tuple[Setting, ...]) -> tuple[dict[str, Component], gr.Checkbox]:
    made: dict[str, Component] = {}
    by_name = {setting.name: setting for setting in declared}
    with gr.Accordion("Advanced options", open=False, elem_id=f"{app.name}-advanced"):
        for setting in declared:
            if setting.name in made:
                continue
            partner = PAIRS.get(setting.name)
            if partner is None:
                made[setting.name] = component(app.name, setting)
                continue
            with gr.Row(equal_height=True, elem_classes="pair"):
                made[setting.name] = component(app.name, setting)
                if partner == "randomize":
                    randomize = gr.Checkbox(
                        value=True,
                        label="Randomize",
                        info="A new seed for every run.",
                        elem_id=f"{app.name}-randomize",
                        min_width=120,
                    )
                else:
                    made[partner] = component(app.name, by_name[partner])
    return {setting.name: made[setting.name] for setting in declared}, randomize


def component(page: str, setting: Setting) -> Component:
    """Draw a setting of the page called ``page``."""
    info, name = setting.info or None, f"{page}-{setting.name}"
    if isinstance(setting, Checkbox):
        return gr.Checkbox(setting.default, label=setting.label, info=info, elem_id=name)
    if isinstance(setting, Choice):
        choices = [(label, word) for word, label in setting.choices]
        return gr.Dropdown(
            choices,
            value=setting.default,
            label=setting.label,
            info=info,
            elem_id=name,
            filterable=False,
            min_width=140,
        )
    if isinstance(setting, Text):
        return gr.Textbox(
            setting.default, label=setting.label, info=info, lines=setting.lines, elem_id=name, max_lines=6
        )
    bounds = {"minimum": setting.minimum, "maximum": setting.maximum, "step": setting.step}
    if isinstance(setting, Number):
        whole = 0 if setting.whole else None
        return gr.Number(
            setting.default,
            label=setting.label,
            info=info,
            elem_id=name,
            precision=whole,
            min_width=140,
            **bounds,
        )
    assert isinstance(setting, Slider)
    return gr.Slider(
        value=setting.default, label=setting.label, info=info, elem_id=name, min_width=140, **bounds
    )


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
