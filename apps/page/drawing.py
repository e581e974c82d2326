"""From an image file and settings to pictures, frame by frame: nothing here knows of a browser."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
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
from apps.page.masks import fit_mask, read_picture, shade
from apps.page.model import Model, Pipeline, explain_missing
from apps.page.plan import Plan, Source
from apps.page.settings import DETECT, INVERTED_MAP, READY_MAP, Settings
from apps.spec import MASK, App
from core.errors import WeightsMissing
from core.images import crop_to_proportions, fit_size, open_image, to_rgb
from core.request import ControlUnit, Progress, Request, Result
from core.runtime.threads import in_own_thread

Events: TypeAlias = Generator[Progress | Result]

PREVIEW_SECONDS = 0.5  # a shorter wait costs server and browser more than it shows: they take it from drawing
LOADING_SECONDS = 0.5
PREVIEW_SIDE = 384


@dataclass(frozen=True, slots=True)
class Frame:
    """What there is to show now: the maps and, after them, a preview or the finished pictures.

    ``maps`` are the captions of the maps, which are the first of ``files``. ``step`` is 0 before the first
    step; ``seconds_left`` is None while unknown; ``result`` comes last; ``note`` is a warning about the maps,
    said once; ``mendable`` tells that the map's usual change takes the doubt away.
    """

    text: str
    files: tuple[Path, ...] = ()
    maps: tuple[str, ...] = ()
    step: int = 0
    total: int = 0
    seconds_left: float | None = None
    result: Result | None = field(default=None, compare=False)
    note: str = ""
    mendable: bool = False


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
    picture = _picture_of(app, path)
    return _hint_of(app, picture, settings, picture.shape[:2])


def _picture_of(app: App, path: str | Path | None) -> NDArray[np.uint8]:
    return read_picture(path)[0] if app.editor == MASK else to_rgb(path)


def make_hints(sources: Sequence[Source]) -> tuple[Annotation, ...]:
    """Make the map of each source. The first picture decides the size; others are cut to its proportions.

    Raises:
        ValueError, WeightsMissing: as above; names the source.
    """
    made: list[Annotation] = []
    like: tuple[int, ...] | None = None
    for source in sources:
        with source.named():
            picture = _picture_of(source.app, source.path)
            like = like or picture.shape[:2]
            made.append(_hint_of(source.app, picture, source.settings, like))
    return tuple(made)


def _hint_of(app: App, picture: NDArray[np.uint8], settings: Settings, like: Sequence[int]) -> Annotation:
    """Make the map of ``picture`` (h, w, 3) for what comes of one whose (height, width) is ``like``."""
    height, width = like
    size = fit_size(height, width, settings.resolution)
    picture = crop_to_proportions(picture, (height, width))
    annotator = annotators.load(app.annotator)
    if settings.preprocessor == DETECT:
        own: Literal["auto"] | int | None = "auto" if settings.auto_resolution else settings.detect_resolution
        return annotator(picture, size=size, resolution=own, **dict(settings.detector))
    return annotator.ready(picture, size=size, mend=settings.preprocessor == INVERTED_MAP)


def make_request(app: App, path: str | Path | None, hint: NDArray[np.uint8], settings: Settings) -> Request:
    """Say what the pipeline has to draw from the map of the picture at ``path``.

    Raises:
        ValueError: a setting is out of range, or nothing is masked where that is needed; names it.
    """
    mask = None
    if app.editor == MASK:
        mask = fit_mask(read_picture(path)[1], (hint.shape[0], hint.shape[1]), settings.mask_blur or 0.0)
    return Request(
        prompt=settings.full_prompt,
        controls=(_unit(app, hint, settings),),
        negative_prompt=settings.negative_prompt,
        num_samples=settings.num_samples,
        steps=settings.steps,
        sampler=settings.sampler,
        cfg_scale=settings.cfg_scale,
        eta=settings.eta,
        seed=settings.seed,
        guess_mode=settings.guess_mode,
        init=None if app.denoise is None else hint,
        denoise=settings.denoise,
        mask=mask,
        control_interval=settings.control_interval,
        cache_interval=settings.cache_interval,
        token_merging_ratio=settings.token_merging_ratio,
    )


def _unit(app: App, hint: NDArray[np.uint8], settings: Settings) -> ControlUnit:
    return ControlUnit(app.control, hint, settings.strength, settings.start, settings.end)


def plan_request(plan: Plan, hints: Sequence[NDArray[np.uint8]]) -> Request:
    """Say what the pipeline has to draw from the maps of the plan's sources.

    Raises:
        ValueError: a setting is out of range; names it.
    """
    pairs = zip(plan.sources, hints, strict=True)
    units = tuple(_unit(source.app, hint, source.settings) for source, hint in pairs)
    first = plan.sources[0]
    return replace(make_request(first.app, first.path, hints[0], plan.settings), controls=units)


def draw(
    plan: Plan, model: Model, folder: PictureFolder, every: float | None = None, previews: bool = True
) -> Generator[Frame]:
    """Yield the maps at once, then previews, then the pictures. Closing the iterator frees the pipeline.

    Previews are at least ``every`` seconds apart, by default ``PREVIEW_SECONDS``. Without ``previews`` the
    frames come all the same, with the maps alone.

    Raises:
        ValueError: an unreadable picture or a wrong setting; says what is allowed.
        SuiteError: weights are missing or the numbers went wrong; says what to do.
    """
    made = in_own_thread(lambda: make_hints(plan.sources))
    request = plan_request(plan, [annotation.hint for annotation in made])
    plan = replace(plan, weights=tuple(a.weights.name if a.weights else None for a in made))
    shown = folder.save_maps([_shown(annotation, request) for annotation in made], plan, request, model.name)
    labels = tuple(_label(source, annotation) for source, annotation in zip(plan.sources, made, strict=True))
    yield Frame("Map ready", shown, labels, note=_notes(plan, made), mendable=_mending_helps(plan, made))
    while not model.wait(LOADING_SECONDS):
        yield Frame(f"Loading {model.title}", shown, labels)
    pipeline = model.get()
    for source in plan.sources:
        with source.named():
            request = with_control(source.app, request, pipeline)
    with closing(cast(Events, pipeline.sample(request))) as events:
        every = PREVIEW_SECONDS if every is None else every
        yield from _follow(events, shown, labels, request, plan, folder, every, previews)


def _shown(annotation: Annotation, request: Request) -> NDArray[np.uint8]:
    return annotation.preview if request.mask is None else shade(annotation.preview, request.mask)


def with_control(app: App, request: Request, pipeline: Pipeline) -> Request:
    """Return the request as this pipeline can draw it: without a control that an app can do without.

    Raises:
        WeightsMissing: the ControlNet's weights are not here; says how to get them.
    """
    missing = explain_missing(pipeline, app.control)
    if missing and not app.alone:
        raise WeightsMissing(missing)
    return replace(request, controls=()) if missing else request


def _label(source: Source, made: Annotation) -> str:
    return f"{source.label} by the demo detector" if made.weights and made.weights.demo else source.label


def _notes(plan: Plan, made: Sequence[Annotation]) -> str:
    pairs = zip(plan.sources, made, strict=True)
    return " ".join(": ".join(filter(None, (s.title, a.note))) for s, a in pairs if a.note)


def _mending_helps(plan: Plan, made: Sequence[Annotation]) -> bool:
    """Tell whether the usual change of this kind of maps takes away the doubt about the one map as it is."""
    if len(made) > 1 or plan.settings.preprocessor != READY_MAP or not made[0].note:
        return False
    source = plan.sources[0]
    mended = make_hint(source.app, source.path, replace(source.settings, preprocessor=INVERTED_MAP))
    return not mended.note and not annotators.load(source.app.annotator).kind.doubt(mended.hint)


def _follow(
    events: Iterator[Progress | Result],
    shown: tuple[Path, ...],
    labels: tuple[str, ...],
    request: Request,
    plan: Plan,
    folder: PictureFolder,
    every: float,
    previews: bool,
) -> Iterator[Frame]:
    began, drawn_at = time.monotonic(), 0.0
    preview: tuple[Path, ...] = ()
    try:
        for event in events:
            if isinstance(event, Result):
                files, steps = (*shown, *folder.save_result(event, plan)), event.request.steps
                yield Frame("Done", files, labels, steps, steps, 0.0, event)
                return
            if event.step == 0:
                before = f" · {event.ahead} before it" if event.ahead else ""
                yield Frame(f"Waiting for its turn{before}", shown, labels)
                continue
            now = time.monotonic()
            if now - drawn_at < every and event.step < event.total:
                continue
            drawn_at = now
            if previews and event.preview is not None:
                preview = (folder.save_preview(_enlarge(event.preview, request.height_width)),)
            each = event.seconds_per_step or (now - began) / max(event.step, 1)
            left = each * (event.total - event.step)
            yield Frame("Drawing", (*shown, *preview), labels, event.step, event.total, left)
    finally:
        folder.drop_previews()


def _enlarge(preview: NDArray[np.uint8], size: tuple[int, int]) -> Image.Image:
    """Bring a preview of a few pixels to the output's shape, so that nothing jumps when the picture comes."""
    scale = min(1.0, PREVIEW_SIDE / max(size))
    height, width = (max(1, round(side * scale)) for side in size)
    return Image.fromarray(preview).resize((width, height), Image.Resampling.BICUBIC)
