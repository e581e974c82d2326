"""Ctrl-C and the end of a machine's time: training stops after the step it is in, and saves."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSign:
    """Is raised by the first Ctrl-C or SIGTERM; the second ends the process at once, as usual."""

    def __init__(self) -> None:
        """Begin lowered."""
        self.raised = False
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopSign:
        """Watch for the signals, where this thread may."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._raise) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        """Let the signals do what they did before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}

    def _raise(self, number: int, frame: FrameType | None) -> None:
        self.raised = True
        log.info("Stopping after this step; once more ends at once, back at the last checkpoint.")
        self.__exit__()
