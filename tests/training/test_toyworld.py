"""The toy world: one picture for a seed, and words that are true of it."""

import hashlib
import itertools
import random
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from core.training.toyworld import (
    EVAL_SEED_BASE,
    Scene,
    SceneObject,
    SpriteLibrary,
    SpritesMissing,
    default_cache_dir,
    fetch_sprites,
    make_scene,
    split_words,
    vocabulary,
)
from core.training.toyworld.backgrounds import article
from core.training.toyworld.captions import NEGATIVE_PROMPT, NUMBERS, relation
from core.training.toyworld.layout import is_held_out
from core.training.toyworld.objects import all_objects
from core.training.toyworld.palette import PAINTS, SHIFT_COLORS, repaint
from core.training.toyworld.places import PAINTERS
from core.training.toyworld.sprites import TARBALL, make_sprite

RGB = {"red": (220, 30, 40), "green": (60, 180, 80), "blue": (40, 110, 230), "brown": (150, 90, 50)}


def synthetic_library() -> SpriteLibrary:
    """Draw every object of the table as a disc or a square with an anti-aliased rim."""
    y, x = np.mgrid[:128, :128].astype(np.float32) - 63.5
    disc = np.clip(56 - np.hypot(x, y), 0, 1)
    square = np.clip(50 - np.maximum(np.abs(x), np.abs(y * 0.8)), 0, 1)
    sprites = {}
    for i, spec in enumerate(all_objects()):
        rgba = np.zeros((128, 128, 4), np.uint8)
        rgba[..., :3] = RGB.get(spec.color or "", (40 + i % 160, 200 - i % 160, 90))
        rgba[..., 3] = np.rint((disc if i % 2 else square) * 255)
        sprites[spec.name] = make_sprite(rgba)
    return SpriteLibrary(all_objects(), sprites)


LIBRARY = synthetic_library()
SCENES = [make_scene(seed, LIBRARY, 64) for seed in range(500)]
EVALUATION = [make_scene(EVAL_SEED_BASE + i, LIBRARY, 64) for i in range(300)]


def digest(scene: Scene) -> str:
    """Hash all that a scene is."""
    whole = scene.image.tobytes() + scene.index_map.tobytes()
    return hashlib.sha256(whole + repr((scene.caption, scene.objects, scene.horizon)).encode()).hexdigest()


def test_a_seed_makes_the_same_bytes_in_any_order_and_with_any_history() -> None:
    fresh = synthetic_library()
    for seed in (17, 3, 499, 3):
        assert digest(make_scene(seed, fresh, 64)) == digest(SCENES[seed])


def test_a_seed_makes_the_same_bytes_in_another_process() -> None:
    code = (
        "from tests.training.test_toyworld import digest, make_scene, LIBRARY;"
        "print(*[digest(make_scene(s, LIBRARY, 64)) for s in (5, 41, 260)])"
    )
    root = Path(__file__).parents[2]
    out = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert out.stdout.split() == [digest(SCENES[s]) for s in (5, 41, 260)]


def test_seeds_make_different_pictures() -> None:
    assert len({digest(scene) for scene in SCENES}) == len(SCENES)


@pytest.mark.parametrize("size", [64, 96, 256])
def test_the_picture_has_the_size_and_type_asked_for(size: int) -> None:
    scene = make_scene(7, LIBRARY, size)
    assert scene.image.shape == (size, size, 3) and scene.image.dtype == np.uint8
    assert scene.index_map.shape == (size, size) and scene.index_map.dtype == np.uint8
    assert 0 < scene.horizon < size


def test_bad_seeds_and_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="seed is -1"):
        make_scene(-1, LIBRARY)
    with pytest.raises(ValueError, match="size is 8"):
        make_scene(0, LIBRARY, 8)


def test_a_framed_scene_shows_one_thing_large_in_the_middle_and_never_mirrored() -> None:
    scenes = [make_scene(seed, LIBRARY, 64, framed=True) for seed in range(200)]
    for scene in scenes:
        (thing,) = scene.objects
        x0, y0, x1, y1 = thing.box
        assert not thing.flipped and not scene.held_out
        assert abs((x0 + x1) / 2 - 32) < 4 and max(x1 - x0, y1 - y0) > 32
        assert 0 <= y0 < y1 <= 63
    assert len({scene.objects[0].name for scene in scenes}) > 0.2 * len(LIBRARY.specs)
    assert {scene.place for scene in scenes} == {scene.place for scene in SCENES}
    assert digest(make_scene(3, LIBRARY, 64, framed=True)) == digest(scenes[3]) != digest(SCENES[3])


