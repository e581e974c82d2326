"""Which component starts what on a page with several controls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gradio as gr
from gradio.components import Component

from apps.page import look
from apps.page.events import (
    announce,
    beginning,
    cancel,
    existing,
    offer_advice,
    quietly,
    run_after,
    save_hint,
    told_of,
    upload,
)
from apps.page.forms import JointForm
from apps.page.handlers import Handlers, told
from apps.page.model import Model
from apps.page.notices import about_unit
from apps.page.restore import RestoredUnit, restore_units
from apps.page.settings import DETECT
from apps.page.units import JointWidgets, Unit, show, suit

Updates = dict[Any, Any]


def connect(widgets: JointWidgets, handlers: Handlers, form: JointForm) -> None:
    """Wire the page."""
    w = widgets
    places = [place for unit in w.units for place in (unit.box, *unit.inputs, unit.note)]
    everything = [w.open, w.add, *places, w.prompt, w.randomize, *w.settings.values()]
    begin = beginning(form.page, w)
    starts = [begin(partial(gr.on, [w.run.click, w.prompt.submit]))]
    put_back = _restore_with(w, handlers, form)
    upload(w, put_back, [*everything, w.results.status, w.results.restore])
    if w.results.examples is not None:
        fill = _fill_with(w, form, handlers.model)
        filled = quietly(w.results.examples.click, fill, [w.results.examples], everything)
    sent = [w.prompt, *(widget for unit in w.units for widget in unit.inputs), *w.settings.values()]
    at_once = handlers.model.at_once
    running = run_after(starts, handlers.run, [w.randomize, *sent], w, at_once)
    if w.results.examples is not None:
        shown = [w.results.examples, w.randomize, *sent]
        running += run_after([begin(filled.then)], handlers.run_example, shown, w, at_once)
    cancel(running, w)
    offer_advice(w)
    images: list[Component] = [unit.image for unit in w.units]
    announce([unit.image.change for unit in w.units], handlers.size, images, w)
    _connect_units(w, form, handlers.model)


def _connect_units(w: JointWidgets, form: JointForm, model: Model) -> None:
    boxes = [unit.box for unit in w.units]
    quietly(w.add.click, partial(_open_another, w), [w.open], [w.open, w.add, *boxes])
    for unit in w.units:
        # Not "change": that would undo what an example or a restored picture has just set.
        kind = unit.settings["preprocessor"]
        chosen, kept = partial(_choose, form, unit, model), [*unit.settings.values(), unit.note]
        quietly(unit.detector.input, chosen, [unit.detector, kind], kept)
        quietly(kind.input, partial(_note, form, model), [unit.detector, kind], [unit.note])
        if unit.same is not None and unit.remove is not None:
            quietly(unit.same.click, lambda image: image, [w.image], [unit.image])
            close = partial(_close, w, unit)
            quietly(unit.remove.click, close, [w.open], [w.open, w.add, *boxes, unit.image])


def _open_another(w: JointWidgets, now: list[bool]) -> Updates:
    first_closed = now.index(False) if False in now else len(now)
    return show(w, [there or i == first_closed for i, there in enumerate(now)])


def _close(w: JointWidgets, unit: Unit, now: list[bool]) -> Updates:
    left = [there and other is not unit for other, there in zip(w.units, now, strict=True)]
    return {**show(w, left), unit.image: None}


def _choose(form: JointForm, unit: Unit, model: Model, detector: str, preprocessor: str) -> Updates:
    return {**suit(form, unit, detector, {}), unit.note: _note(form, model, detector, preprocessor)}


def _note(form: JointForm, model: Model, detector: str, preprocessor: str) -> Any:
    note = about_unit(form.apps[detector], preprocessor == DETECT, model)
    return gr.update(value=note, visible=bool(note))


def _fill_with(w: JointWidgets, form: JointForm, model: Model) -> Callable[[int], Updates]:
    examples = form.page.present_examples

    def fill(index: int) -> Updates:
        example = examples[index]
        pictures = (example, *example.others)
        units = [RestoredUnit(p.app, {"preprocessor": p.preprocessor}, None) for p in pictures]
        images = [str(picture.path) for picture in pictures]
        return {**_put(w, form, model, units, images), w.prompt: example.prompt}

    return fill


def _put(
    w: JointWidgets,
    form: JointForm,
    model: Model,
    units: Sequence[RestoredUnit],
    images: Sequence[str | None],
) -> Updates:
    """Return what opens as many units as are given, fills these and empties the others."""
    count = max(len(units), form.page.shown)
    updates = show(w, [i < count for i in range(len(w.units))])
    updates |= {unit.image: None for unit in w.units}
    defaults = {s.name: s.default for s in form.slots.values() if form.is_common(s)}
    for unit, found, image in zip(w.units, units, images, strict=False):
        values = defaults | dict(found.values)
        updates |= suit(form, unit, found.app, values)
        note = _note(form, model, found.app, values["preprocessor"])
        updates |= {unit.image: image, unit.detector: found.app, unit.note: note}
    return updates


def _restore_with(w: JointWidgets, handlers: Handlers, form: JointForm) -> Callable[[str | None], Updates]:
    def put_back(path: str | None) -> Updates:
        try:
            with told():
                found, units = restore_units(existing(path), form)
        except gr.Error as error:
            gr.Warning(error.message, title="Nothing was restored")
            return {w.results.status: look.notice(error.message), w.results.restore: None}
        hints = [unit.hint for unit in units]
        images = [None if hint is None else str(save_hint(hint, form.page, handlers)) for hint in hints]
        updates = _put(w, form, handlers.model, units, images)
        updates |= {w.settings[name]: value for name, value in found.values.items()}
        if found.prompt is not None:
            updates[w.prompt] = found.prompt
        if "seed" in found.values:
            updates[w.randomize] = False
        with_map = any(hint is not None for hint in hints)
        updates[w.results.status] = look.summary("Settings restored", told_of(found, with_map))
        return updates | {w.results.restore: None}

    return put_back
