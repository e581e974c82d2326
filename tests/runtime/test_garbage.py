"""The making of lasting objects without collections."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator

import pytest

from core.runtime.garbage import lasting


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    yield
    gc.unfreeze()
    gc.enable()


def test_nothing_is_collected_meanwhile_and_later_nothing_looks_at_what_came_about() -> None:
    begun: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        begun.append(info["generation"])

    gc.callbacks.append(note)
    try:
        with lasting():
            made = [[number] for number in range(100_000)]
            assert begun == []
    finally:
        gc.callbacks.remove(note)
    assert gc.isenabled() and gc.get_freeze_count() >= len(made)
    assert not any(each is made for each in gc.get_objects())


def test_an_error_lets_collecting_go_on() -> None:
    with pytest.raises(ValueError, match="broken"), lasting():
        raise ValueError("broken")
    assert gc.isenabled()


def test_where_nothing_was_collected_nothing_is_afterwards() -> None:
    gc.disable()
    with lasting(), lasting():
        assert not gc.isenabled()
    assert not gc.isenabled()


def test_garbage_made_later_is_found() -> None:
    code = """
import gc, weakref
from core.runtime.garbage import lasting
class Thing: pass
with lasting():
    kept = Thing()
loop = Thing(); loop.self = loop
seen = weakref.ref(loop)
del loop
gc.collect()
assert seen() is None and kept is not None
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