@pytest.mark.parametrize("place", sorted(PAINTERS))
def test_every_place_paints_every_pixel_and_says_its_colors(place: str) -> None:
    for seed in range(20):
        background = PAINTERS[place](random.Random(seed), 64)
        assert background.image.shape == (64, 64, 3) and background.image.max(axis=2).min() > 0
        assert 0 < background.stand[0] < background.stand[1] < 1
        assert background.phrases and background.air_phrases
        words = set(" ".join(background.phrases + background.air_phrases).split())
        assert words & set(PAINTS) == set(background.colors)


def test_color_words_are_said_only_if_true_and_always_if_a_thing_was_repainted() -> None:
    for scene in SCENES + EVALUATION:
        said = set(split_words(scene.caption)) & set(PAINTS)
        true = {obj.color for obj in scene.objects if obj.color} | set(scene.place_colors)
        true |= {color for obj in scene.objects if obj.person for color in obj.person.colors}
        assert said <= true, scene.caption
        if " people" in scene.caption:
            assert all(obj.person for obj in scene.objects)
            continue
        phrases = noun_phrases(scene, scene.caption)
        assert {obj.name for _, obj in phrases} == {obj.name for obj in scene.objects}, scene.caption
        for word, obj in phrases:
            assert word == obj.color if obj.repainted else word not in set(PAINTS) - {obj.color}


def noun_phrases(scene: Scene, text: str) -> list[tuple[str, SceneObject]]:
    """Find every name of a thing in a text with the word before it, in the order of the text."""
    things = {name: obj for obj in scene.objects for name in (obj.name, obj.plural)}
    names = "|".join(sorted(things, key=len, reverse=True))  # "bell pepper" before "bell"
    return [(m[1], things[m[2]]) for m in re.finditer(rf"\b([a-z0-9]+) ({names})\b", text)]


def test_left_right_and_above_agree_with_the_boxes() -> None:
    seen = set()
    for scene in (make_scene(seed, LIBRARY, 64) for seed in range(3000)):
        for words in ("to the left of", "to the right of", "above", "in front of", "behind"):
            text = scene.caption.replace(" seen from behind", "")
            names = {obj.name for obj in scene.objects}
            if f" {words} " not in text or len(scene.objects) < 2 or len(names) < len(scene.objects):
                continue
            before, after = text.split(f" {words} ", 1)
            first, second = noun_phrases(scene, before.split(", and ")[-1]), noun_phrases(scene, after)
            if not first or not second:  # said of the place: "in front of a yellow wall"
                continue
            a, b = first[0][1], second[0][1]
            seen.add(words)
            if words == "to the left of":
                assert sum(a.box[::2]) < sum(b.box[::2])
            elif words == "to the right of":
                assert sum(a.box[::2]) > sum(b.box[::2])
            elif words == "above":
                assert sum(a.box[1::2]) < sum(b.box[1::2])
            else:
                assert (a.foot > b.foot) == (a.depth > b.depth) == (words == "in front of")
    assert seen == {"to the left of", "to the right of", "above", "in front of", "behind"}


def test_counts_are_true() -> None:
    for scene in SCENES:
        names = [obj.name for obj in scene.objects]
        if len(set(names)) == 1 and len(names) > 1 and not scene.people:
            assert f"{NUMBERS[len(names)]} " in scene.caption and scene.objects[0].plural in scene.caption


def test_relation_is_antisymmetric() -> None:
    opposite = {"to the left of": "to the right of", "in front of": "behind"}
    opposite |= {b: a for a, b in opposite.items()}
    for scene in SCENES:
        for a, b in itertools.combinations(scene.objects, 2):
            if "above" not in (forward := relation(a, b), backward := relation(b, a)) and forward:
                assert backward == opposite[forward]


def test_the_index_map_shows_every_thing_inside_its_box() -> None:
    for scene in SCENES:
        assert set(np.unique(scene.index_map)) <= set(range(len(scene.objects) + 1))
        for obj in scene.objects:
            rows, columns = np.nonzero(scene.index_map == obj.depth)
            x0, y0, x1, y1 = obj.box
            assert 0 <= x0 < x1 <= 64 and 0 <= y0 < y1 <= 64
            share = 0.06 if obj.person else 0.2  # arms spread wide leave much of the box empty
            assert rows.size > share * (x1 - x0) * (y1 - y0), (scene.seed, obj.name)
            assert x0 <= columns.min() and columns.max() < x1 and y0 <= rows.min() and rows.max() < y1


def test_things_number_from_far_to_near() -> None:
    for scene in SCENES:
        assert [obj.depth for obj in scene.objects] == list(range(1, len(scene.objects) + 1))
        standing = [obj.foot for obj in scene.objects if obj.stand != "air"]
        assert standing == sorted(standing)
        assert all(foot > scene.horizon for foot in standing)


