"""Folders of pictures: which files count, what comes of their names, their prompts, and files left whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from apps.batching.files import difference, replacing, save_map
from apps.batching.pictures import Picture, Prompts, find_pictures, output_names
from tests.apps.pictures import scene


def place(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return folder


def picture(source: str, folder: Path = Path("/nowhere")) -> Picture:
    return Picture(folder / source, source, source.rpartition(".")[0])


def test_pictures_come_by_name_and_other_files_do_not(tmp_path: Path) -> None:
    place(tmp_path, "b.JPG", "a.png", "c.webp", "notes.txt", "IMG_1.HEIC", ".hidden.png", "deep/d.png")
    found = find_pictures(tmp_path, tmp_path / "out")
    assert [p.source for p in found.pictures] == ["a.png", "b.JPG", "c.webp"]
    assert found.others == ("IMG_1.HEIC", "notes.txt")


def test_recursion_leaves_out_the_output_and_hidden_folders(tmp_path: Path) -> None:
    place(tmp_path, "a.png", "deep/deeper/b.png", "out/a.png", "out/maps/a.png", ".trash/c.png")
    found = find_pictures(tmp_path, tmp_path / "out", recursive=True)
    assert [p.source for p in found.pictures] == ["a.png", "deep/deeper/b.png"]


@pytest.mark.parametrize(
    ("files", "message"),
    [((), "nothing that can be read"), (("IMG_1.HEIC", "x.mov"), "2 other files, such as IMG_1.HEIC")],
)
def test_a_folder_without_pictures_says_what_it_holds(
    tmp_path: Path, files: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        find_pictures(place(tmp_path, *files), tmp_path / "out")


@pytest.mark.parametrize(
    ("sources", "names"),
    [
        (["a.jpg", "b.png"], ["a", "b"]),
        (["a.jpg", "a.png"], ["a.jpg", "a.png"]),
        (["A.jpg", "a.png"], ["A.jpg", "a.png"]),
        (["A.jpg", "a.jpg"], ["A.jpg", "a.jpg_"]),
        (["a.jpg", "a.jpg.png", "a.png"], ["a.jpg", "a.jpg_", "a.png"]),
        (["x/a.jpg", "y/a.jpg"], ["x/a", "y/a"]),
        (["a.png", "maps/a.png"], ["a", "in_maps/a"]),
        (["caf\u00e9.jpg", "cafe\u0301.png"], ["caf\u00e9.jpg", "cafe\u0301.png"]),
    ],
)
def test_no_two_pictures_share_a_name(sources: list[str], names: list[str]) -> None:
    assert output_names(sources, reserved=("maps",)) == names


def test_own_prompts_go_before_the_text_beside_and_that_before_the_one_for_all(tmp_path: Path) -> None:
    lines = tmp_path / "prompt.json"
    lines.write_text(
        '{"source": "source/a.png", "target": "target/a.png", "prompt": "a fox"}\n\n'
        '{"name": "b.jpg", "prompt": "ein Bär"}\n',
        encoding="utf-8-sig",
    )
    for name in ("a", "c"):
        (tmp_path / f"{name}.txt").write_text("two\n lines \n")
    prompts = Prompts(lines, "for all")
    asked = [prompts.of(picture(source, tmp_path)) for source in ("a.jpg", "b.jpg", "c.jpg", "d.jpg")]
    assert asked == ["a fox", "ein Bär", "two lines", "for all"]
    assert Prompts().of(picture("d.jpg")) is None


def test_a_picture_in_a_folder_does_not_take_the_prompt_of_its_namesake(tmp_path: Path) -> None:
    lines = tmp_path / "p.json"
    lines.write_text('{"source": "x/a.png", "prompt": "in x"}\n')
    prompts = Prompts(lines, bare=False)
    assert prompts.of(picture("x/a.jpg")) == "in x"
    assert prompts.of(picture("y/a.jpg")) is None
    assert Prompts(lines).of(picture("a.jpg")) == "in x"  # the list's own folder is no matter


def test_two_prompts_for_one_picture_are_refused_unless_its_whole_name_tells(tmp_path: Path) -> None:
    lines = tmp_path / "p.json"
    lines.write_text('{"source": "a.png", "prompt": "one"}\n{"source": "a.jpg", "prompt": "two"}\n')
    prompts = Prompts(lines)
    assert prompts.of(picture("a.jpg")) == "two"
    with pytest.raises(ValueError, match="several prompts for a: keep one"):
        prompts.of(picture("a.webp"))


@pytest.mark.parametrize("line", ["words", '["a"]', '{"source": "a.png"}', '{"prompt": "x"}', '{"name": 3}'])
def test_a_wrong_line_of_prompts_is_named(tmp_path: Path, line: str) -> None:
    lines = tmp_path / "p.json"
    lines.write_text('{"source": "a.png", "prompt": "x"}\n' + line + "\n")
    with pytest.raises(ValueError, match="line 2 .*give"):
        Prompts(lines)


def test_a_text_beside_that_is_no_text_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(ValueError, match="a.txt beside it is no UTF-8"):
        Prompts().of(picture("a.png", tmp_path))


def test_a_file_that_fails_half_way_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def fail_half_way() -> None:
        with replacing(path) as handle:
            handle.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_half_way()
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a.png", b"old")]
    with replacing(path) as handle:
        handle.write(b"new")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a.png", b"new")]


def test_a_difference_is_told_by_name_with_both_values() -> None:
    facts = {"source": "a.png", "source_digest": "1", "steps": 20, "prompt": "a fox"}
    assert difference(facts, dict(facts, more=1)) == ""
    assert difference({**facts, "steps": 30}, facts) == "steps was 20, now 30"
    assert "another picture, b.png" in difference(facts, {**facts, "source": "b.png"})
    assert "has changed" in difference(facts, {**facts, "source_digest": "2"})
    assert "not made by such a run" in difference(facts, None)


def test_a_map_is_stored_without_loss(tmp_path: Path) -> None:
    from core.images import to_rgb

    image = np.asarray(scene())
    save_map(image, tmp_path / "a.png", {"source": "a.png"})
    assert np.array_equal(to_rgb(tmp_path / "a.png"), image)
