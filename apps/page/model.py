"""The one model of the process: which it is, and its loading while the page is already up."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from core.config import ModelConfig, config_names, load_config
from core.errors import SuiteError, WeightsMissing
from core.request import Progress, Request, Result
from core.runtime.garbage import lasting

log = logging.getLogger(__name__)

ALONE = "Drawn without the ControlNet made for this, by the base model alone: it knows the prompt only."
DEMO, FULL = "demo", "sd15"
# Runs under way at the same time where pictures are drawn in batches. More than the largest batch, so that
# while one is drawn those of the next have made their maps; a run that waits costs a thread of Gradio's 40.
AT_ONCE, MOST_AT_ONCE = 16, 24


def runs_at_once(max_batch: int | None) -> int:
    """Return how many runs may be under way for batches of so many pictures, of which None is not known."""
    if max_batch is None:
        return AT_ONCE
    return min(2 * max_batch, MOST_AT_ONCE) if max_batch > 1 else 1


class Pipeline(Protocol):
    """What the page needs of ``core.pipeline.ControlNetPipeline``."""

    @property
    def name(self) -> str:
        """The model's short name, such as "demo"."""

    @property
    def title(self) -> str:
        """The model's name for people."""

    @property
    def resolution(self) -> int:
        """The short side, in pixels, that the model was trained at."""

    def sample(self, request: Request) -> Iterator[Progress | Result]:
        """Return a generator of a Progress a step and last the Result; closing it cancels."""

    def explain_missing(self, control: str) -> str | None:
        """Return why this ControlNet cannot be used, or None."""


class Model:
    """A pipeline that may still be loading. One object serves all apps and all visitors."""

    def __init__(
        self,
        name: str,
        title: str,
        resolution: int,
        load: Callable[[], Pipeline],
        cfg_scale: float = 9.0,
        at_once: int = 1,
    ) -> None:
        """Name what ``load`` will bring; nothing is loaded before ``start``.

        ``at_once`` is how many runs may be under way at the same time: more than one helps a pipeline that
        draws several requests as one batch.
        """
        self.name, self.title, self.resolution, self.cfg_scale = name, title, resolution, cfg_scale
        self.at_once = at_once
        self._load = load
        self._finished = threading.Event()
        self._started = threading.Lock()
        self._pipeline: Pipeline | None = None
        self._error: Exception | None = None

    @classmethod
    def ready(cls, pipeline: Pipeline, at_once: int = 1) -> Model:
        """Wrap a pipeline that is loaded."""
        model = cls(pipeline.name, pipeline.title, pipeline.resolution, lambda: pipeline, at_once=at_once)
        model._started.acquire()
        model._run()
        return model

    def start(self) -> None:
        """Begin to load in the background, the first time this is called."""
        if self._started.acquire(blocking=False):
            threading.Thread(target=self._run, name="load-model", daemon=True).start()

    def wait(self, seconds: float) -> bool:
        """Wait at most so long; tell whether loading is over, well or badly."""
        self.start()
        return self._finished.wait(seconds)

    @property
    def finished(self) -> bool:
        """Whether loading is over, well or badly."""
        return self._finished.is_set()

    @property
    def error(self) -> str | None:
        """Why loading failed, in words for the page, or None."""
        if self._error is None:
            return None
        if isinstance(self._error, (SuiteError, ValueError)):
            return str(self._error)
        return "The model could not be loaded: look at the program's log."

    def get(self) -> Pipeline:
        """Return the pipeline, waiting for it.

        Raises:
            SuiteError: loading failed; says what to do.
        """
        self.start()
        self._finished.wait()
        if self._pipeline is None:
            raise SuiteError(self.error or "") from self._error
        return self._pipeline

    def _run(self) -> None:
        try:
            with lasting():
                self._pipeline = self._load()
            self.name, self.title = self._pipeline.name, self._pipeline.title
        except (SuiteError, ValueError) as error:
            log.error("%s", error)
            self._error = error
        except Exception as error:
            log.exception("The model %s could not be loaded.", self.name)
            self._error = error
        finally:
            self._finished.set()


def explain_missing(pipeline: Pipeline, control: str) -> str | None:
    """Return why this pipeline cannot use a ControlNet, and what to do, or None."""
    try:
        return pipeline.explain_missing(control)
    except ValueError as error:  # the model has no ControlNet of this name at all
        if control not in load_config(FULL).controls or pipeline.name == FULL:
            return str(error)
        return (
            f"{pipeline.title} has no {control} control, and Stable Diffusion 1.5 has one.\n"
            f"Get both: python -m core.weights get {FULL} {control}"
        )


def stand_in(model: str, control: str) -> str:
    """Say which other ControlNet of a model does the work of ``control``, or nothing where it has its own."""
    controls = load_config(model).controls if model in config_names() else {}
    other = next((name for name, weights in controls.items() if weights == controls.get(control)), control)
    return "" if other == control else f"This model's control for {other} maps stands in for {control}."


def choose(wanted: str, controls: Sequence[str], located: Callable[[str], bool] | None = None) -> str:
    """Resolve "auto": SD 1.5 when its weights and one of the ControlNets are there, else the demo model.

    ``located`` tells whether the weights of a name in ckpts/registry.yaml are there.
    """
    if wanted.lower() != "auto":
        return wanted.lower() if wanted.lower() in config_names() else wanted
    there = located or _is_there
    config = load_config(FULL)
    names = [config.controls[control] for control in controls if control in config.controls]
    return FULL if there(config.weights) and any(there(name) for name in names) else DEMO


def _is_there(name: str) -> bool:
    from core.weights.registry import Registry

    try:
        Registry.load().locate(name)
    except WeightsMissing:
        return False
    return True


def describe(name_or_path: str) -> tuple[str, int, float]:
    """Return title, resolution and guidance scale of a model not yet loaded; SD 1.5's for a checkpoint file.

    Raises:
        ValueError: neither a model's name nor a file.
    """
    path = Path(name_or_path)
    if path.suffix.lower() not in {"", ".yaml", ".yml"}:
        if not path.is_file():
            raise ValueError(f"{name_or_path}: there is no such file. Give the path of a checkpoint.")
        return path.name, 768 if "768" in path.name else 512, 9.0
    config: ModelConfig = load_config(name_or_path)
    return config.title, config.resolution, config.cfg_scale
