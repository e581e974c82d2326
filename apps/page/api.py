"""The endpoints that programs call: one per app, with named parameters and the page's defaults."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components.api_component import Api

from annotators.base import Checkbox, Slider
from apps.page.annotate import Bench
from apps.page.bench import declared_of
from apps.page.events import HIDDEN, QUEUE
from apps.page.forms import AppForm, Field, Optional, Picture, file_path
from apps.page.handlers import Handlers, told
from apps.page.settings import Choice, Setting

DRAW = """Draw pictures that follow the structure of yours: {title}.

Returns the files of all pictures, the detected map first, and the seed that was used. Every PNG carries
its settings. Give image with gradio_client's handle_file; everything else has the page's default. A seed of
-1 takes a random one. While it draws, the map comes once, and then an empty list now and then."""
DRAW_JOINT = """Draw pictures that follow several controls at once.

Each unit, numbered from 1, has an image, a detector, and how much and when it counts; a unit without an
image does not count. Leave out the controls of other detectors. The first image decides the size, and others
are cut to its proportions. Returns the files of all pictures, the maps first in the order of the units, and
the seed that was used. Every PNG carries all settings. Give images with gradio_client's handle_file. A seed
of -1 takes a random one. While it draws, the maps come once, and then an empty list now and then."""
ANNOTATE = """Make the map of a picture with one detector.

Returns the map as a PNG, as the ControlNet takes it, and what else was found, such as the key points of
poses. Leave out the controls of other detectors. resolution is the short side, in pixels; 0 takes what suits
the detector."""

# Every file that is told of, also one told of before, gradio_client fetches at once, over a new connection,
# which may cost as much as a step of drawing. So meanwhile only an empty sign is sent, where a call can end.
SIGN_SECONDS = 1.0

EXAMPLE = gr.FileData(path="photo.png", url="photo.png").model_dump()


def add_endpoint(handlers: Handlers) -> None:
    """Add the page's endpoint, named like the page, to the current Blocks."""
    form = handlers.form
    files = Api(None, gr.File(file_count="multiple", render=False).api_info(), "Map and pictures")
    seed = Api(None, {"type": "integer"}, "Seed")
    told_of = DRAW.format(title=form.page.title) if isinstance(form, AppForm) else DRAW_JOINT
    inputs = [_input(field) for field in form.fields]
    _add(_endpoint(handlers), inputs, [files, seed], told_of, handlers.model.at_once)


def _input(field: Field) -> Any:
    if isinstance(field, Picture):
        return _picture(field.label)
    if isinstance(field, Optional):
        return Api(None, _schema(field.setting), _label(field.setting))
    return Api(field.default, _schema(field), _label(field))


def add_annotate_endpoint(handlers: Bench, at_once: int) -> None:
    """Add the endpoint that makes one map to the current Blocks."""
    names = [card.annotator for card in handlers.bench.cards]
    inputs = [
        _picture(),
        Api(names[0], _one_of(names), "Detector"),
        *(Api(s.default, _schema(s), _label(s)) for s in _all_controls(handlers).values()),
    ]
    file = Api(None, gr.File(render=False).api_info(), "Map")
    _add(
        _annotate_endpoint(handlers),
        inputs,
        [file, Api(None, {"type": "object"}, "Facts")],
        ANNOTATE,
        at_once,
    )


def _add(
    fn: Callable[..., Any], inputs: list[Any], outputs: list[Any], description: str, at_once: int
) -> None:
    gr.Button(visible=False).click(
        fn,
        inputs,
        outputs,
        api_name=fn.__name__,
        api_description=description,
        preprocess=False,
        postprocess=False,
        **HIDDEN,
        concurrency_id=QUEUE,
        concurrency_limit=at_once,
    )


def _picture(label: str = "Image") -> Any:
    picture: Any = Api(None, gr.Image(render=False).api_info(), label)
    # Gradio's page about the endpoint then shows the call with handle_file. No subclass: Gradio writes a
    # stub file beside the module of every subclass.
    picture.example_payload = lambda: EXAMPLE
    return picture


def _endpoint(handlers: Handlers) -> Callable[..., Iterator[tuple[list[dict[str, Any]], int | None]]]:
    fields = handlers.form.fields

    def endpoint(*values: Any) -> Iterator[tuple[list[dict[str, Any]], int | None]]:
        named = dict(zip((field.name for field in fields), values, strict=True))
        sent: tuple[Path, ...] = ()
        with told(), closing(handlers.frames(named, every=SIGN_SECONDS, previews=False)) as frames:
            for frame in frames:
                new = frame.files != sent
                sent = frame.files
                files = [gr.FileData(path=str(path)).model_dump() for path in frame.files] if new else []
                yield files, frame.result.request.seed if frame.result else None

    optional = [f.name for f in fields if isinstance(f, Optional) or (isinstance(f, Picture) and f.optional)]
    return _named(endpoint, handlers.form.page.name, [field.name for field in fields], optional)


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


def _named(
    fn: Callable[..., Any], name: str, parameters: Sequence[str], optional: Sequence[str] = ()
) -> Callable[..., Any]:
    """Give a handler the names of its parameters: Gradio reads them off the signature.

    The ``optional`` ones may be left out, and are then None. So in the signature are those after them, as
    Python wants it; Gradio prefers what it knows as their value.
    """
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    needed = min((parameters.index(name) for name in optional), default=len(parameters))
    made = [inspect.Parameter(p, kind) for p in parameters[:needed]]
    made += [inspect.Parameter(p, kind, default=None) for p in parameters[needed:]]
    fn.__signature__ = inspect.Signature(made)  # type: ignore[attr-defined]
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
