"""The one page builder: any number of apps, one model, one queue."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # Gradio reads it when it is imported

import gradio as gr  # noqa: E402

from apps import find_apps  # noqa: E402
from apps.page import look  # noqa: E402
from apps.page.annotate import Bench  # noqa: E402
from apps.page.annotate import connect as connect_bench  # noqa: E402
from apps.page.api import add_annotate_endpoint, add_endpoint  # noqa: E402
from apps.page.bench import BenchWidgets  # noqa: E402
from apps.page.bench import lay_out as lay_out_bench  # noqa: E402
from apps.page.events import HIDDEN, connect, share_inputs  # noqa: E402
from apps.page.forms import AppForm, JointForm, file_path  # noqa: E402
from apps.page.handlers import Handlers  # noqa: E402
from apps.page.joint import connect as connect_joint  # noqa: E402
from apps.page.layout import Common, Widgets, lay_out  # noqa: E402
from apps.page.model import Model, Pipeline  # noqa: E402
from apps.page.notices import about  # noqa: E402
from apps.page.settings import declare_app  # noqa: E402
from apps.page.units import JointWidgets  # noqa: E402
from apps.page.units import lay_out as lay_out_joint  # noqa: E402
from apps.spec import EXAMPLES_DIR, App, Joint, Page, Workbench  # noqa: E402

TITLE = "ControlNet"
MAX_UPLOAD = "20mb"
MAX_WAITING = 20  # visitors in the queue; more are told to come back
ON_LOAD: dict[str, Any] = {**HIDDEN, "concurrency_limit": None, "api_visibility": "private"}
CLEAN_EVERY_SECONDS, KEEP_SECONDS = 3600, 24 * 3600
# Gradio's queue looks for work every millisecond, and for progress every ten, whether there is any or not: a
# tenth of a processor, and each time a thread that draws has to stand aside.
LOOK_SECONDS, PROGRESS_SECONDS = 0.02, 0.1


def build(pages: Sequence[Page], model: Model | Pipeline | None) -> gr.Blocks:
    """Return the page: one app, or several as tabs, all drawing with ``model``.

    ``model`` is a pipeline, or a Model that loads one when the page is up; None will do where nothing draws.
    """
    shared = model if isinstance(model, Model) or model is None else Model.ready(model)
    with gr.Blocks(
        title=TITLE, analytics_enabled=False, delete_cache=(CLEAN_EVERY_SECONDS, KEEP_SECONDS)
    ) as blocks:
        head = gr.HTML(
            look.header(shared), js_on_load=look.THEME_SWITCH, elem_classes="plain", elem_id="head"
        )
        if len(pages) == 1:
            added = {pages[0]: _add(pages[0], shared, blocks)}
        else:
            tabs, added = [], {}
            with gr.Tabs(elem_classes="apps"):
                for page in pages:
                    with gr.Tab(page.tab, id=page.name) as tab:
                        added[page] = _add(page, shared, blocks)
                    tabs.append(tab)
            share_inputs(tabs, [w.image if isinstance(w.image, gr.Image) else None for w in added.values()])
            share_inputs(tabs, [w.prompt if isinstance(w, Common) else None for w in added.values()])
        if shared is not None:
            notices = [pair for page, w in added.items() for pair in _notices(page, w)]
            follow = _follow_loading([app for app, _ in notices], shared)
            blocks.load(follow, None, [head, *(notice for _, notice in notices)], **ON_LOAD)
    blocks.queue(max_size=MAX_WAITING, default_concurrency_limit=1, api_open=False)
    blocks._queue.sleep_when_free = LOOK_SECONDS
    blocks._queue.progress_update_sleep_when_free = PROGRESS_SECONDS
    return blocks


def _add(page: Page, model: Model | None, blocks: gr.Blocks) -> Widgets | JointWidgets | BenchWidgets:
    if isinstance(page, Workbench):
        return _add_bench(page, blocks, 1 if model is None else model.at_once)
    if model is None:
        raise ValueError(f"The app {page.name} draws: give it a model.")
    if isinstance(page, Joint):
        return _add_joint(page, model)
    assert isinstance(page, App)
    return _add_app(page, model)


def _add_app(app: App, model: Model) -> Widgets:
    widgets = lay_out(app, declare_app(app, model.resolution, model.cfg_scale))
    editor = widgets.canvas or widgets.mask
    read = editor.read if editor else file_path
    form = AppForm(app, model.resolution, model.cfg_scale, read)
    handlers = Handlers(form, model, Path(widgets.results.gallery.GRADIO_CACHE))
    connect(app, widgets, handlers)
    add_endpoint(handlers)
    return widgets


def _add_joint(joint: Joint, model: Model) -> JointWidgets:
    form = JointForm(joint, model.resolution, model.cfg_scale)
    widgets = lay_out_joint(form)
    handlers = Handlers(form, model, Path(widgets.results.gallery.GRADIO_CACHE))
    connect_joint(widgets, handlers, form)
    add_endpoint(handlers)
    return widgets


def _notices(page: Page, widgets: Any) -> list[tuple[App, gr.HTML]]:
    """Return each place for notes with the app that they are about: a unit's is what it starts with."""
    if isinstance(page, Joint):
        return list(zip(find_apps(page.first), (unit.note for unit in widgets.units), strict=True))
    return [(page, widgets.notice)] if isinstance(page, App) else []


def _add_bench(bench: Workbench, blocks: gr.Blocks, at_once: int) -> BenchWidgets:
    widgets = lay_out_bench(bench)
    handlers = Bench(bench, widgets)
    connect_bench(handlers, at_once)
    add_annotate_endpoint(handlers, at_once)
    places = [component for card in widgets.cards for component in (card.note, card.map)]
    blocks.load(handlers.check, None, places, **ON_LOAD)
    return widgets


def _follow_loading(apps: Sequence[App], model: Model) -> Any:
    """Return a handler that keeps the head and the notes about missing weights true until loading is over."""

    async def follow() -> AsyncIterator[list[Any]]:
        model.start()
        if not model.finished:
            yield [look.header(model), *(gr.skip() for _ in apps)]
        while not model.finished:
            await asyncio.sleep(0.2)
        notes = [about(app, model) for app in apps]
        yield [look.header(model), *(gr.update(value=note, visible=bool(note)) for note in notes)]

    return follow


def serve(
    page: gr.Blocks,
    *,
    host: str | None = None,
    port: int | None = None,
    share: bool = False,
    auth: tuple[str, str] | None = None,
    quiet: bool = False,
) -> str:
    """Start to serve the page and return its address; the caller keeps the process alive."""
    _, local, _ = page.launch(
        server_name=host,
        server_port=port,
        share=share,
        auth=auth,
        quiet=quiet,
        prevent_thread_lock=True,
        max_file_size=MAX_UPLOAD,
        allowed_paths=[str(EXAMPLES_DIR)],
        enable_monitoring=False,
        run_history=False,
        ssr_mode=False,
        footer_links=["api"],
        favicon_path=look.FAVICON,
        theme=look.theme(),
        css_paths=[look.CSS_FILE],
        head=look.HEAD,
    )
    return str(local)
