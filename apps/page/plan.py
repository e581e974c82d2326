"""What a run is asked for: one picture with one control, or several."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from apps.page.settings import DETECT, Settings
from apps.spec import App
from core.errors import SuiteError

Stored = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Source:
    """A picture, and the app whose detector and ControlNet it goes through.

    ``title`` names it where there are several, such as "Unit 2"; ``label`` is its map's caption.
    """

    app: App
    path: str | Path | None
    settings: Settings
    title: str = ""
    label: str = "Map"

    @property
    def module(self) -> str:
        """The detector's name, or "none" for a map that was brought."""
        return self.app.annotator if self.settings.preprocessor == DETECT else "none"

    @contextmanager
    def named(self) -> Iterator[None]:
        """Put the title before the words of what goes wrong inside."""
        try:
            yield
        except (ValueError, SuiteError) as error:
            if not self.title:
                raise
            raise type(error)(f"{self.title}: {error}") from error


@dataclass(frozen=True, slots=True)
class Plan:
    """What one run draws. All sources have the same settings but for the detector and the weight.

    ``page`` begins the names of its files. ``numbered`` is whether it has units, whose settings are stored
    with their numbers. ``weights`` are those that made each map, once they are known.
    """

    page: str
    sources: tuple[Source, ...]
    numbered: bool = False
    weights: tuple[str | None, ...] = ()

    @property
    def stored(self) -> Mapping[str, Stored]:
        """What the files carry beside the request."""
        stored: dict[str, Stored] = {"app": self.page, **stored_of_run(self.settings)}
        for number, (source, weights) in enumerate(zip(self.sources, self.weights, strict=True), 1):
            own = {**stored_of_unit(source.settings), "detector_weights": weights}
            if self.numbered:
                own = {f"{name}_{number}": v for name, v in {"detector": source.app.name, **own}.items()}
            stored |= own
        return stored

    @property
    def settings(self) -> Settings:
        """What the run has once, such as the prompt and the seed."""
        return self.sources[0].settings


def plan_one(app: App, path: str | Path | None, settings: Settings) -> Plan:
    """Plan a run of an app with its one control."""
    return Plan(app.name, (Source(app, path, settings),))


def stored_settings(app: App, settings: Settings) -> Mapping[str, Stored]:
    """Return what a Request does not hold but the page needs to come back as it was."""
    return {"app": app.name, **stored_of_run(settings), **stored_of_unit(settings)}


def stored_of_run(settings: Settings) -> Mapping[str, Stored]:
    """Return the part of ``stored_settings`` that a run has once."""
    return {
        "prompt": settings.prompt,
        "added_prompt": settings.added_prompt,
        "resolution": settings.resolution,
    }


def stored_of_unit(settings: Settings) -> Mapping[str, Stored]:
    """Return the part of ``stored_settings`` that each control has for itself."""
    own: dict[str, Stored] = {"preprocessor": settings.preprocessor}
    if settings.mask_blur is not None:
        own["mask_blur"] = settings.mask_blur
    if settings.detect_resolution is not None:
        own["detect_resolution"] = settings.detect_resolution
        own["auto_resolution"] = settings.auto_resolution
    return own | dict(settings.detector)
