"""What happens when somebody runs or changes the image, and how they are told of errors."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import gradio as gr

from apps.editors.mask import background
from apps.page import look
from apps.page.drawing import Frame, draw, size_of
from apps.page.files import PictureFolder
from apps.page.forms import Form, file_path
from apps.page.model import Model
from core.errors import SuiteError
from core.images import fit_size
from core.request import Result

log = logging.getLogger(__name__)

NO_PROMPT = "The picture may show anything. Guess Mode, under Advanced options, is made for this."
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


class Handlers:
    """The event handlers of one page that draws. Nothing about one visitor is kept here."""

    def __init__(self, form: Form, model: Model, cache: Path) -> None:
        """Serve ``form``; pictures are written below ``cache``, from where Gradio serves them."""
        self.form, self.model, self.cache = form, model, cache

    def frames(
        self,
        values: Mapping[str, Any],
        own: Mapping[str, str] | None = None,
        every: float | None = None,
        previews: bool = True,
    ) -> Generator[Frame]:
        """Check everything that was sent, by name, then draw.

        ``own`` is as in ``Form.plan``, ``every`` and ``previews`` are as in ``draw``.
        """
        plan = self.form.plan(values, own)
        yield from draw(plan, self.model, PictureFolder(self.cache), every, previews)

    def run(self, randomize: Any, *values: Any) -> Iterator[tuple[Any, ...]]:
        """Yield the gallery, the status line, the seed and the offer to mend the map, as they come."""
        yield from self._run(randomize, values, None)

    def run_example(self, index: Any, randomize: Any, *values: Any) -> Iterator[tuple[Any, ...]]:
        """Do the same with an example's own files: the browser may not have put them in their places yet."""
        yield from self._run(randomize, values, self.form.example(index))

    def _run(
        self, randomize: Any, values: Sequence[Any], own: Mapping[str, str] | None
    ) -> Iterator[tuple[Any, ...]]:
        named = self.form.named(values)
        if randomize:
            named["seed"] = -1
        if not named["guess_mode"] and not str(named["prompt"] or "").strip():
            gr.Info(NO_PROMPT, title="No prompt")
        shown: tuple[Path, ...] = ()
        try:
            with told(), closing(self.frames(named, own)) as frames:
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

    def size(self, resolution: Any, *images: Any) -> str:
        """Return the line that says how large the pictures will be: the first image decides."""
        try:
            with told():
                files = (background(image) for image in images)
                path = next((file_path(file) for file in files if file is not None), None)
                size = None if path is None else size_of(path, self._resolution(resolution))
                return look.size_line(size)
        except gr.Error as error:
            return look.size_line(None, error.message)

    def canvas_size(self, resolution: Any, size: tuple[int, int]) -> str:
        """Return the line that says how large the pictures of a drawing, (height, width), will be."""
        try:
            with told():
                return look.size_line(fit_size(*size, self._resolution(resolution)))
        except gr.Error as error:
            return look.size_line(None, error.message)

    def _resolution(self, value: Any) -> int:
        return int(next(s for s in self.form.run if s.name == "resolution").check(value))


def _items(frame: Frame) -> list[tuple[str, str]]:
    pictures = [f"Seed {seed}" for seed in frame.result.seeds] if frame.result else ["Preview"]
    return [(str(path), label) for path, label in zip(frame.files, [*frame.maps, *pictures], strict=False)]


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
