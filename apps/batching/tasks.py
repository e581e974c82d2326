"""The two things to make of a folder: pictures as the page draws them, or a set to train a ControlNet on."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from annotators.base import Annotation
from apps.additions import Additions
from apps.batching.files import OF_REQUEST, read_map_facts, read_picture_facts, replacing, save_map
from apps.batching.pictures import Picture, Prompts, read_json_lines
from apps.batching.run import Facts, Job, OnStep
from apps.page.drawing import Events, make_hint, make_request, with_control
from apps.page.model import ALONE, Pipeline, explain_missing
from apps.page.plan import stored_settings
from apps.page.settings import DETECT, Setting, Settings, parse
from apps.spec import App
from core.errors import SuiteError, WeightsMissing
from core.images import resize, to_rgb
from core.metadata import save_png
from core.request import Request, Result

log = logging.getLogger(__name__)

MAPS = "maps"
NO_PROMPT = "there is no prompt for it: give --prompt, a line for it in --prompts, or a .txt file beside it"
_OF_DRAWING = ("prompt", "added_prompt")  # stored for a picture, but no map depends on them


@dataclass(slots=True)
class Work:
    """What both tasks need: ``values`` are the settings of the command line by name.

    ``weights`` names the detector's weights in use, so that maps of a stand-in are not taken for real ones.
    """

    app: App
    output: Path
    declared: tuple[Setting, ...]
    values: Mapping[str, Any]
    prompts: Prompts
    weights: str | None
    key_points: bool = False

    def parse(self, prompt: str) -> Settings:
        """Return the settings with this prompt."""
        return parse({**self.values, "prompt": prompt}, self.declared)

    def json_target(self, picture: Picture, folder: str) -> tuple[Path, ...]:
        """Return where the key points go, if they are wanted."""
        return (self.output / folder / f"{picture.name}.json",) if self.key_points else ()

    def save_key_points(self, annotation: Annotation, paths: Iterable[Path]) -> None:
        """Save what else the detector found."""
        for path in paths:
            with replacing(path) as handle:
                handle.write(json.dumps(dict(annotation.data or {})).encode())


@dataclass(slots=True)
class Drawing:
    """Pictures: OUTPUT/NAME.png, or NAME_1.png and so on where there are several, and OUTPUT/maps/NAME.png.

    ``model`` is the name or path of the model; ``load`` brings it.
    """

    work: Work
    model: str
    load: Callable[[], Pipeline]
    clip_skip: int | None = None
    additions: Additions = field(default_factory=Additions)
    pipeline: Pipeline | None = None

    def prepare(self) -> Pipeline:
        """Load the model, the first time.

        Raises:
            WeightsMissing: the model's or the ControlNet's weights are not here; says how to get them.
            SuiteError: the model cannot be used; says what to do.
        """
        if self.pipeline is None:
            pipeline = self.load()
            missing = explain_missing(pipeline, self.work.app.control)
            if missing and not self.work.app.alone:
                raise WeightsMissing(missing)
            if missing:
                log.warning("%s %s", ALONE, missing)
            self.pipeline = pipeline
        return self.pipeline

    def settings(self, picture: Picture) -> Settings:
        """Return the settings for a picture; only guess mode draws without a prompt."""
        prompt = self.work.prompts.of(picture)
        if prompt is None and not self.work.values["guess_mode"]:
            raise ValueError(NO_PROMPT)
        return self.work.parse(prompt or "")

    def facts(self, settings: Settings) -> Facts:
        """Return everything that decides a picture; the seed only where it was given."""
        names = [name for name in OF_REQUEST if name != "seed" or self.work.values["seed"] >= 0]
        return {**self._stored(settings), **{name: getattr(settings, name) for name in names}}

    def _stored(self, settings: Settings) -> Facts:
        extra: dict[str, Any] = {
            "base_model": Path(self.model).name,
            "detector_weights": self.work.weights,
            "clip_skip": self.clip_skip,
            **self.additions.facts(),
        }
        if self.work.app.alone:  # a picture without a control does not say how much that would have counted
            extra |= {name: getattr(settings, name) for name in ("strength", "start", "end")}
        return {**stored_settings(self.work.app, settings), **extra}

    def targets(self, picture: Picture) -> tuple[Path, ...]:
        """Return the pictures' files, the map's, and the key points' where they are wanted."""
        count, output = self.work.values["num_samples"], self.work.output
        names = [picture.name] if count == 1 else [f"{picture.name}_{i}" for i in range(1, count + 1)]
        drawn = [output / f"{name}.png" for name in names]
        return (*drawn, self._map(picture), *self.work.json_target(picture, MAPS))

    def _map(self, picture: Picture) -> Path:
        return self.work.output / MAPS / f"{picture.name}.png"

    def stored(self, path: Path) -> Facts | None:
        """Return the settings in a picture."""
        return read_picture_facts(path)

    def make(self, job: Job, facts: Facts, on_step: OnStep) -> str:
        """Draw the pictures and save them after the map; return a doubt about the map, or ""."""
        pipeline = self.prepare()
        annotation = make_hint(self.work.app, job.picture.path, job.settings)
        request = make_request(self.work.app, job.picture.path, annotation.hint, job.settings)
        request = with_control(self.work.app, request, pipeline)
        result = _sample(pipeline, request, on_step)
        source = {name: facts[name] for name in ("source", "source_digest")}

        def save(image: NDArray[np.uint8], path: Path, seed: int) -> None:
            modules = (self.work.app.annotator if job.settings.preprocessor == DETECT else "none",)
            stored = {**self._stored(job.settings), **source}
            with replacing(path) as handle:
                save_png(
                    image,
                    handle,
                    request,
                    seed=seed,
                    model=result.model,
                    modules=modules,
                    settings=stored,
                    extra=result.extra,
                )

        self.work.save_key_points(annotation, self.work.json_target(job.picture, MAPS))
        save(annotation.preview, self._map(job.picture), request.seed)
        targets = self.targets(job.picture)
        for image, seed, path in zip(result.images, result.seeds, targets, strict=False):
            save(image, path, seed)
        return annotation.note


