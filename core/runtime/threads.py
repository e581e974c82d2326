"""Where to compute on a CPU: in a thread that ends with the work."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

T = TypeVar("T")


def in_own_thread(work: Callable[[], T]) -> T:
    """Return what ``work`` returns, or raise what it raises, from a thread that ends with it.

    For a server, whose threads stay. torch computes with OpenMP, which gives every thread that has ever
    computed helpers of its own, for as long as that thread lives. Once they are more than the processors, no
    helper waits at the ready any more: all sleep after each operation. Whoever draws next, in another thread,
    takes a quarter to a half longer, though the others do nothing.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="compute") as pool:
        return pool.submit(copy_context().run, work).result()
