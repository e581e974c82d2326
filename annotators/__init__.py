"""What turns a photo into a hint: one module a detector, found by name and imported only when asked for."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from annotators.base import Annotator

__all__ = ["load", "names"]

SHARED = {"base", "maps", "networks", "ade20k", "skeleton"}  # what several detectors use


def names() -> tuple[str, ...]:
    """Return the detectors' names, sorted: the modules beside this one, none of them imported."""
    found = (m.name for m in pkgutil.iter_modules(__path__) if not m.ispkg)
    return tuple(sorted(set(found) - SHARED))


@cache
def load(name: str) -> Annotator:
    """Return the one shared detector of this name; its weights load when it first detects.

    Raises:
        ValueError: there is no such detector; lists those there are.
    """
    from annotators.base import Annotator

    if name not in names():
        raise ValueError(f"There is no detector {name!r}: give one of {', '.join(names())}.")
    module = importlib.import_module(f"{__name__}.{name}")
    own = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Annotator) and value.__module__ == module.__name__
    ]
    if len(own) != 1:
        raise TypeError(f"annotators/{name}.py defines {len(own)} Annotators: keep exactly one in it.")
    return own[0]()
