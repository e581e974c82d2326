"""The apps: one module each, found by the ``APP`` that it defines."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TypeVar

from apps.spec import App, Joint, Page

__all__ = ["ALL", "App", "Page", "all_apps", "all_pages", "controls_of", "find_apps", "find_pages"]

ALL = "all"
_DEFINES_APP = re.compile(r"^APP\b", re.MULTILINE)
_PageT = TypeVar("_PageT", bound=Page)


@cache
def all_pages() -> tuple[Page, ...]:
    """Return all that can be opened, in the tabs' order; modules without an ``APP`` are not imported."""
    modules = [
        path.stem
        for path in sorted(Path(__file__).parent.glob("*.py"))
        if _DEFINES_APP.search(path.read_text(encoding="utf-8"))
    ]
    pages = [importlib.import_module(f"{__name__}.{module}").APP for module in modules]
    return tuple(sorted(pages, key=lambda page: (page.order, page.name)))


def all_apps() -> tuple[App, ...]:
    """Return the apps that draw, in the tabs' order."""
    return tuple(page for page in all_pages() if isinstance(page, App))


def find_pages(names: Sequence[str]) -> tuple[Page, ...]:
    """Return what these names, aliases or groups mean, in this order, each once.

    "all" means everything; no name at all means everything without a group.

    Raises:
        ValueError: there is no such app; lists those there are.
    """
    if ALL in map(_plain, names):
        return all_pages()
    if not names:
        return tuple(page for page in all_pages() if not page.group)
    members = {page.group: [p.name for p in all_pages() if p.group == page.group] for page in all_pages()}
    return _find([own for name in names for own in members.get(name.strip(), [name])], all_pages())


def find_apps(names: Sequence[str]) -> tuple[App, ...]:
    """Return the drawing apps of these names or aliases, in this order, each once; case does not matter.

    Raises:
        ValueError: there is no such app; lists those there are.
    """
    return _find(names, all_apps())


def controls_of(pages: Sequence[Page]) -> tuple[str, ...]:
    """Return the names of the ControlNets that these pages draw with, each once."""
    apps: list[App] = []
    for page in pages:
        if isinstance(page, App):
            apps.append(page)
        elif isinstance(page, Joint):
            apps += find_apps(page.apps)
    return tuple(dict.fromkeys(app.control for app in apps))


def _find(names: Sequence[str], among: Sequence[_PageT]) -> tuple[_PageT, ...]:
    known = {_plain(word): page for page in among for word in (page.name, *page.aliases)}
    found: dict[str, _PageT] = {}
    for name in names:
        page = known.get(_plain(name))
        if page is None:
            listed = ", ".join([*(page.name for page in among), ALL])
            raise ValueError(f"There is no app {name!r}: give one of {listed}.")
        found[page.name] = page
    return tuple(found.values())


def _plain(name: str) -> str:
    return name.strip().lower().replace("-", "_").removesuffix(".py")
