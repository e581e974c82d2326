"""The page of all detectors, laid out: one picture above, a card for each detector's map below."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import gradio as gr
from gradio.components import Component

import annotators
from annotators.base import Checkbox, Slider
from apps.page import look
from apps.page.layout import component, example_row, image_input
from apps.spec import Card, Workbench

MAP_HEIGHT = 240
ABOUT = (
    "Maps are as the ControlNets take them: light lines on dark. A saved one can be brought back to its app, "
    "with Preprocessor set to “None: my image is already a map”."
)


@dataclass(frozen=True, slots=True)
class CardWidgets:
    """What one detector's card holds. ``controls`` are its resolution and its own controls, by name."""

    card: Card
    declared: tuple[Slider | Checkbox, ...]
    controls: dict[str, Component]
    run: gr.Button
    note: gr.HTML
    map: gr.Image
    facts: gr.DownloadButton

    @property
    def outputs(self) -> list[Component]:
        """What a run changes."""
        return [self.note, self.map, self.facts]


@dataclass(frozen=True, slots=True)
class BenchWidgets:
    """What the page's handlers read and write."""

    image: gr.Image
    run: gr.Button
    cancel: gr.Button
    status: gr.HTML
    examples: gr.Dataset | None
    cards: tuple[CardWidgets, ...]


def declared_of(card: Card) -> tuple[Slider | Checkbox, ...]:
    """Return a detector's resolution and its controls, with the card's defaults."""
    own = dict(card.defaults)
    resolution = Slider("resolution", "Resolution", 256, 1024, card.resolution, 64, "Short side, in pixels.")
    annotator = annotators.load(card.annotator)
    return resolution, *(_with_default(p, own) for p in (*annotator.params, *annotator.more_params))


def _with_default(param: Slider | Checkbox, own: Mapping[str, float]) -> Slider | Checkbox:
    if isinstance(param, Checkbox):
        return param
    return replace(param, default=own.get(param.name, param.default))


def lay_out(bench: Workbench) -> BenchWidgets:
    """Draw the page inside the current Blocks context."""
    gr.Markdown(f"## {bench.title}", elem_classes="heading")
    with gr.Row(equal_height=False, elem_classes="work"):
        with gr.Column(scale=5, min_width=300, elem_classes="inputs"):
            image = image_input(bench.name)
        with gr.Column(scale=7, min_width=300):
            status = gr.HTML(look.summary("Ready"), elem_classes="plain", elem_id=f"{bench.name}-status")
            run = gr.Button("Run all", variant="primary", elem_id=f"{bench.name}-run")
            cancel = gr.Button("Cancel", variant="stop", visible=False, elem_id=f"{bench.name}-cancel")
            examples = example_row(bench, "Examples: one click runs all")
            gr.HTML(f'<p class="cn-size">{ABOUT}</p>', elem_classes="plain")
    with gr.Row(equal_height=False, elem_classes="cards"):
        cards = tuple(_card(bench, card) for card in bench.cards)
    return BenchWidgets(image, run, cancel, status, examples, cards)


def _card(bench: Workbench, card: Card) -> CardWidgets:
    name = f"{bench.name}-{card.annotator}"
    declared = declared_of(card)
    with gr.Column(min_width=280, elem_classes="card"):
        gr.Markdown(f"### {card.title}", elem_classes="heading")
        note = gr.HTML(visible=False, elem_classes="plain", elem_id=f"{name}-note")
        shown = gr.Image(
            type="filepath",
            format="png",
            interactive=False,
            height=MAP_HEIGHT,
            show_label=False,
            buttons=["download", "fullscreen"],
            elem_id=f"{name}-map",
        )
        facts = gr.DownloadButton(
            "What was found, as JSON", size="sm", visible=False, elem_id=f"{name}-facts"
        )
        with gr.Accordion("Options", open=False):
            controls = {setting.name: component(name, setting) for setting in declared}
        run = gr.Button("Run", size="sm", elem_id=f"{name}-run")
    return CardWidgets(card, declared, controls, run, note, shown, facts)
