"""Objects that last as long as the process are not searched for garbage again and again."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def lasting() -> Iterator[None]:
    """Let modules, the page, networks come about; collect nothing meanwhile, nor look at them later.

    For a process that serves. Torch and Gradio bring half a million objects, which a full collection looks
    through in 0.2 s, while no other thread runs Python; importing them sets off several. What there is at the
    end, of whichever thread, stays until the process ends, garbage too.
    """
    collected = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collected:
            gc.enable()
