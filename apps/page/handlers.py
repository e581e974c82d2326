"""What happens when somebody runs or changes the image, and how they are told of errors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from gradio_client.utils import is_file_obj_with_meta

from apps.page import look
from apps.page.drawing import Frame, draw, size_of
from apps.page.files import PictureFolder
from apps.page.model import Model
from apps.page.settings import Setting, parse
from apps.spec import App
from core.errors import SuiteError
from core.images import fit_size
from core.request import Result

log = logging.getLogger(__name__)

INTERNAL = "Something went wrong inside; the program's log has the details. Your settings are kept."


@contextmanager
def told() -> Iterator[None]:
    """Turn errors into what the page and the endpoint show: known ones in their own words, others logged."""
    try:
        yield
    except gr.Error:
        raise
    except (ValueError, SuiteError) as error:
        raise gr.Error(str(error), title="That did not work", print_exception=False) from error
    except Exception as error:
        log.exception("A run failed.")
        raise gr.Error(INTERNAL, title="Internal error", print_exception=False) from error


def file_path(payload: Any) -> str | None:
    """Return the path of an uploaded file as Gradio hands it over; Gradio has checked where it lies.

    Raises:
        ValueError: something else was sent.
    """
    if payload is None:
        return None
    if not is_file_obj_with_meta(payload):
        raise ValueError(
            f"image is {payload!r:.80}: give a picture file, with gradio_client's handle_file(path)."
        )
    return str(payload["path"])


class Handlers:
    """The event handlers of one app. Nothing about one visitor is kept here."""

    def __init__(
        self,
        app: App,
        declared: tuple[Setting, ...],
        model: Model,
        cache: Path,
        read: Callable[[Any], str | None] = file_path,
    ) -> None:
        """Serve ``app``; pictures are written below ``cache``, from where Gradio serves them.

        ``read`` turns what the page sends as its image into a path.
        """
        self.app, self.declared, self.model, self.cache = app, declared, model, cache
        self.read = read

    def frames(self, path: str | None, prompt: Any, values: dict[str, Any]) -> Generator[Frame]:
        """Check everything that was sent, then draw from the picture at ``path``."""
        settings = parse({"prompt": "" if prompt is None else prompt, **values}, self.declared)
        yield from draw(self.app, path, settings, self.model, PictureFolder(self.cache))

    def run(self, image: Any, prompt: Any, randomize: Any, *values: Any) -> Iterator[tuple[Any, ...]]:
        """Yield the gallery, the status line, the seed and the offer to mend the map, as they come."""
        yield from self._run(lambda: self.read(image), prompt, randomize, values)

    def run_example(self, index: Any, prompt: Any, randomize: Any, *values: Any) -> Iterator[tuple[Any, ...]]:
        """Do the same with an example's own file: the browser may not have put it in its place yet."""
        examples = self.app.present_examples
        yield from self._run(lambda: str(examples[index].path), prompt, randomize, values)

    def _run(
        self, read: Callable[[], str | None], prompt: Any, randomize: Any, values: Sequence[Any]
    ) -> Iterator[tuple[Any, ...]]:
        named = dict(zip((s.name for s in self.declared), values, strict=True))
        if randomize:
            named["seed"] = -1
        shown: tuple[Path, ...] = ()
        try:
            with told(), closing(self.frames(read(), prompt, named)) as frames:
                for frame in frames:
                    if frame.note:
                        gr.Warning(frame.note, title="About your map")
                    gallery = gr.skip() if frame.files == shown else _items(frame)
                    shown = frame.files
                    seed = frame.result.request.seed if frame.result else gr.skip()
                    offer = gr.update(visible=True) if frame.mendable else gr.skip()
                    yield gallery, _status(frame, self.model.title), seed, offer
        except gr.Error as error:
            yield gr.skip(), look.notice(error.message), gr.skip(), gr.skip()
            raise

    def size(self, image: Any, resolution: Any) -> str:
        """Return the line that says how large the pictures will be."""
        try:
            with told():
                path = file_path(image)
                return look.size_line(None if path is None else size_of(path, self._resolution(resolution)))
        except gr.Error as error:
            return look.size_line(None, error.message)

    def canvas_size(self, size: tuple[int, int], resolution: Any) -> str:
        """Return the line that says how large the pictures of a drawing, (height, width), will be."""
        try:
            with told():
                return look.size_line(fit_size(*size, self._resolution(resolution)))
        except gr.Error as error:
            return look.size_line(None, error.message)

    def _resolution(self, value: Any) -> int:
        return int(next(s for s in self.declared if s.name == "resolution").check(value))


def _items(frame: Frame) -> list[tuple[str, str]]:
    first, *others = frame.files
    shown = (str(first), "Map by the demo detector" if frame.guessed else "Map")
    if frame.result is None:
        return [shown, *((str(path), "Preview") for path in others)]
    seeds = frame.result.seeds
    return [shown, *((str(p), f"Seed {s}") for p, s in zip(others, seeds, strict=True))]


def _status(frame: Frame, title: str) -> str:
    if frame.result is not None:
        return look.summary("Done", describe_result(frame.result, title))
    if not frame.step:
        return look.progress(frame.text, None)
    left = "" if frame.seconds_left is None else f" · {_duration(frame.seconds_left)} left"
    return look.progress(frame.text, frame.step / frame.total, f"Step {frame.step} of {frame.total}{left}")


def describe_result(result: Result, title: str) -> str:
    """Say in a line what was made: seed, size, steps, time and model."""
    height, width = result.request.height_width
    return (
        f"Seed {result.request.seed} · {width} × {height} px · {result.request.steps} steps · "
        f"{_duration(result.seconds)} · {title}"
    )


def _duration(seconds: float) -> str:
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
