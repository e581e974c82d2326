"""Which component starts what: the wiring of one app, and the values that tabs share."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from gradio.components import Component
from numpy.typing import NDArray

from apps.editors.canvas import CANVAS, new_paper
from apps.editors.mask import MaskEditor
from apps.page import look
from apps.page.files import PictureFolder
from apps.page.forms import file_path
from apps.page.handlers import Handlers, told
from apps.page.layout import Common, Widgets
from apps.page.masks import with_holes
from apps.page.restore import Restored, restore
from apps.page.settings import ADVISED_FOR_GUESSING, DETECT, GUESS_MODE, INVERTED_MAP
from apps.spec import MASK, App, Page
from core.images import open_image, upright_size

QUEUE = "gpu"  # all apps share it, since all share one model
# No progress of Gradio's own. Not only out of sight: for each message of a run the browser would look up all
# components that were ever filled, one by one in the whole page, and with many tabs do nothing else.
HIDDEN: dict[str, Any] = {"show_progress": "hidden", "show_progress_on": []}
# On a phone the results are below the inputs: bring them into view when a run begins.
SHOW_RESULTS = """() => {
  if (innerWidth < 720) document.getElementById('ID').scrollIntoView({behavior: 'smooth'});
  return [];
}"""


# Said by the browser itself, so that it cannot come after the server's word that the run has ended.
STOPPING = f"() => {json.dumps(look.progress('Stopping', None))}"


def connect(app: App, widgets: Widgets, handlers: Handlers) -> None:
    """Wire one app."""
    w = widgets
    image: list[Component] = [w.image] if w.canvas is None else [w.image, w.canvas.size]
    preprocessor = w.settings["preprocessor"]
    begin = beginning(app, w)
    starts = [begin(partial(gr.on, [w.run.click, w.prompt.submit]))]
    mended = quietly(w.results.mend.click, _mend, None, [preprocessor])
    starts.append(begin(mended.then))
    outputs = [*image, w.prompt, w.randomize, *w.settings.values(), w.results.status, w.results.restore]
    placed = [upload(w, _restore_with(app, handlers), outputs)]
    if w.results.examples is not None:
        outputs = [*image, w.prompt, preprocessor]
        placed.append(quietly(w.results.examples.click, _fill_from(app), [w.results.examples], outputs))
    sent = [w.image, w.prompt, *w.settings.values()]
    at_once = handlers.model.at_once
    running = run_after(starts, handlers.run, [w.randomize, *sent], w, at_once)
    if w.results.examples is not None:
        shown = [w.results.examples, w.randomize, *sent]
        running += run_after([begin(placed[-1].then)], handlers.run_example, shown, w, at_once)
    cancel(running, w)
    offer_advice(w)
    if w.mask is not None:
        marked = partial(w.mask.upload.upload, preprocess=False)
        placed.append(quietly(marked, _add_mask(w.mask), [w.image, w.mask.upload], [w.image]))
    if w.canvas is None:
        changes = [w.image.change] if w.mask is None else [w.image.upload, w.image.clear]
        announce(changes, handlers.size, [w.image], w)
        for event in placed if w.mask is not None else ():
            say = partial(event.then, preprocess=False)
            quietly(say, handlers.size, [w.settings["resolution"], w.image], [w.size])
        return
    opens = partial(gr.on, [w.canvas.open.click, w.canvas.editor.clear])
    placed.append(quietly(opens, _open_canvas, [w.canvas.width, w.canvas.height], [*image, preprocessor]))
    announce([], handlers.canvas_size, [w.canvas.size], w)
    for event in placed:  # a state's own change is not told where an event goes past the queue
        resolution = w.settings["resolution"]
        quietly(event.then, handlers.canvas_size, [resolution, w.canvas.size], [w.size])


def beginning(page: Page, w: Common) -> Callable[[Callable[..., Any]], Any]:
    """Return what makes an event begin a run: the page says that it waits, and shows the results."""
    show = SHOW_RESULTS.replace("ID", f"{page.name}-status")
    buttons = [w.run, w.cancel, w.results.status, w.results.mend]
    return lambda listen: quietly(partial(listen, js=show), _busy, None, buttons)


def upload(w: Common, put_back: Callable[..., Any], outputs: list[Any]) -> Any:
    """Restore settings from a picture that is dropped."""
    restore_from = w.results.restore
    return restore_from.upload(put_back, [restore_from], outputs, **HIDDEN, api_visibility="private")


def announce(changes: list[Any], say: Callable[..., str], sources: list[Component], w: Common) -> None:
    """Say how large the pictures will be, whenever an image or the resolution changes."""
    resolution = w.settings["resolution"]
    gr.on(
        [*changes, resolution.change],
        say,
        [resolution, *sources],
        [w.size],
        preprocess=False,
        queue=False,
        **HIDDEN,
        trigger_mode="always_last",
        api_visibility="private",
    )


def share_inputs(tabs: Sequence[gr.Tab], shared: Sequence[Component | None]) -> None:
    """Carry a value along when another tab is opened; the browser does it alone.

    ``shared`` are the components, one a tab, that hold the same thing; None where a tab has none.
    """
    there = [component for component in shared if component is not None]
    current = gr.Number(0, visible=False)
    for tab, component in zip(tabs, shared, strict=True):
        if component is None:
            continue
        take = f"(...all) => [all[all[all.length - 1]], {there.index(component)}]"
        tab.select(
            None,
            [*there, current],
            [component, current],
            js=take,
            **HIDDEN,
            api_visibility="private",
        )


def run_after(
    starts: Sequence[Any], run: Callable[..., Any], inputs: list[Component], w: Common, at_once: int
) -> list[Any]:
    """Run after each of the events that began one, so many runs at the same time; return what then runs."""
    results, running = w.results, []
    for start in starts:
        event = start.then(
            run,
            inputs,
            [results.gallery, results.status, w.settings["seed"], results.mend],
            preprocess=False,
            **HIDDEN,
            concurrency_id=QUEUE,
            concurrency_limit=at_once,
            api_visibility="private",
        )
        # Not "then": Gradio calls that after a success and after a cancel, but not after an error. Cancelling
        # counts as a failure, and Gradio tells it only when the generator is closed and so the pipeline is
        # free.
        for over in (event.success, event.failure):
            quietly(over, _ended, [results.status], [w.run, w.cancel, results.status])
        running.append(event)
    return running


def offer_advice(w: Common) -> None:
    """Offer what is advised for guess mode while it is on."""
    guess = w.settings[GUESS_MODE]
    quietly(guess.change, lambda on: gr.update(visible=bool(on)), [guess], [w.advise])
    advised = [w.settings[name] for name in ADVISED_FOR_GUESSING]
    quietly(w.advise.click, lambda: list(ADVISED_FOR_GUESSING.values()), None, advised)


def cancel(running: list[Any], w: Common) -> None:
    """Stop what runs on Cancel."""
    status = w.results.status
    w.cancel.click(None, None, [status], js=STOPPING, cancels=running, **HIDDEN, api_visibility="private")


def quietly(
    listen: Callable[..., Any],
    fn: Callable[..., Any],
    inputs: list[Component] | None,
    outputs: list[Component],
) -> Any:
    """Listen for an event whose handler is quick: outside the queue, without a spinner, not in the API."""
    return listen(fn, inputs, outputs, queue=False, **HIDDEN, api_visibility="private")


def _busy() -> tuple[Any, Any, str, Any]:
    hidden, shown = gr.update(visible=False), gr.update(visible=True)
    return hidden, shown, look.progress("Waiting for its turn", None), hidden


def _open_canvas(width: Any, height: Any) -> tuple[Any, ...]:
    with told():
        paper = new_paper(width, height)
        return paper, paper.shape[:2], DETECT


def _add_mask(mask: MaskEditor) -> Callable[[Any, Any], str | None]:
    def add(payload: Any, given: Any) -> str | None:
        with told():
            return mask.add(payload, file_path(given))

    return add


def _mend() -> str:
    return INVERTED_MAP


def _ended(status: str) -> tuple[Any, Any, Any]:
    """Bring the Run button back; the run has had its say, unless it was cancelled or never began."""
    last_word = gr.skip() if look.BAR not in status else look.summary("Stopped", look.KEPT)
    return gr.update(visible=True), gr.update(visible=False), last_word


def _fill_from(app: App) -> Callable[[int], tuple[Any, ...]]:
    examples = app.present_examples

    def fill(index: int) -> tuple[Any, ...]:
        example = examples[index]
        return *_put(app, example.path), example.prompt, example.preprocessor

    return fill


def _put(app: App, path: Path | None) -> tuple[Any, ...]:
    """Return what brings a picture into the place for the image; None leaves there what is there."""
    if path is None:
        return (gr.skip(), gr.skip()) if app.editor == CANVAS else (gr.skip(),)
    if app.editor != CANVAS:
        return (str(path),)
    with open_image(path) as image:
        return str(path), upright_size(image)


def _restore_with(app: App, handlers: Handlers) -> Callable[[str | None], tuple[Any, ...]]:
    declared = handlers.form.run

    def put_back(path: str | None) -> tuple[Any, ...]:
        keep = [*_put(app, None), *[gr.skip()] * (len(declared) + 2)]
        try:
            with told():
                found = restore(existing(path), declared)
                hint = found.hint
                if hint is not None and found.mask is not None and app.editor == MASK:
                    hint = with_holes(hint, found.mask)
                image = _put(app, None if hint is None else save_hint(hint, app, handlers))
        except gr.Error as error:
            gr.Warning(error.message, title="Nothing was restored")
            return *keep, look.notice(error.message), None
        values = [found.values.get(setting.name, gr.skip()) for setting in declared]
        prompt = gr.skip() if found.prompt is None else found.prompt
        randomize = False if "seed" in found.values else gr.skip()
        last = look.summary("Settings restored", told_of(found, hint is not None))
        return *image, prompt, randomize, *values, last, None

    return put_back


def existing(path: str | None) -> str:
    """Return the path of a dropped file.

    Raises:
        ValueError: there is none.
    """
    if path is None:
        raise ValueError("There is no picture: drop a PNG that was made here.")
    return path


def save_hint(hint: NDArray[np.uint8], page: Page, handlers: Handlers) -> Path:
    """Save a map that a picture carried, to stand in for the photo."""
    return PictureFolder(handlers.cache).save_plain(hint, f"{page.name}-map.png")


def told_of(found: Restored, with_map: bool) -> str:
    """Say what came back, and what did not."""
    parts = [f"Seed {found.values['seed']}"] if "seed" in found.values else []
    if with_map:
        parts.append("the map from the picture stands in for the photo")
    return " · ".join([*parts, *found.notes])
