"""The endpoint that programs call: one per app, with named parameters and the page's defaults."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import gradio as gr
from gradio.components.api_component import Api

from annotators.base import Checkbox, Slider
from apps.page.events import QUEUE
from apps.page.handlers import Handlers, file_path, told
from apps.page.settings import PROMPT, Choice, Setting

DESCRIPTION = """Draw pictures that follow the structure of yours: {title}.

Returns the files of all pictures, the detected map first, and the seed that was used. Every PNG carries
its settings. Give image with gradio_client's handle_file; everything else has the page's default. A seed of
-1 takes a random one."""

EXAMPLE = gr.FileData(path="photo.png", url="photo.png").model_dump()


def add_endpoint(handlers: Handlers) -> None:
    """Add the app's endpoint, named like the app, to the current Blocks."""
    picture: Any = Api(None, gr.Image(render=False).api_info(), "Image")
    # Gradio's page about the endpoint then shows the call with handle_file. No subclass: Gradio writes a
    # stub file beside the module of every subclass.
    picture.example_payload = lambda: EXAMPLE
    inputs = [picture, *(Api(s.default, _schema(s), _label(s)) for s in (PROMPT, *handlers.declared))]
    files = Api(None, gr.File(file_count="multiple", render=False).api_info(), "Map and pictures")
    seed = Api(None, {"type": "integer"}, "Seed")
    gr.Button(visible=False).click(
        _endpoint(handlers),
        inputs,
        [files, seed],
        api_name=handlers.app.name,
        api_description=DESCRIPTION.format(title=handlers.app.title),
        preprocess=False,
        postprocess=False,
        show_progress="hidden",
        concurrency_id=QUEUE,
        concurrency_limit=1,
    )


def _endpoint(handlers: Handlers) -> Callable[..., Iterator[tuple[list[dict[str, Any]], int | None]]]:
    """Return the handler, with the settings as its parameters' names: Gradio reads them off the signature."""
    names = ["image", PROMPT.name, *(setting.name for setting in handlers.declared)]

    def endpoint(*values: Any) -> Iterator[tuple[list[dict[str, Any]], int | None]]:
        image, prompt, *rest = values
        named = dict(zip(names[2:], rest, strict=True))
        with told(), closing(handlers.frames(file_path(image), prompt, named)) as frames:
            for frame in frames:
                files = [gr.FileData(path=str(path)).model_dump() for path in frame.files]
                yield files, frame.result.request.seed if frame.result else None

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind) for name in names]
    endpoint.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    endpoint.__name__ = handlers.app.name
    return endpoint


def _schema(setting: Setting) -> dict[str, Any]:
    if isinstance(setting, Checkbox):
        return {"type": "boolean"}
    if isinstance(setting, Choice):
        return {"type": "string", "enum": [word for word, _ in setting.choices]}
    if isinstance(setting, Slider):
        limits = f"from {setting.minimum:.10g} to {setting.maximum:.10g}"
        return {"type": "integer" if setting.whole else "number", "additional_description": limits}
    return {"type": "string"}


def _label(setting: Setting) -> str:
    return f"{setting.label}: {setting.info}" if setting.info else setting.label
