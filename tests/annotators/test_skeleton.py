"""Skeletons: drawn as the original draws them; to JSON and back, also from files that nobody vouches for."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from annotators.skeleton import (
    BODY_COLOURS,
    BODY_NAMES,
    DRAWN_LIMBS,
    HAND_LIMBS,
    LIMBS,
    Person,
    draw,
    from_json,
    scale,
    to_json,
)
from tests.annotators.pose_maps import BODIES, CASES, SIZE, drawn


def golden_people(case: str) -> list[Person]:
    peaks = np.concatenate([BODIES[f"{case}.candidate"][:, :3], np.zeros((1, 3))]).astype(np.float64)
    return [Person(peaks[row[:18].astype(int)]) for row in BODIES[f"{case}.subset"]]


def body(**points: tuple[float, float]) -> NDArray[np.float64]:
    made = np.zeros((18, 3))
    for name, (x, y) in points.items():
        made[BODY_NAMES.index(name.replace("_", " "))] = x, y, 1
    return made


def hand(*points: int) -> NDArray[np.float64]:
    made = np.zeros((21, 3))
    for i in points:
        made[i] = 20 + 5 * i, 30 + i, 0.5
    return made


def one(**values: Any) -> dict[str, Any]:
    return {"people": [values], "canvas_width": 384, "canvas_height": 320}


@pytest.mark.parametrize("case", CASES)
def test_people_are_drawn_as_the_original_draws_them(case: str) -> None:
    assert np.array_equal(draw(golden_people(case), SIZE), drawn(f"pose.{case}"))


def test_nobody_is_black() -> None:
    made = draw([], (30, 40))
    assert made.shape == (30, 40, 3) and made.dtype == np.uint8 and not made.any()


def test_limbs_are_those_of_the_published_maps() -> None:
    assert len(LIMBS) == 19 and len(DRAWN_LIMBS) == 17 and len(BODY_COLOURS) == 18
    named = [(BODY_NAMES[a], BODY_NAMES[b]) for a, b in LIMBS]
    assert named[2] == ("right shoulder", "right elbow") and named[18] == ("left shoulder", "left ear")
    assert len(set(named)) == 19
    assert HAND_LIMBS[:6] == ((0, 1), (1, 2), (2, 3), (3, 4), (0, 5), (5, 6)) and HAND_LIMBS[-1] == (19, 20)


def test_a_limb_needs_both_ends() -> None:
    made = draw([Person(body(neck=(20, 20), right_elbow=(60, 20)))], (40, 80))
    assert made[20, 20].tolist() == [255, 85, 0] and made[20, 60].tolist() == [255, 255, 0]
    assert not made[:, 30:50].any()


def test_a_limb_covers_six_tenths() -> None:
    made = draw([Person(body(neck=(20, 20), right_shoulder=(60, 20)))], (40, 80))
    assert made[20, 40].tolist() == [153, 0, 0]  # 0.6 of red on black


def test_a_joint_of_a_hand_that_was_not_found_is_not_drawn() -> None:
    made = draw([Person(body(), hand(0, 1, 3))], (64, 64))
    assert not made[:12, :12].any()
    assert made[30, 20].tolist() == [0, 0, 255] and made[33, 35].tolist() == [0, 0, 255]
    assert not made[:26].any() and not made[:, :16].any()


def test_a_joint_of_a_hand_on_the_edge_is_drawn() -> None:
    points = np.zeros((21, 3))
    points[0], points[1] = (0, 0, 0.9), (30, 0, 0.9)
    made = draw([Person(body(), None, points)], (40, 40))
    assert made[0, 0].tolist() == [0, 0, 255] and made[0, 15].any()


@pytest.mark.parametrize("case", CASES)
def test_json_keeps_everything(case: str) -> None:
    people = golden_people(case)
    if people:
        people[0] = Person(people[0].body, hand(0, 1, 2), hand())
    text = json.dumps(to_json(people, SIZE), allow_nan=False)
    for written in (text, text.encode(), json.loads(text)):
        read, size = from_json(written)
        assert size == SIZE and len(read) == len(people)
        for before, after in zip(people, read, strict=True):
            assert np.array_equal(before.body, after.body)
            assert [h.tolist() for h in before.hands] == [h.tolist() for h in after.hands]
        assert np.array_equal(draw(read, size), draw(people, SIZE))


def test_scaling_there_and_back_changes_nothing() -> None:
    people = [Person(p.body, hand(1), None) for p in golden_people("all")]
    back = scale(scale(people, SIZE, (512, 640)), (512, 640), SIZE)
    for before, after in zip(people, back, strict=True):
        np.testing.assert_allclose(after.body, before.body, atol=1e-9)
        assert after.left_hand is not None and after.right_hand is None
    larger = scale(people, SIZE, (640, 384))[0].body
    np.testing.assert_allclose(larger, people[0].body * [1, 2, 1])


def test_shares_of_the_canvas_are_taken_too() -> None:
    flat = (body(neck=(0.5, 0.25), nose=(0.25, 1.0))).ravel().tolist()
    people, _ = from_json(one(pose_keypoints_2d=flat))
    assert people[0].body[1].tolist() == [192, 80, 1] and people[0].body[0].tolist() == [96, 320, 1]


def test_the_newer_list_of_25_points_is_taken_too() -> None:
    points = np.zeros((25, 3))
    points[[1, 8, 9, 15, 18, 24]] = [[n, n, 1] for n in (10, 80, 90, 150, 180, 240)]
    people, _ = from_json(one(pose_keypoints_2d=points.ravel().tolist()))
    found = {name: x for name, (x, _, score) in zip(BODY_NAMES, people[0].body, strict=True) if score}
    assert found == {"neck": 10, "right hip": 90, "right eye": 150, "left ear": 180}


def test_what_is_missing_and_what_is_unknown_does_not_matter() -> None:
    given = one(
        hand_left_keypoints_2d=None, hand_right_keypoints_2d=[], face_keypoints_2d=[1, 2], person_id=[-1]
    )
    people, _ = from_json(given | {"version": 1.3})
    assert not people[0].body.any() and people[0].hands == ()


FULL = [10.0, 10.0, 1.0] * 18


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("{", "are no JSON"),
        (b"\xff\xfe", "are no JSON"),
        ("[" * 100_000, "are no JSON"),
        (" " * 4_000_001, "4000001 characters"),
        (None, '"people"'),
        ([], '"people"'),
        ({"people": {}}, '"people"'),
        ({"people": []}, "canvas_height is None"),
        ({"people": [], "canvas_height": 0, "canvas_width": 5}, "canvas_height is 0"),
        ({"people": [], "canvas_height": True, "canvas_width": 5}, "canvas_height is True"),
        ({"people": [], "canvas_height": 5, "canvas_width": float("nan")}, "canvas_width is nan"),
        ({"people": [], "canvas_height": 5, "canvas_width": "9" * 500}, "canvas_width is '9999"),
        ({"people": [], "canvas_height": 16_000, "canvas_width": 16_000}, "at most 64000000"),
        ({"people": [{}] * 1001, "canvas_height": 5, "canvas_width": 5}, "1001 people"),
        ({"people": [5], "canvas_height": 5, "canvas_width": 5}, r"people\[0\] is no object"),
        (one(pose_keypoints_2d=[1, 2, 3]), r"people\[0\].pose_keypoints_2d is wrong.*54 or 75"),
        (one(pose_keypoints_2d="x"), "is wrong"),
        (one(hand_left_keypoints_2d=FULL), "hand_left_keypoints_2d is wrong.*63"),
        (one(pose_keypoints_2d=[*FULL[:-1], "x"]), "has 'x': give finite numbers"),
        (one(pose_keypoints_2d=[*FULL[:-1], None]), "has None"),
        (one(pose_keypoints_2d=[*FULL[:-1], True]), "has True"),
        (one(pose_keypoints_2d=[*FULL[:-1], float("nan")]), "has nan"),
        (one(pose_keypoints_2d=[*FULL[:-1], 10**400]), "has 1000"),
        (one(pose_keypoints_2d=[100_000.0, 10.0, 1.0, *FULL[3:]]), "far outside of the canvas, 384 x 320"),
    ],
)
def test_what_is_wrong_is_named(given: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        from_json(given)
    assert "give" in str(caught.value) and len(str(caught.value)) < 300


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
NUMBERS = st.lists(st.floats(-500, 900) | st.integers(-500, 900), min_size=54, max_size=54) | JSON
PEOPLE = st.lists(st.fixed_dictionaries({"pose_keypoints_2d": NUMBERS}) | JSON, max_size=3)
SIDES = st.integers(1, 400) | JSON


@given(given=JSON | st.fixed_dictionaries({"people": PEOPLE, "canvas_width": SIDES, "canvas_height": SIDES}))
@settings(max_examples=100, deadline=None)
def test_any_json_is_drawn_or_refused_with_words(given: Any) -> None:
    try:
        people, size = from_json(given)
    except ValueError as error:
        assert "give" in str(error)
        return
    if max(size) <= 400:
        assert draw(people, size).shape == (*size, 3)
