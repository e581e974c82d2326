"""The units of a page with several controls, laid out: each with an image, a detector and what it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component

from apps.page.forms import JointForm
from apps.page.layout import (
    Common,
    advanced,
    ask,
    component,
    components,
    image_input,
    lay_out_results,
    properties,
    size_line,
)
from apps.page.settings import Setting

IMAGE_HEIGHT = 236
BESIDE = ("preprocessor", "strength")  # stand beside the image; everything else is under the unit's options
ABOUT = (
    "Every unit with an image adds its control. The first image decides the size; others are cut, the same "
    "on both sides, to its proportions. A unit without an image does not count."
)


@dataclass(frozen=True, slots=True)
class Unit:
    """One unit's widgets; ``settings`` are all slots by name, of which those of the detector are shown.

    ``same`` and ``remove``, which the first unit has not, take the first one's image and close the unit.
    """

    number: int
    box: gr.Column
    image: gr.Image
    detector: Component
    note: gr.HTML
    settings: dict[str, Component]
    same: gr.Button | None
    remove: gr.Button | None

    @property
    def inputs(self) -> list[Component]:
        """What is sent, in the order of the form's fields."""
        return [self.image, self.detector, *self.settings.values()]


@dataclass(frozen=True, slots=True, kw_only=True)
class JointWidgets(Common):
    """The widgets of a page with several controls; ``open`` holds which units are."""

    units: tuple[Unit, ...]
    add: gr.Button
    open: gr.State

    @property
    def image(self) -> gr.Image:
        """The image that decides the size."""
        return self.units[0].image


def lay_out(form: JointForm) -> JointWidgets:
    """Draw the page inside the current Blocks context."""
    joint = form.page
    gr.Markdown(f"## Control Stable Diffusion with {joint.title}", elem_classes="heading")
    with gr.Row(equal_height=False, elem_classes="work"):
        with gr.Column(scale=5, min_width=300, elem_classes="inputs"):
            prompt, run, cancel = ask(joint.name)
            gr.HTML(f'<p class="cn-size">{ABOUT}</p>', elem_classes="plain")
            size = size_line(joint.name)
            units = tuple(_unit(form, number) for number in form.numbers)
            add = gr.Button("Add a unit", size="sm", elem_id=f"{joint.name}-add")
            settings, randomize, advise = advanced(joint.name, form.run)
        results = lay_out_results(joint, columns=3)
    return JointWidgets(
        prompt=prompt,
        run=run,
        cancel=cancel,
        size=size,
        settings=settings,
        randomize=randomize,
        advise=advise,
        results=results,
        units=units,
        add=add,
        open=gr.State([number <= joint.shown for number in form.numbers]),
    )


def _unit(form: JointForm, number: int) -> Unit:
    name = f"{form.page.name}-{number}"
    first = number == 1
    declared = _slots_of(form, form.page.first[number - 1])
    hidden = [s.name for s in declared if not _has(form, form.page.first[number - 1], s.name)]
    beside = [s for s in declared if s.name in BESIDE]
    below = [s for s in declared if s.name not in BESIDE]
    with gr.Column(visible=number <= form.page.shown, elem_classes="unit", elem_id=name) as box:
        with gr.Row(elem_classes="unit-head"):
            gr.Markdown(f"### Unit {number}", elem_classes="heading")
            same = None if first else _small_button("Same image as unit 1", f"{name}-same")
            remove = None if first else _small_button("Remove", f"{name}-remove")
        note = gr.HTML(visible=False, elem_classes="plain", elem_id=f"{name}-note")
        with gr.Row(equal_height=False, elem_classes="unit-body"):
            with gr.Column(min_width=200):
                image = image_input(name, IMAGE_HEIGHT)
            with gr.Column(min_width=200):
                detector = component(form.page.name, form.detector(number))
                made = components(name, beside)
        with gr.Accordion("Detector and window", open=False, elem_id=f"{name}-options"):
            made |= components(name, below, hidden)
    return Unit(number, box, image, detector, note, {slot: made[slot] for slot in form.slots}, same, remove)


def _small_button(label: str, elem_id: str) -> gr.Button:
    return gr.Button(label, size="sm", elem_id=elem_id, min_width=80)


def _slots_of(form: JointForm, detector: str) -> list[Setting]:
    """Return all slots, those of the detector as it declares them."""
    own = {setting.name: setting for setting in form.own[detector]}
    return [own.get(name, setting) for name, setting in form.slots.items()]


def _has(form: JointForm, detector: str, slot: str) -> bool:
    return any(setting.name == slot for setting in form.own[detector])


def suit(form: JointForm, unit: Unit, detector: str, values: Mapping[str, Any]) -> dict[Any, Any]:
    """Return what makes a unit's slots those of ``detector``: with ``values``, else with its defaults.

    What all detectors have, such as the strength, stays as it is where there is no value for it.
    """
    updates: dict[Any, Any] = {}
    for setting in _slots_of(form, detector):
        shown = {name: value for name, value in properties(setting).items() if name != "value"}
        if setting.name in values or not form.is_common(setting):
            shown["value"] = values.get(setting.name, setting.default)
        updates[unit.settings[setting.name]] = gr.update(visible=_has(form, detector, setting.name), **shown)
    return updates


def show(widgets: JointWidgets, open_units: list[bool]) -> dict[Any, Any]:
    """Return what shows just these units."""
    boxes = {
        unit.box: gr.update(visible=there) for unit, there in zip(widgets.units, open_units, strict=True)
    }
    return {widgets.open: open_units, widgets.add: gr.update(visible=not all(open_units)), **boxes}
