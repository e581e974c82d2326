"""Let memory stay with the process: steps ask for the same blocks again and again."""

from __future__ import annotations

import ctypes
import os
import platform

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # malloc.h of glibc
AHEAD = 256 * 2**20  # bytes that the process asks for at once


def keep_freed_memory() -> bool:
    """Keep what is freed, and let large tensors lie in large pages; tell whether the system can do it.

    Otherwise glibc gives every large tensor back to the system, which has to clear each page anew for the
    next step. Call it before the first tensor is made. It is for glibc on Linux, and lasts as long as the
    process; the environment's own ``THP_MEM_ALLOC_ENABLE`` goes first.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch reads it at its first allocation
    libc = ctypes.CDLL(None)
    wanted = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, AHEAD))
    return all(libc.mallopt(*each) == 1 for each in wanted)
