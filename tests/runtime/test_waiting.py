"""Threads that wait for one another give their processor away soon."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from core.runtime.waiting import FEW, SPINS, wait_briefly

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (SPINS, "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # so that it is as it was after the test
        monkeypatch.delenv(name)


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    wait_briefly()
    assert SPINS not in os.environ
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setenv(SPINS, "7")
    wait_briefly()
    assert os.environ[SPINS] == "7"


def test_the_page_says_it_before_torch_comes_and_torch_heeds_it() -> None:
    code = (
        "import sys, launch; launch.main(['--list']); assert 'torch' not in sys.modules; "
        "import torch; print(torch.__version__)"
    )
    env = {**os.environ, "OMP_DISPLAY_ENV": "verbose"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if SPINS not in done.stderr:
        pytest.skip("torch computes with another OpenMP here")
    assert f"{SPINS} = '{FEW}'" in done.stderr
