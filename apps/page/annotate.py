"""What happens on the page of all detectors."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

import annotators
from annotators.base import Annotation
from apps.page import look
from apps.page.bench import BenchWidgets, CardWidgets, declared_of
from apps.page.events import HIDDEN, QUEUE, quietly
from apps.page.files import PictureFolder
from apps.page.forms import file_path
from apps.page.handlers import told
from apps.page.notices import detector_state
from apps.spec import Card, Workbench
from core.images import fit_size, to_rgb
from core.runtime.threads import in_own_thread


def annotate(card: Card, path: str | Path | None, resolution: int, values: Mapping[str, Any]) -> Annotation:
    """Make a detector's map at the size at which it works: the short side near ``resolution``.

    Raises:
        ValueError: there is no picture, it cannot be read, or a control is wrong; says what is allowed.
        WeightsMissing: the detector's weights are not on this computer; says how to get them.
    """
    picture = to_rgb(path)
    annotator = annotators.load(card.annotator)
    own = resolution if annotator.resolution is not None else None
    size = fit_size(picture.shape[0], picture.shape[1], resolution)
    return annotator(picture, size=size, resolution=own, **values)


class Bench:
    """The event handlers of the page of all detectors. Nothing about one visitor is kept here."""

    def __init__(self, bench: Workbench, widgets: BenchWidgets) -> None:
        """Serve ``bench``; maps are written where Gradio serves files from."""
        self.bench, self.widgets = bench, widgets
        self.cache = Path(widgets.image.GRADIO_CACHE)

    def make(
        self, card: Card, path: str | None, values: Mapping[str, Any]
    ) -> tuple[Path, Path | None, Mapping[str, Any] | None]:
        """Save the map, and what else was found where there is anything; return both files and the facts."""
        checked = {s.name: s.check(values[s.name]) for s in declared_of(card)}
        resolution = int(checked.pop("resolution"))
        found = in_own_thread(lambda: annotate(card, path, resolution, checked))
        shown = PictureFolder(self.cache).save_plain(found.hint, f"{card.annotator}.png")
        if not found.data:
            return shown, None, None
        facts = shown.with_suffix(".json")
        facts.write_text(json.dumps(found.data, indent=1), encoding="utf-8")
        return shown, facts, found.data

    def run_one(self, widgets: CardWidgets, image: Any, *values: Any) -> tuple[Any, ...]:
        """Return the note, the map and the facts of one card; what goes wrong is told in the map's place."""
        card = widgets.card
        try:
            with told():
                named = {s.name: value for s, value in zip(widgets.declared, values, strict=True)}
                shown, facts, _ = self.make(card, file_path(image), named)
        except gr.Error as error:
            hidden = gr.update(visible=False)
            return gr.update(value=look.notice(error.message), visible=True), hidden, hidden
        remark = look.notice(detector_state(card.annotator).remark, "remark")
        return (
            gr.update(value=remark, visible=bool(remark)),
            gr.update(value=str(shown), visible=True),
            gr.update(value=str(facts) if facts else None, visible=facts is not None),
        )

    def run_all(self, image: Any, *values: Any) -> Iterator[dict[Component, Any]]:
        """Yield card after card; ``values`` are the controls of all of them."""
        given, cards = iter(values), self.widgets.cards
        for done, card in enumerate(cards):
            own = [next(given) for _ in card.declared]
            yield {self.widgets.status: look.progress(card.card.title, done / len(cards))}
            yield dict(zip(card.outputs, self.run_one(card, image, *own), strict=True))
        yield {self.widgets.status: look.summary("Done")}

    def check(self) -> list[Any]:
        """Return for every card its note and whether its map has a place: not where weights are missing."""
        updates = []
        for card in self.bench.cards:
            state = detector_state(card.annotator)
            note = look.notice(state.problem) or look.notice(state.remark, "remark")
            updates += [gr.update(value=note, visible=bool(note)), gr.update(visible=not state.problem)]
        return updates


def connect(handlers: Bench, at_once: int) -> None:
    """Wire the page, with so many runs of all pages under way at the same time.

    Its cards tell what is missing whenever the page is opened.
    """
    w = handlers.widgets
    queued: dict[str, Any] = {
        "preprocess": False,
        "concurrency_id": QUEUE,
        "concurrency_limit": at_once,
        "api_visibility": "private",
    }
    controls = [control for card in w.cards for control in card.controls.values()]
    outputs = [w.status, *(output for card in w.cards for output in card.outputs)]
    buttons: list[Component] = [w.run, w.cancel, w.status]
    starts = [quietly(w.run.click, _busy, None, buttons)]
    if w.examples is not None:
        filled = quietly(w.examples.click, _fill_from(handlers.bench), [w.examples], [w.image])
        starts.append(quietly(filled.then, _busy, None, buttons))
    running = [
        start.then(handlers.run_all, [w.image, *controls], outputs, **queued, **HIDDEN) for start in starts
    ]
    for event in running:
        for over in (event.success, event.failure):
            quietly(over, _ended, [w.status], buttons)
    w.cancel.click(None, None, None, cancels=running, api_visibility="private")
    for card in w.cards:
        run = partial(handlers.run_one, card)
        card.run.click(run, [w.image, *card.controls.values()], card.outputs, **queued)


def _busy() -> tuple[Any, ...]:
    return gr.update(visible=False), gr.update(visible=True), look.progress("Waiting for its turn", None)


def _ended(status: str) -> tuple[Any, ...]:
    last_word = gr.skip() if look.BAR not in status else look.summary("Stopped", look.KEPT)
    return gr.update(visible=True), gr.update(visible=False), last_word


def _fill_from(bench: Workbench) -> Callable[[int], str]:
    def fill(index: int) -> str:
        return str(bench.present_examples[index].path)

    return fill
