"""The endpoints that programs call: one per app, with named parameters and the page's defaults."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

import gradio as gr
from gradio.components.api_component import Api

from annotators.base import Checkbox, Slider
from apps.page.annotate import Bench
from apps.page.bench import declared_of
from apps.page.events import QUEUE
from apps.page.handlers import Handlers, file_path, told
from apps.page.settings import PROMPT, Choice, Setting

DRAW = """Draw pictures that follow the structure of yours: {title}.

Returns the files of all pictures, the detected map first, and the seed that was used. Every PNG carries
its settings. Give image with gradio_client's handle_file; everything else has the page's default. A seed of
-1 takes a random one."""
ANNOTATE = """Make the map of a picture with one detector.

Returns the map as a PNG, as the ControlNet takes it, and what else was found, such as the key points of
poses. Leave out the controls of other detectors. resolution is the short side, in pixels; 0 takes what suits
the detector."""

EXAMPLE = gr.FileData(path="photo.png", url="photo.png").model_dump()


def add_endpoint(handlers: Handlers) -> None:
    """Add the app's endpoint, named like the app, to the current Blocks."""
    inputs = [
        _picture(),
        *(Api(s.default, _schema(s), _label(s)) for s in (PROMPT, *handlers.declared)),
    ]
    files = Api(None, gr.File(file_count="multiple", render=False).api_info(), "Map and pictures")
    seed = Api(None, {"type": "integer"}, "Seed")
    _add(_endpoint(handlers), inputs, [files, seed], DRAW.format(title=handlers.app.title))


def add_annotate_endpoint(handlers: Bench) -> None:
    """Add the endpoint that makes one map to the current Blocks."""
    names = [card.annotator for card in handlers.bench.cards]
    inputs = [
        _picture(),
        Api(names[0], _one_of(names), "Detector"),
        *(Api(s.default, _schema(s), _label(s)) for s in _all_controls(handlers).values()),
    ]
    file = Api(None, gr.File(render=False).api_info(), "Map")
    _add(_annotate_endpoint(handlers), inputs, [file, Api(None, {"type": "object"}, "Facts")], ANNOTATE)


def _add(fn: Callable[..., Any], inputs: list[Any], outputs: list[Any], description: str) -> None:
    gr.Button(visible=False).click(
        fn,
        inputs,
        outputs,
        api_name=fn.__name__,
        api_description=description,
        preprocess=False,
        postprocess=False,
        show_progress="hidden",
        concurrency_id=QUEUE,
        concurrency_limit=1,
    )


def _picture() -> Any:
    picture: Any = Api(None, gr.Image(render=False).api_info(), "Image")
    # Gradio's page about the endpoint then shows the call with handle_file. No subclass: Gradio writes a
    # stub file beside the module of every subclass.
    picture.example_payload = lambda: EXAMPLE
    return picture


def _endpoint(handlers: Handlers) -> Callable[..., Iterator[tuple[list[dict[str, Any]], int | None]]]:
    names = ["image", PROMPT.name, *(setting.name for setting in handlers.declared)]

    def endpoint(*values: Any) -> Iterator[tuple[list[dict[str, Any]], int | None]]:
        image, prompt, *rest = values
        named = dict(zip(names[2:], rest, strict=True))
        with told(), closing(handlers.frames(file_path(image), prompt, named)) as frames:
            for frame in frames:
                files = [gr.FileData(path=str(path)).model_dump() for path in frame.files]
                yield files, frame.result.request.seed if frame.result else None

    return _named(endpoint, handlers.app.name, names)


def _annotate_endpoint(handlers: Bench) -> Callable[..., tuple[dict[str, Any], Mapping[str, Any] | None]]:
    cards = {card.annotator: card for card in handlers.bench.cards}
    controls = _all_controls(handlers)
    names = ["image", "detector", *controls]

    def endpoint(*values: Any) -> tuple[dict[str, Any], Mapping[str, Any] | None]:
        image, detector, *rest = values
        with told():
            if detector not in cards:
                raise ValueError(f"detector is {detector!r:.80}: give one of {', '.join(cards)}.")
            own = {s.name: s.default for s in declared_of(cards[detector])}
            # Gradio has no parameter without a value that may be left out: what is at its default counts so.
            given = {s.name: v for s, v in zip(controls.values(), rest, strict=True) if v != s.default}
            for name in given.keys() - own.keys():
                raise ValueError(f"{detector} has no control {name}: it has {', '.join(own)}.")
            shown, _, facts = handlers.make(cards[detector], file_path(image), own | given)
        return gr.FileData(path=str(shown)).model_dump(), facts

    return _named(endpoint, "annotate", names)


def _all_controls(handlers: Bench) -> dict[str, Slider | Checkbox]:
    """Return the controls of all detectors by name; detectors that share a name mean the same by it."""
    found = {s.name: s for card in reversed(handlers.bench.cards) for s in declared_of(card)}
    own = Slider("resolution", "Resolution", 0, 1024, 0, info="Short side, in pixels; 0 suits the detector.")
    return {own.name: own, **{name: s for name, s in found.items() if name != own.name}}


def _named(fn: Callable[..., Any], name: str, parameters: Sequence[str]) -> Callable[..., Any]:
    """Give a handler the names of its parameters: Gradio reads them off the signature."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    fn.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(parameter, kind) for parameter in parameters]
    )
    fn.__name__ = name
    return fn


def _schema(setting: Setting) -> dict[str, Any]:
    if isinstance(setting, Checkbox):
        return {"type": "boolean"}
    if isinstance(setting, Choice):
        return _one_of([word for word, _ in setting.choices])
    if isinstance(setting, Slider):
        limits = f"from {setting.minimum:.10g} to {setting.maximum:.10g}"
        return {"type": "integer" if setting.whole else "number", "additional_description": limits}
    return {"type": "string"}


def _one_of(words: Sequence[str]) -> dict[str, Any]:
    return {"type": "string", "enum": list(words)}


def _label(setting: Setting) -> str:
    return f"{setting.label}: {setting.info}" if setting.info else setting.label