def _sample(pipeline: Pipeline, request: Request, on_step: OnStep) -> Result:
    with closing(cast(Events, pipeline.sample(request))) as events:
        for event in events:
            if isinstance(event, Result):
                return event
            on_step(event.step, event.total)
    raise SuiteError("The model stopped without a picture: look at the lines above.")


@dataclass(slots=True)
class TrainingSet:
    """A set as ControlNet's training reads it: source/ holds the hints, target/ the photos, and prompt.json.

    No model is needed.
    """

    work: Work

    def settings(self, picture: Picture) -> Settings:
        """Return the settings for a picture; its prompt may be empty."""
        return self.work.parse(self.work.prompts.of(picture) or "")

    def facts(self, settings: Settings) -> Facts:
        """Return everything that decides a map."""
        stored = stored_settings(self.work.app, settings)
        kept = {name: value for name, value in stored.items() if name not in _OF_DRAWING}
        return {**kept, "detector_weights": self.work.weights}

    def targets(self, picture: Picture) -> tuple[Path, ...]:
        """Return the files of the hint and of the photo, and the key points' where they are wanted."""
        return (*self._pair(picture), *self.work.json_target(picture, "pose"))

    def _pair(self, picture: Picture) -> tuple[Path, Path]:
        name = f"{picture.name}.png"
        return self.work.output / "source" / name, self.work.output / "target" / name

    def stored(self, path: Path) -> Facts | None:
        """Return what a map was made from."""
        return read_map_facts(path)

    def make(self, job: Job, facts: Facts, on_step: OnStep) -> str:
        """Save the hint and the photo at its size; return a doubt about the map, or ""."""
        annotation = make_hint(self.work.app, job.picture.path, job.settings)
        hint = annotation.hint
        source, target = self._pair(job.picture)
        self.work.save_key_points(annotation, self.work.json_target(job.picture, "pose"))
        save_map(resize(to_rgb(job.picture.path), (hint.shape[0], hint.shape[1])), target, facts)
        save_map(hint, source, facts)
        return annotation.note

    @property
    def index(self) -> Path:
        """The file with the prompts."""
        return self.work.output / "prompt.json"

    def read_index(self) -> dict[str, dict[str, Any]]:
        """Return the lines of prompt.json by their source; none where there is no such file.

        Raises:
            ValueError: it is damaged; names the line.
        """
        lines = read_json_lines(self.index) if self.index.exists() else []
        return {str(line.get("source")): line for line in lines}

    def write_index(self, jobs: Iterable[Job]) -> int:
        """Add a line for each job to prompt.json, in the order of names; return how many prompts are empty.

        A line that is there keeps its prompt where no new one is given; lines whose pictures are gone go too.

        Raises:
            ValueError: the file that is there is damaged; names the line.
            OSError: it cannot be written.
        """
        lines = self.read_index()
        for job in jobs:
            name = f"{job.picture.name}.png"
            line = lines.get(f"source/{name}", {"prompt": ""})
            prompt = job.settings.prompt or line["prompt"]
            lines[f"source/{name}"] = {
                "source": f"source/{name}",
                "target": f"target/{name}",
                "prompt": prompt,
            }
        kept = [lines[source] for source in sorted(lines) if (self.work.output / source).is_file()]
        with replacing(self.index) as handle:
            handle.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept).encode())
        return sum(not line["prompt"] for line in kept)
