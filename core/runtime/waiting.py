"""How long a processor's threads wait at the ready for one another, before they sleep."""

from __future__ import annotations

import os

SPINS = "GOMP_SPINCOUNT"  # of GNU's OpenMP, which torch's wheels for Linux compute with
FEW = "3000"  # docs/performance.md, "Beside other programs"


def wait_briefly() -> None:
    """Let threads that wait for one another sleep soon, so that other work on the machine delays them less.

    A thread that has done its part of an operation asks again and again whether the others are done too, by
    default for milliseconds. Where other programs have some of the processors, it holds up the very thread
    that it waits for. It has no effect once torch is imported, nor where the user has said how to wait.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault(SPINS, FEW)
