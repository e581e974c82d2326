"""Which component starts what: the wiring of one app, and the values that tabs share."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gradio as gr
from gradio.components import Component

from apps.page import look
from apps.page.files import PictureFolder
from apps.page.handlers import Handlers, told
from apps.page.layout import Widgets
from apps.page.restore import Restored, restore
from apps.page.settings import INVERTED_MAP
from apps.spec import App

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
    buttons = [w.run, w.cancel, w.status, w.mend]
    show = SHOW_RESULTS.replace("ID", f"{app.name}-status")
    start = _quietly(partial(gr.on, [w.run.click, w.prompt.submit], js=show), _busy, None, buttons)
    running = [_run_after(start, w, handlers)]
    preprocessor = w.settings["preprocessor"]
    first = [_quietly(w.mend.click, _mend, None, [preprocessor])]
    if w.examples is not None:
        outputs = [w.image, w.prompt, preprocessor]
        first.append(_quietly(w.examples.click, _fill_from(app), [w.examples], outputs))
    for done in first:
        running.append(_run_after(_quietly(partial(done.then, js=show), _busy, None, buttons), w, handlers))
    w.cancel.click(
        None, None, [w.status], js=STOPPING, cancels=running, show_progress="hidden", api_visibility="private"
    )
    resolution = w.settings["resolution"]
    gr.on(
        [w.image.change, resolution.change],
        handlers.size,
        [w.image, resolution],
        [w.size],
        preprocess=False,
        queue=False,
        show_progress="hidden",
        trigger_mode="always_last",
        api_visibility="private",
    )
    outputs = [w.image, w.prompt, w.randomize, *w.settings.values(), w.status, w.restore]
    w.restore.upload(
        _restore_with(handlers), [w.restore], outputs, show_progress="hidden", api_visibility="private"
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


def _run_after(event: Any, w: Widgets, handlers: Handlers) -> Any:
    running = event.then(
        handlers.run,
        [w.image, w.prompt, w.randomize, *w.settings.values()],
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
        _quietly(over, _ended, [w.status], [w.run, w.cancel, w.status])
    return running


def _quietly(
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


def _mend() -> str:
    return INVERTED_MAP


def _ended(status: str) -> tuple[Any, Any, Any]:
    """Bring the Run button back; the run has had its say, unless it was cancelled or never began."""
    last_word = gr.skip() if look.BAR not in status else look.summary("Stopped", look.KEPT)
    return gr.update(visible=True), gr.update(visible=False), last_word


def _fill_from(app: App) -> Callable[[int], tuple[str, str, str]]:
    examples = app.present_examples

    def fill(index: int) -> tuple[str, str, str]:
        example = examples[index]
        return str(example.path), example.prompt, example.preprocessor

    return fill


def _restore_with(handlers: Handlers) -> Callable[[str | None], tuple[Any, ...]]:
    def put_back(path: str | None) -> tuple[Any, ...]:
        keep = [gr.skip()] * (len(handlers.declared) + 3)
        try:
            with told():
                if path is None:
                    raise ValueError("There is no picture: drop a PNG that was made here.")
                found = restore(path, handlers.declared)
                image = _save_hint(found, handlers)
        except gr.Error as error:
            gr.Warning(error.message, title="Nothing was restored")
            return *keep, look.notice(error.message), None
        values = [found.values.get(setting.name, gr.skip()) for setting in handlers.declared]
        prompt = gr.skip() if found.prompt is None else found.prompt
        randomize = False if "seed" in found.values else gr.skip()
        return image, prompt, randomize, *values, look.summary("Settings restored", _told_of(found)), None

    return put_back


def _save_hint(found: Restored, handlers: Handlers) -> Any:
    if found.hint is None:
        return gr.skip()
    folder = PictureFolder(handlers.cache)
    return str(folder.save_plain(found.hint, f"{handlers.app.name}-map.png"))


def _told_of(found: Restored) -> str:
    parts = [f"Seed {found.values['seed']}"] if "seed" in found.values else []
    if found.hint is not None:
        parts.append("the map from the picture stands in for the photo")
    return " · ".join([*parts, *found.notes])
