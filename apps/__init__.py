"""The apps: one module each, found by the ``APP`` that it defines."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from apps.spec import App

__all__ = ["App", "all_apps", "find_apps"]

_DEFINES_APP = re.compile(r"^APP\b", re.MULTILINE)


@cache
def all_apps() -> tuple[App, ...]:
    """Return every app, sorted by name; modules that define no ``APP`` are not imported."""
    modules = [
        path.stem
        for path in sorted(Path(__file__).parent.glob("*.py"))
        if _DEFINES_APP.search(path.read_text(encoding="utf-8"))
    ]
    apps = [importlib.import_module(f"{__name__}.{module}").APP for module in modules]
    return tuple(sorted(apps, key=lambda app: app.name))


def find_apps(names: Sequence[str]) -> tuple[App, ...]:
    """Return the apps of these names or aliases, in this order, each once; case does not matter.

    Raises:
        ValueError: there is no such app; lists those there are.
    """
    known = {_plain(word): app for app in all_apps() for word in (app.name, *app.aliases)}
    found: dict[str, App] = {}
    for name in names:
        app = known.get(_plain(name))
        if app is None:
            names = ", ".join(app.name for app in all_apps())
            raise ValueError(f"There is no app {name!r}: give one of {names}.")
        found[app.name] = app
    return tuple(found.values())


def _plain(name: str) -> str:
    return name.strip().lower().replace("-", "_").removesuffix(".py")
