from __future__ import annotations

import threading
from contextvars import ContextVar

import pytest
import torch

from core.runtime.threads import in_own_thread

WORD: ContextVar[str] = ContextVar("word", default="none")


def test_work_is_done_in_a_thread_that_ends_with_it() -> None:
    used: list[threading.Thread] = []

    def work() -> float:
        used.append(threading.current_thread())
        return float((torch.ones(400, 400) @ torch.ones(400, 1)).sum())

    assert in_own_thread(work) == 400.0 * 400.0
    assert used[0] is not threading.current_thread() and not used[0].is_alive()


def test_errors_and_context_variables_pass_through() -> None:
    WORD.set("given")
    assert in_own_thread(WORD.get) == "given"

    def fail() -> None:
        raise ValueError("of the work itself")

    with pytest.raises(ValueError, match="of the work itself"):
        in_own_thread(fail)
