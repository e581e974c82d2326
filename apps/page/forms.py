"""What a page asks for, by name, and what a run is planned from it: one control, or several units."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from gradio_client.utils import is_file_obj_with_meta

import annotators
from apps import find_apps
from apps.page.plan import Plan, Source, plan_one
from apps.page.settings import PROMPT, WEIGHT, Choice, Setting, declare_app, declare_run, declare_unit, parse
from apps.spec import App, Joint, Page

NO_PICTURE = "There is no picture in any unit: upload one or pick an example."


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


@dataclass(frozen=True, slots=True)
class Picture:
    """The place for a picture among what a page asks for."""

    name: str
    label: str = "Image"
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Optional:
    """A setting of a unit that may be left out: then it has the default of the unit's detector."""

    name: str
    setting: Setting


Field = Picture | Setting | Optional


class Form(Protocol):
    """What a page asks for: ``fields`` in the order in which they are sent, ``run`` what a run has once."""

    @property
    def page(self) -> Page:
        """The page."""

    @property
    def fields(self) -> tuple[Field, ...]:
        """All that is sent."""

    @property
    def run(self) -> tuple[Setting, ...]:
        """The settings that a run has once."""

    def named(self, values: Sequence[Any]) -> dict[str, Any]:
        """Return what the page sends, in the order of the fields, by name."""

    def example(self, index: int) -> dict[str, str]:
        """Return an example's files by the names of their fields."""

    def plan(self, values: Mapping[str, Any], own: Mapping[str, str] | None = None) -> Plan:
        """Check what was sent, by the fields' names; say what to draw.

        The pictures are ``own`` files, by their fields' names, where these are given, not those sent.

        Raises:
            ValueError: names the setting, its value and what is allowed.
        """


class AppForm:
    """One picture, one control."""

    def __init__(
        self,
        app: App,
        resolution: int,
        cfg_scale: float,
        read: Callable[[Any], str | None] = file_path,
    ) -> None:
        """Ask for what ``app`` takes; ``read`` turns what the page sends as its image into a path.

        ``resolution`` and ``cfg_scale`` are the model's own.
        """
        self.page, self.read = app, read
        self.run = declare_app(app, resolution, cfg_scale)
        self.fields: tuple[Field, ...] = (Picture("image"), PROMPT, *self.run)

    def named(self, values: Sequence[Any]) -> dict[str, Any]:
        """Return what the page sends, in the order of the fields, by name."""
        return dict(zip((field.name for field in self.fields), values, strict=True))

    def example(self, index: int) -> dict[str, str]:
        """Return an example's file by the name of its field."""
        return {"image": str(self.page.present_examples[index].path)}

    def plan(self, values: Mapping[str, Any], own: Mapping[str, str] | None = None) -> Plan:
        """Check what was sent; say what to draw, from the picture of ``own`` where it is given.

        Raises:
            ValueError: names the setting, its value and what is allowed.
        """
        path = self._path(values["image"]) if own is None else own["image"]
        return plan_one(self.page, path, parse({**values, "prompt": _text(values["prompt"])}, self.run))

    def _path(self, image: Any) -> str | None:
        """Return the picture's path: a page may send what it has drawn, and a program sends a file."""
        return file_path(image) if is_file_obj_with_meta(image) else self.read(image)


def _text(prompt: Any) -> Any:
    """Return an emptied box, which a browser may send as nothing, as an empty text."""
    return "" if prompt is None else prompt


