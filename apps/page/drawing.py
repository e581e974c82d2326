"""From an image file and settings to pictures, frame by frame: nothing here knows of a browser."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

import annotators
from annotators.base import Annotation
from apps.page.files import PictureFolder
from apps.page.model import Model, explain_missing
from apps.page.settings import DETECT, INVERTED_MAP, READY_MAP, Settings
from apps.spec import App
from core.errors import WeightsMissing
from core.images import fit_size, open_image, to_rgb
from core.request import ControlUnit, Progress, Request, Result

Events: TypeAlias = Generator[Progress | Result]

PREVIEW_SECONDS = 0.25  # a shorter wait costs the browser and the queue more than it shows
LOADING_SECONDS = 0.5
PREVIEW_SIDE = 384


@dataclass(frozen=True, slots=True)
class Frame:
    """What there is to show now: the map and, after it, a preview or the finished pictures.

    ``step`` is 0 before the first step; ``seconds_left`` is None while unknown; ``result`` comes last;
    ``note`` is a warning about the map, said once; ``mendable`` tells that the map's usual change takes the
    doubt away. ``guessed`` tells that a demo detector made the map.
    """

    text: str
    files: tuple[Path, ...] = ()
    step: int = 0
    total: int = 0
    seconds_left: float | None = None
    result: Result | None = field(default=None, compare=False)
    note: str = ""
    mendable: bool = False
    guessed: bool = False


def size_of(path: str | Path | None, resolution: int) -> tuple[int, int]:
    """Return the (height, width) that the pictures of this image file will have.

    Raises:
        ValueError: there is no picture or it cannot be read; says what to do.
    """
    if path is None:
        raise ValueError("There is no picture: upload one or pick an example.")
    with open_image(path) as image:
        width, height = image.size
        try:
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        except Exception:  # Pillow raises nearly anything on a damaged file; the run will say what is wrong
            orientation = 1
    if orientation in (5, 6, 7, 8):  # it lies on its side
        width, height = height, width
    return fit_size(height, width, resolution)


def make_hint(app: App, path: str | Path | None, settings: Settings) -> Annotation:
    """Detect the map, or take the image as one.

    Raises:
        ValueError: there is no picture or it cannot be read; says what to do.
    """
    picture = to_rgb(path)
    height, width = picture.shape[:2]
    size = fit_size(height, width, settings.resolution)
    annotator = annotators.load(app.annotator)
    if settings.preprocessor == DETECT:
        own: Literal["auto"] | int | None = "auto" if settings.auto_resolution else settings.detect_resolution
        return annotator(picture, size=size, resolution=own, **dict(settings.detector))
    return annotator.ready(picture, size=size, mend=settings.preprocessor == INVERTED_MAP)


def make_request(app: App, hint: NDArray[np.uint8], settings: Settings) -> Request:
    """Say what the pipeline has to draw.

    Raises:
        ValueError: a setting is out of range; names it.
    """
    unit = ControlUnit(app.control, hint, settings.strength, settings.start, settings.end)
    return Request(
        prompt=settings.full_prompt,
        controls=(unit,),
        negative_prompt=settings.negative_prompt,
        num_samples=settings.num_samples,
        steps=settings.steps,
        sampler=settings.sampler,
        cfg_scale=settings.cfg_scale,
        eta=settings.eta,
        seed=settings.seed,
        guess_mode=settings.guess_mode,
    )


def draw(
    app: App, path: str | Path | None, settings: Settings, model: Model, folder: PictureFolder
) -> Generator[Frame]:
    """Yield the map at once, then previews, then the pictures. Closing the iterator frees the pipeline.

    Raises:
        ValueError: an unreadable picture or a wrong setting; says what is allowed.
        SuiteError: weights are missing or the numbers went wrong; says what to do.
    """
    annotation = make_hint(app, path, settings)
    request = make_request(app, annotation.hint, settings)
    used = annotation.weights
    folder.detector_weights = used.name if used else None
    shown = folder.save_map(annotation.preview, app, settings, request, model.name)
    mendable = settings.preprocessor == READY_MAP and _mending_helps(app, path, settings, annotation)
    guessed = used is not None and used.demo
    yield Frame("Map ready", (shown,), note=annotation.note, mendable=mendable, guessed=guessed)
    while not model.wait(LOADING_SECONDS):
        yield Frame(f"Loading {model.title}", (shown,), guessed=guessed)
    pipeline = model.get()
    missing = explain_missing(pipeline, app.control)
    if missing:
        raise WeightsMissing(missing)
    with (
        closing(cast(Events, pipeline.sample(request))) as events,
        closing(_follow(events, shown, request, app, settings, folder)) as frames,
    ):
        for frame in frames:
            yield replace(frame, guessed=guessed)


def _mending_helps(app: App, path: str | Path | None, settings: Settings, taken: Annotation) -> bool:
    """Tell whether the usual change of this kind of maps takes away the doubt about the map as it is."""
    if not taken.note:
        return False
    mended = make_hint(app, path, replace(settings, preprocessor=INVERTED_MAP))
    return not mended.note and not annotators.load(app.annotator).kind.doubt(mended.hint)


def _follow(
    events: Iterator[Progress | Result],
    shown: Path,
    request: Request,
    app: App,
    settings: Settings,
    folder: PictureFolder,
) -> Generator[Frame]:
    began, drawn_at = time.monotonic(), 0.0
    preview: tuple[Path, ...] = ()
    try:
        for event in events:
            if isinstance(event, Result):
                pictures = folder.save_result(event, app, settings)
                yield Frame("Done", (shown, *pictures), event.request.steps, event.request.steps, 0.0, event)
                return
            now = time.monotonic()
            if now - drawn_at < PREVIEW_SECONDS and event.step < event.total:
                continue
            drawn_at = now
            if event.preview is not None:
                preview = (folder.save_preview(_enlarge(event.preview, request.height_width)),)
            each = event.seconds_per_step or (now - began) / max(event.step, 1)
            left = each * (event.total - event.step)
            yield Frame("Drawing", (shown, *preview), event.step, event.total, left)
    finally:
        folder.drop_previews()


def _enlarge(preview: NDArray[np.uint8], size: tuple[int, int]) -> Image.Image:
    """Bring a preview of a few pixels to the output's shape, so that nothing jumps when the picture comes."""
    scale = min(1.0, PREVIEW_SIDE / max(size))
    height, width = (max(1, round(side * scale)) for side in size)
    return Image.fromarray(preview).resize((width, height), Image.Resampling.BICUBIC)