def test_half_of_the_scenes_show_one_large_thing() -> None:
    large = [
        s for s in SCENES if len(s.objects) == 1 and s.objects[0].box[3] - s.objects[0].box[1] >= 0.39 * 64
    ]  # fmt: skip
    assert 0.45 < len(large) / len(SCENES) < 0.65


def test_about_a_third_of_the_things_are_repainted() -> None:
    repainted = [obj.repainted for scene in SCENES for obj in scene.objects if not obj.person]
    assert 0.22 < float(np.mean(repainted)) < 0.42


def test_held_out_combinations_are_never_seen_in_training_but_in_evaluation() -> None:
    for scene in SCENES:
        assert not scene.held_out
        for obj in scene.objects:
            assert not is_held_out(obj.name, scene.place)
            assert not (obj.repainted and is_held_out(obj.name, obj.color or ""))
    for scene in EVALUATION:
        if any(is_held_out(obj.name, scene.place) for obj in scene.objects):
            assert scene.held_out
    assert 0.1 < sum(scene.held_out for scene in EVALUATION) / len(EVALUATION) < 0.35


def test_several_hundred_things_have_names_of_known_words_and_a_class() -> None:
    known = set(vocabulary())
    things = all_objects()
    assert len(things) >= 300
    assert len({spec.name for spec in things}) == len({spec.code for spec in things}) == len(things)
    for spec in things:
        assert set(split_words(f"{spec.name} {spec.plural} {spec.category}")) <= known, spec.name
        assert not set(split_words(spec.name)) & set(PAINTS), spec.name
        assert spec.color is None or spec.color in PAINTS
        assert 0 <= spec.ade < 150 and spec.places > {"studio"}


def test_the_vocabulary_covers_all_captions() -> None:
    known = set(vocabulary())
    for scene in SCENES + EVALUATION:
        assert set(split_words(scene.caption)) <= known, scene.caption
    assert set(split_words(NEGATIVE_PROMPT + ", best quality, extremely detailed")) <= known
    assert 1500 < len(known) < 8000 and vocabulary() == sorted(known)


@pytest.mark.parametrize("word", SHIFT_COLORS)
def test_a_repainted_sprite_has_the_color_that_is_said(word: str) -> None:
    red = np.zeros((32, 32, 4), np.uint8)
    red[4:28, 4:28] = (*RGB["red"], 255)
    painted = repaint(red, "red", word)
    assert np.array_equal(painted[..., 3], red[..., 3])
    h, s, v = PAINTS[word]
    meant = cv2.cvtColor(np.array([[[h, s, v]]], np.float32), cv2.COLOR_HSV2RGB)[0, 0] * 255
    assert painted[16, 16, :3] == pytest.approx(meant, abs=12)


def test_repainting_leaves_other_hues_alone() -> None:
    two = np.zeros((32, 32, 4), np.uint8)
    two[:, :24] = (*RGB["red"], 255)
    two[:, 24:] = (*RGB["blue"], 255)
    assert np.abs(repaint(two, "red", "green")[:, 24:].astype(int) - two[:, 24:]).max() <= 1


def test_scaled_sprites_stay_premultiplied() -> None:
    sprite = LIBRARY.sprite("car")
    for width, height in ((20, 16), (60, 50), (300, 260)):
        scaled = sprite.at(width, height)
        assert scaled.shape == (height, width, 4)
        assert (scaled[..., :3].max(axis=2).astype(int) <= scaled[..., 3].astype(int) + 1).all()


def test_articles() -> None:
    assert [article(w) for w in ("apple", "car", "unicorn", "owl", "umbrella")] == [
        "an apple", "a car", "a unicorn", "an owl", "an umbrella",
    ]  # fmt: skip


def test_object_names_hold_no_color_words_and_are_unique() -> None:
    names = [spec.name for spec in all_objects()]
    assert len(set(names)) == len(names) >= 60
    assert not {word for name in names for word in name.split()} & set(PAINTS)


def test_missing_npm_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(SpritesMissing, match="install Node.js"):
        fetch_sprites(tmp_path)


def test_a_wrong_tarball_is_refused(tmp_path: Path) -> None:
    (tmp_path / TARBALL).write_bytes(b"not a package")
    with pytest.raises(SpritesMissing, match="delete it"):
        fetch_sprites(tmp_path)


@pytest.mark.skipif(not (default_cache_dir() / TARBALL).exists(), reason="the sprite cache is not there")
def test_the_real_sprites_load_and_compose() -> None:
    library = SpriteLibrary.load()
    scene = make_scene(0, library)
    assert scene.image.shape == (256, 256, 3) and scene.image.std() > 10
    for spec in library.specs:
        assert library.sprite(spec.name).levels[0].shape[0] >= 60
