"""Memory that training has freed stays with it."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from core.training import allocator

SCRIPT = """
import sys
from pathlib import Path
from core.training.allocator import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else False
import torch

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

before = resident()
tensor = torch.ones(64 * 2**20, dtype=torch.uint8)
del tensor
print(kept, resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator only")
def test_freed_memory_stays() -> None:
    for how, wanted in (("keep", True), ("leave", False)):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True, timeout=120
        )
        kept, megabytes = done.stdout.split()
        assert kept == str(wanted)
        assert (float(megabytes) > 48) == wanted, megabytes


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: pytest.fail("it was asked"))
    assert allocator.keep_freed_memory() is False
