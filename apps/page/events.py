"""Which component starts what: the wiring of one app, and the values that tabs share."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from apps.editors.canvas import new_paper
from apps.page import look
from apps.page.files import PictureFolder
from apps.page.handlers import Handlers, told
from apps.page.layout import Widgets
from apps.page.restore import Restored, restore
from apps.page.settings import DETECT, INVERTED_MAP
from apps.spec import App
from core.images import open_image, upright_size

QUEUE = "gpu"  # all apps share it, since all share one model
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
    buttons = [w.run, w.cancel, w.status, w.mend]
    show = SHOW_RESULTS.replace("ID", f"{app.name}-status")
    starts = [quietly(partial(gr.on, [w.run.click, w.prompt.submit], js=show), _busy, None, buttons)]
    mended = quietly(w.mend.click, _mend, None, [preprocessor])
    starts.append(quietly(partial(mended.then, js=show), _busy, None, buttons))
    outputs = [*image, w.prompt, w.randomize, *w.settings.values(), w.status, w.restore]
    placed = [
        w.restore.upload(
            _restore_with(handlers), [w.restore], outputs, show_progress="hidden", api_visibility="private"
        )
    ]
    if w.examples is not None:
        outputs = [*image, w.prompt, preprocessor]
        placed.append(quietly(w.examples.click, _fill_from(app), [w.examples], outputs))
    running = [_run_after(start, handlers.run, w.image, w) for start in starts]
    if w.examples is not None:
        start = quietly(partial(placed[-1].then, js=show), _busy, None, buttons)
        running.append(_run_after(start, handlers.run_example, w.examples, w))
    w.cancel.click(
        None, None, [w.status], js=STOPPING, cancels=running, show_progress="hidden", api_visibility="private"
    )
    if w.canvas is None:
        _announce([w.image.change], handlers.size, w.image, w)
        return
    opens = partial(gr.on, [w.canvas.open.click, w.canvas.editor.clear])
    placed.append(quietly(opens, _open_canvas, [w.canvas.width, w.canvas.height], [*image, preprocessor]))
    _announce([], handlers.canvas_size, w.canvas.size, w)
    for event in placed:  # a state's own change is not told where an event goes past the queue
        resolution = w.settings["resolution"]
        quietly(event.then, handlers.canvas_size, [w.canvas.size, resolution], [w.size])


def _announce(changes: list[Any], say: Callable[..., str], source: Component, w: Widgets) -> None:
    """Say how large the pictures will be, whenever the image or the resolution changes."""
    resolution = w.settings["resolution"]
    gr.on(
        [*changes, resolution.change],
        say,
        [source, resolution],
        [w.size],
        preprocess=False,
        queue=False,
        show_progress="hidden",
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
            show_progress="hidden",
            api_visibility="private",
        )


def _run_after(event: Any, run: Callable[..., Any], source: Component, w: Widgets) -> Any:
    running = event.then(
        run,
        [source, w.prompt, w.randomize, *w.settings.values()],
        [w.gallery, w.status, w.settings["seed"], w.mend],
        preprocess=False,
        show_progress="hidden",
        concurrency_id=QUEUE,
        concurrency_limit=1,
        api_visibility="private",
    )
    # Not "then": Gradio calls that after a success and after a cancel, but not after an error. Cancelling
    # counts as a failure, and Gradio tells it only when the generator is closed and so the pipeline is free.
    for over in (running.success, running.failure):
        quietly(over, _ended, [w.status], [w.run, w.cancel, w.status])
    return running


def quietly(
    listen: Callable[..., Any],
    fn: Callable[..., Any],
    inputs: list[Component] | None,
    outputs: list[Component],
) -> Any:
    """Listen for an event whose handler is quick: outside the queue, without a spinner, not in the API."""
    return listen(fn, inputs, outputs, queue=False, show_progress="hidden", api_visibility="private")


def _busy() -> tuple[Any, Any, str, Any]:
    hidden, shown = gr.update(visible=False), gr.update(visible=True)
    return hidden, shown, look.progress("Waiting for its turn", None), hidden


def _open_canvas(width: Any, height: Any) -> tuple[Any, ...]:
    with told():
        paper = new_paper(width, height)
        return paper, paper.shape[:2], DETECT


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
        return (gr.skip(),) if not app.editor else (gr.skip(), gr.skip())
    if not app.editor:
        return (str(path),)
    with open_image(path) as image:
        return str(path), upright_size(image)


def _restore_with(handlers: Handlers) -> Callable[[str | None], tuple[Any, ...]]:
    def put_back(path: str | None) -> tuple[Any, ...]:
        keep = [*_put(handlers.app, None), *[gr.skip()] * (len(handlers.declared) + 2)]
        try:
            with told():
                if path is None:
                    raise ValueError("There is no picture: drop a PNG that was made here.")
                found = restore(path, handlers.declared)
                image = _put(handlers.app, _save_hint(found, handlers))
        except gr.Error as error:
            gr.Warning(error.message, title="Nothing was restored")
            return *keep, look.notice(error.message), None
        values = [found.values.get(setting.name, gr.skip()) for setting in handlers.declared]
        prompt = gr.skip() if found.prompt is None else found.prompt
        randomize = False if "seed" in found.values else gr.skip()
        return *image, prompt, randomize, *values, look.summary("Settings restored", _told_of(found)), None

    return put_back


def _save_hint(found: Restored, handlers: Handlers) -> Path | None:
    if found.hint is None:
        return None
    return PictureFolder(handlers.cache).save_plain(found.hint, f"{handlers.app.name}-map.png")


def _told_of(found: Restored) -> str:
    parts = [f"Seed {found.values['seed']}"] if "seed" in found.values else []
    if found.hint is not None:
        parts.append("the map from the picture stands in for the photo")
    return " · ".join([*parts, *found.notes])
