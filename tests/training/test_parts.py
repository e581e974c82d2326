"""Files in parts come back as they were, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.training.__main__ import main
from core.training.parts import join, split


def test_a_file_comes_back_from_its_parts(tmp_path: Path) -> None:
    whole = tmp_path / "checkpoint.pt"
    whole.write_bytes(bytes(range(250)))
    parts = split(whole, tmp_path / "parts", 100)
    assert [part.stat().st_size for part in parts] == [100, 100, 50]
    join(tmp_path / "parts", tmp_path / "new" / "checkpoint.pt")
    assert (tmp_path / "new" / "checkpoint.pt").read_bytes() == whole.read_bytes()


def test_the_parts_of_a_larger_file_do_not_stay(tmp_path: Path) -> None:
    whole = tmp_path / "x"
    whole.write_bytes(bytes(500))
    split(whole, tmp_path / "parts", 100)
    whole.write_bytes(bytes(100))
    split(whole, tmp_path / "parts", 100)
    join(tmp_path / "parts", tmp_path / "new" / "x")
    assert (tmp_path / "new" / "x").read_bytes() == bytes(100)


def test_a_missing_part_is_told_and_the_old_file_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = tmp_path / "x"
    whole.write_bytes(b"old")
    split(whole, tmp_path / "parts", 1)
    (tmp_path / "parts" / "x.001").unlink()
    assert main(["join", str(tmp_path / "parts"), str(whole)]) == 1
    assert "x.sha256" in capsys.readouterr().err and whole.read_bytes() == b"old"
    assert main(["split", str(whole), str(tmp_path / "parts")]) == 0
    assert main(["join", str(tmp_path / "parts"), str(whole)]) == 0