class JointForm:
    """Several units, each with a picture, a detector and its weight. A unit without a picture does not count.

    ``apps`` are what a unit may take, by name; ``own`` the settings that a unit then has; ``slots`` the
    settings of all of them by name, since a unit's own change with its detector.
    """

    def __init__(self, joint: Joint, resolution: int, cfg_scale: float) -> None:
        """Ask for what ``joint`` takes; ``resolution`` and ``cfg_scale`` are the model's own."""
        self.page = joint
        self.run = declare_run(resolution, cfg_scale)
        self.apps = {app.name: app for app in find_apps(joint.apps)}
        self.own = {
            name: declare_unit(annotators.load(app.annotator), resolution) for name, app in self.apps.items()
        }
        of_maps: dict[str, Setting] = {}
        for setting in (s for own in self.own.values() for s in own if s not in WEIGHT):
            of_maps.setdefault(setting.name, setting)
        self.slots = of_maps | {s.name: s for s in WEIGHT}
        self.numbers = range(1, len(joint.first) + 1)
        self.fields: tuple[Field, ...] = (
            PROMPT,
            *(field for number in self.numbers for field in self.unit_fields(number)),
            *self.run,
        )

    def detector(self, number: int) -> Choice:
        """Return the choice of what the unit of this number is controlled with."""
        choices = tuple((app.name, app.tab) for app in self.apps.values())
        return Choice(f"detector_{number}", "Control with", choices, self.page.first[number - 1])

    def unit_fields(self, number: int) -> tuple[Field, ...]:
        """Return what the unit of this number asks for: picture, detector, and the slots in their order."""
        picture = Picture(f"image_{number}", f"Image {number}", optional=True)
        return picture, self.detector(number), *(self._field(s, number) for s in self.slots.values())

    def _field(self, setting: Setting, number: int) -> Field:
        name = f"{setting.name}_{number}"
        return replace(setting, name=name) if self.is_common(setting) else Optional(name, setting)

    def is_common(self, setting: Setting) -> bool:
        """Tell whether every detector has a setting of this name with this default."""
        wanted = setting.name, setting.default
        return all(any((s.name, s.default) == wanted for s in own) for own in self.own.values())

    def named(self, values: Sequence[Any]) -> dict[str, Any]:
        """Return what the page sends by name, without the values of slots that a unit's detector lacks."""
        found = dict(zip((field.name for field in self.fields), values, strict=True))
        for number in self.numbers:
            own = {s.name for s in self.own.get(str(found[f"detector_{number}"]), ())}
            found |= {f"{name}_{number}": None for name in self.slots if name not in own}
        return found

    def example(self, index: int) -> dict[str, str]:
        """Return an example's files by the names of their fields."""
        example = self.page.present_examples[index]
        return {f"image_{i}": str(e.path) for i, e in enumerate((example, *example.others), 1)}

    def plan(self, values: Mapping[str, Any], own: Mapping[str, str] | None = None) -> Plan:
        """Check what was sent; say what to draw, from the pictures of ``own`` where they are given.

        Raises:
            ValueError: names the unit, the setting, its value and what is allowed; or there is no picture.
        """
        run = {**values, "prompt": _text(values["prompt"])}
        run = {s.name: s.check(run[s.name]) for s in (PROMPT, *self.run)}
        sources: list[Source] = []
        for number in self.numbers:
            try:
                place = f"image_{number}"
                path = file_path(values[place]) if own is None else own.get(place)
                if path is not None:
                    sources.append(self._source(number, path, values, run))
                    run["seed"] = sources[0].settings.seed  # a random one is drawn once
            except ValueError as error:
                raise ValueError(f"Unit {number}: {error}") from error
        if not sources:
            raise ValueError(NO_PICTURE)
        return Plan(self.page.name, tuple(sources), numbered=True)

    def _source(self, number: int, path: str, values: Mapping[str, Any], run: Mapping[str, Any]) -> Source:
        name = self.detector(number).check(values[f"detector_{number}"])
        app, own = self.apps[name], self.own[name]
        given = {slot: value for slot in self.slots if (value := values[f"{slot}_{number}"]) is not None}
        for slot in given.keys() - {s.name for s in own}:
            raise ValueError(f"{name} has no control {slot}: it has {', '.join(s.name for s in own)}.")
        chosen = {s.name: given.get(s.name, s.default) for s in own}
        settings = parse({**run, **chosen}, (*self.run, *own))
        return Source(app, path, settings, f"Unit {number}", f"Map {number}: {app.tab}")
