"""Data of one's own are checked whole before training, and read as the networks need them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core.errors import SuiteError
from core.training.circles import css_colors, demo_colors, draw_circle, write_circles
from core.training.pairs import fit, open_pairs, read_index


def _copy(circles: Path, folder: Path) -> Path:
    shutil.copytree(circles, folder)
    return folder


def _add_line(folder: Path, line: str) -> None:
    with (folder / "prompt.json").open("a") as file:
        file.write(line + "\n")


def test_everything_that_is_wrong_is_named_at_once(circles: Path, tmp_path: Path) -> None:
    data = _copy(circles, tmp_path / "data")
    (data / "source" / "1.png").unlink()
    (data / "target" / "2.png").write_bytes(b"not a picture")
    whole = (data / "target" / "3.png").read_bytes()
    (data / "target" / "3.png").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (64, 128)).save(data / "target" / "4.png")
    Image.new("RGB", (32, 32)).save(data / "source" / "5.png")
    _add_line(data, "{half a line")
    _add_line(data, '{"source": "source/0.png", "target": "target/0.png"}')
    with pytest.raises(ValueError) as raised:
        open_pairs(data, (64, 64), tmp_path / "out", quiet=True)
    told = str(raised.value)
    for what in ("1 missing files", "2 unreadable pictures", "2 pictures of a wrong size", "2 broken lines"):
        assert what in told
    for line, name in ((2, "1.png"), (3, "2.png"), (4, "3.png"), (5, "4.png"), (6, "5.png")):
        assert any(f"line {line}:" in row and name in row for row in told.splitlines())
    assert "line 7: no JSON object" in told and "line 8: no text under prompt" in told


def test_a_long_report_is_written_whole(circles: Path, tmp_path: Path) -> None:
    data = _copy(circles, tmp_path / "data")
    for i in range(150):
        _add_line(data, json.dumps({"source": f"source/x{i}.png", "target": "target/0.png", "prompt": ""}))
    with pytest.raises(ValueError, match="150 missing files") as raised:
        open_pairs(data, (64, 64), tmp_path / "out", quiet=True)
    assert "and 50 more" in str(raised.value)
    assert len((tmp_path / "out" / "problems.txt").read_text().splitlines()) == 150


def test_what_passed_is_looked_at_again_only_where_a_file_changed(
    circles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = _copy(circles, tmp_path / "data")
    open_pairs(data, (64, 64), tmp_path / "out", quiet=True)
    monkeypatch.setattr("core.training.pairs._look", lambda pair: pytest.fail("looked again"))
    assert len(open_pairs(data, (64, 64), tmp_path / "out", quiet=True)) == 6
    monkeypatch.undo()
    (data / "target" / "2.png").write_bytes(b"no longer a picture")
    with pytest.raises(ValueError, match="1 unreadable"):
        open_pairs(data, (64, 64), tmp_path / "out", quiet=True)


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_a_folder_without_lines_says_what_belongs_there(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r'"source/0.png"'):
        read_index(tmp_path)
    (tmp_path / "prompt.json").write_text(text)
    with pytest.raises(ValueError, match="give a line for each pair"):
        read_index(tmp_path)


def test_a_picture_that_vanishes_later_is_named_with_its_line(circles: Path, tmp_path: Path) -> None:
    data = open_pairs(_copy(circles, tmp_path / "data"), (64, 64), tmp_path / "out", quiet=True)
    data.pairs[3].target.unlink()
    assert data.hint(3).shape == (64, 64, 3)
    with pytest.raises(SuiteError, match=r"line 4: .*3\.png can no longer be read"):
        data.target(3)


def test_a_picture_is_scaled_to_cover_the_size_and_cut_in_the_middle() -> None:
    wide = np.zeros((128, 384, 3), np.uint8)
    wide[:, 128:256] = 200  # the middle third
    assert (fit(wide, (64, 64)) == 200).all()
    assert fit(wide, (64, 192)).shape == (64, 192, 3)
    assert np.array_equal(fit(wide, (128, 384)), wide)
    line = np.zeros((64, 64, 3), np.uint8)
    line[:, 32] = 255
    grown = fit(line, (128, 128), is_hint=True)
    assert set(np.unique(grown[:, :60])) == {0}  # no ringing beside it


def test_circles_have_the_format_of_fill50k(tmp_path: Path) -> None:
    write_circles(tmp_path / "set", 3, side=128)
    pairs, problems = read_index(tmp_path / "set")
    assert not problems and len(pairs) == 3
    hint, target = np.asarray(Image.open(pairs[0].source)), np.asarray(Image.open(pairs[0].target))
    inside, ground = pairs[0].prompt.removesuffix(" background").split(" circle with ")
    colors = [tuple(color) for color in np.unique(target.reshape(-1, 3), axis=0).tolist()]
    assert css_colors()[inside] in colors and css_colors()[ground] in colors
    assert hint[0, 0].tolist() == [0, 0, 0] and hint.max() > 200
    with pytest.raises(ValueError, match="holds a data set already"):
        write_circles(tmp_path / "set", 3)


def test_the_outline_is_where_the_colours_meet() -> None:
    pair = draw_circle(0, 128, demo_colors())
    edge = np.abs(np.diff(pair.target.astype(int), axis=1)).sum(2) > 60
    assert edge.any() and (pair.hint[:, 1:][edge] > 0).mean() > 0.9


def test_every_colour_name_is_one_of_css() -> None:
    assert len(css_colors()) >= 139  # 148 less the second spellings, which ImageColor knows too
    assert css_colors()["pale golden rod"] == (238, 232, 170)
