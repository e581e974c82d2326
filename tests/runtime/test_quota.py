"""In a container, torch computes with as many threads as there are processors for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from core.runtime import quota as module
from core.runtime.quota import THREADS, compute_within_quota, quota

ROOT = Path(__file__).parents[2]


def group(folder: Path, **files: str) -> None:
    """Write a control group; "__" in a name stands for a dot."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")


def of(tmp_path: Path, lines: str) -> float | None:
    """Return the quota of a process in these groups."""
    (tmp_path / "mine").write_text(lines)
    return quota(tmp_path / "mine", tmp_path / "tree")


@pytest.mark.parametrize(
    ("given", "share"), [("200000 100000", 2.0), ("150000 100000", 1.5), ("max 100000", None), ("", None)]
)
def test_a_container_sees_its_own_group_as_the_root(tmp_path: Path, given: str, share: float | None) -> None:
    group(tmp_path / "tree", cpu__max=given)
    assert of(tmp_path, "0::/\n") == share


def test_the_narrowest_group_on_the_way_to_the_root_counts(tmp_path: Path) -> None:
    group(tmp_path / "tree" / "all", cpu__max="300000 100000")
    group(tmp_path / "tree" / "all" / "some", cpu__max="max 100000")
    group(tmp_path / "tree" / "all" / "some" / "one", cpu__max="800000 100000")
    assert of(tmp_path, "0::/all/some/one\n") == 3.0


@pytest.mark.parametrize("kinds", ["cpu,cpuacct", "cpu"])
def test_groups_of_the_first_version_say_it_too(tmp_path: Path, kinds: str) -> None:
    group(tmp_path / "tree" / kinds, cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    group(tmp_path / "tree" / kinds / "one", cpu__cfs_quota_us="50000", cpu__cfs_period_us="100000")
    others = "9:cpuset:/one\n2:cpuacct:/\n0::/\n"
    assert of(tmp_path, f"{others}1:{kinds}:/one\n") == 0.5
    assert of(tmp_path, f"{others}1:{kinds}:/\n") is None


def test_where_nothing_is_said_there_is_no_quota(tmp_path: Path) -> None:
    assert quota(tmp_path / "missing", tmp_path) is None
    assert of(tmp_path, "0::/gone\n") is None
    assert of(tmp_path, "of another kind\n") is None


@pytest.mark.parametrize(
    ("share", "threads"), [(2.0, "2"), (1.5, "2"), (0.25, "1"), (8.0, None), (9.0, None), (None, None)]
)
def test_there_are_no_more_threads_than_processors_to_use(
    monkeypatch: pytest.MonkeyPatch, share: float | None, threads: str | None
) -> None:
    monkeypatch.setattr(module, "_visible", lambda: 8)
    monkeypatch.setattr(module, "quota", lambda: share)
    monkeypatch.setenv(THREADS, "")  # so that it is as it was after the test
    monkeypatch.delenv(THREADS)
    compute_within_quota()
    assert os.environ.get(THREADS) == threads
    monkeypatch.setenv(THREADS, "5")
    compute_within_quota()
    assert os.environ[THREADS] == "5"


def test_the_page_says_it_before_torch_comes_and_torch_heeds_it() -> None:
    code = (
        "import sys, launch; from core.runtime import quota as q; q.quota = lambda: 1.0; "
        "q._visible = lambda: 8; launch.main(['--list']); assert 'torch' not in sys.modules; "
        "import torch; print('threads', torch.get_num_threads())"
    )
    env = {name: value for name, value in os.environ.items() if name != THREADS}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("threads 1\n")
