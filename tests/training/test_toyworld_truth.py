"""What the toy world knows about its pictures: key points, nearness, normals and classes."""

import random

import cv2
import numpy as np
import pytest

from core.training.toyworld import Scene, make_scene, split_words, vocabulary
from core.training.toyworld.backgrounds import Background
from core.training.toyworld.mannequin import KINDS, make_mannequin
from core.training.toyworld.objects import PEOPLE, SOLIDS, all_objects
from core.training.toyworld.palette import PAINTS
from core.training.toyworld.places import PAINTERS
from core.training.toyworld.poses import FACE_POINTS, KEYPOINTS, POSES
from core.training.toyworld.sheet import maps, skeleton
from core.training.toyworld.solids import make_solid
from core.training.toyworld.truth import NORMAL_Z, PERSON, SKY, depth_normals, inflate
from tests.training.test_toyworld import LIBRARY, digest

SIZE = 96
SCENES = [make_scene(seed, LIBRARY, SIZE, truth=True) for seed in range(240)]
PEOPLE_SCENES = [scene for scene in SCENES if scene.people]


@pytest.mark.parametrize("seed", [0, 5, 17, 41, 99, 204])
def test_asking_for_the_truth_changes_nothing_else(seed: int) -> None:
    plain = make_scene(seed, LIBRARY, SIZE)
    assert plain.truth is None and digest(plain) == digest(SCENES[seed])


def test_the_truth_of_a_seed_is_always_the_same() -> None:
    for seed in (3, 50, 121):
        again = make_scene(seed, LIBRARY, SIZE, truth=True).truth
        first = SCENES[seed].truth
        assert again is not None and first is not None
        assert np.array_equal(again.depth, first.depth)
        assert np.array_equal(again.segmentation, first.segmentation)
        assert np.array_equal(again.normals, first.normals)


@pytest.mark.parametrize("place", sorted(PAINTERS))
def test_every_place_tells_the_truth_and_paints_the_same_without_it(place: str) -> None:
    for seed in range(6):
        plain: Background = PAINTERS[place](random.Random(seed), 64, False)
        told: Background = PAINTERS[place](random.Random(seed), 64, True)
        assert plain.terrain is None and np.array_equal(plain.image, told.image)
        assert told.terrain is not None
        depth, labels = told.terrain.depth, told.terrain.labels
        assert depth.min() >= 0 and depth.max() <= 1 and (depth[labels == SKY] == 0).all()
        assert len(np.unique(labels)) >= 2
        assert (np.diff(depth[: round(told.stand[1] * 64)].mean(axis=1)) > -0.05).all()


def test_maps_have_the_shapes_types_and_ranges_that_are_promised() -> None:
    for scene in SCENES:
        truth = scene.truth
        assert truth is not None
        assert truth.depth.shape == truth.segmentation.shape == (SIZE, SIZE)
        assert truth.depth.dtype == np.float32 and truth.segmentation.dtype == np.uint8
        assert truth.depth.min() >= 0 and truth.segmentation.max() < 150
        assert truth.normals.shape == (SIZE, SIZE, 3) and truth.normals.dtype == np.float32
        assert np.linalg.norm(truth.normals, axis=-1) == pytest.approx(1, abs=1e-5)


def test_every_pixel_of_a_thing_is_of_its_class() -> None:
    for scene in SCENES:
        assert scene.truth is not None
        for obj in scene.objects:
            assert (scene.truth.segmentation[scene.index_map == obj.depth] == obj.ade).all()
            assert (obj.ade == PERSON) == (obj.person is not None)
    assert all(0 <= spec.ade < 150 for spec in (*all_objects(), *PEOPLE, *SOLIDS))


def test_what_hides_a_thing_is_nearer_where_they_meet() -> None:
    meetings = nearer = 0
    for scene in SCENES:
        assert scene.truth is not None
        index, depth = scene.index_map.astype(int), scene.truth.depth
        for a, b, near_a, near_b in (
            (index[:, 1:], index[:, :-1], depth[:, 1:], depth[:, :-1]),
            (index[1:], index[:-1], depth[1:], depth[:-1]),
        ):
            meet = (a != b) & (a > 0) & (b > 0)
            meetings += int(meet.sum())
            nearer += int(((near_a > near_b) == (a > b))[meet].sum())
    assert meetings > 300 and nearer > 0.97 * meetings


def test_things_are_nearer_the_lower_their_feet_are() -> None:
    for scene in SCENES:
        assert scene.truth is not None
        standing = [obj for obj in scene.objects if obj.stand != "air"]
        rims = [float(scene.truth.depth[scene.index_map == obj.depth].min()) for obj in standing]
        for far, near, a, b in zip(standing, standing[1:], rims, rims[1:], strict=False):
            # Feet less than a pixel apart are as good as equal: then the roundness of the rims decides.
            assert b >= a - 1e-4 or near.foot - far.foot <= 1


def test_a_disc_is_inflated_to_half_a_ball() -> None:
    y, x = np.mgrid[:81, :81] - 40.0
    shape = inflate(np.where(np.hypot(x, y) <= 36, 255, 0).astype(np.uint8))
    ball = np.sqrt(np.maximum(36**2 - x * x - y * y, 0))
    inner = np.hypot(x, y) < 26
    assert np.abs(shape - ball)[inner].max() < 5
    assert (shape[np.hypot(x, y) > 37] == 0).all()


def test_normals_of_a_slope_follow_the_rule_of_the_detector() -> None:
    slope = np.tile(np.arange(256, dtype=np.float32) / 256, (256, 1))
    expected = 220 / 256 * 8  # Sobel sums eight times the step from pixel to pixel
    x, y, z = depth_normals(slope)[100, 100]
    assert x / z == pytest.approx(expected / NORMAL_Z, rel=1e-4) and y == 0
    down = depth_normals(slope.T.copy())[100, 100]
    assert down[1] == pytest.approx(x, rel=1e-4) and down[0] == 0
    half = depth_normals(slope[::2, ::2].copy())
    assert half[60, 60] == pytest.approx(depth_normals(slope)[120, 120], rel=1e-3)


def test_about_a_fifth_of_the_scenes_show_people_and_a_few_show_solids() -> None:
    many = [make_scene(seed, LIBRARY, 32) for seed in range(800)]
    solids = {spec.name for spec in SOLIDS}
    people = [len(scene.people) for scene in many]
    assert 0.18 < float(np.mean([count > 0 for count in people])) < 0.26 and max(people) == 3
    assert 0.04 < float(np.mean([any(o.name in solids for o in s.objects) for s in many])) < 0.09


def test_visible_key_points_lie_on_their_person() -> None:
    for scene in PEOPLE_SCENES:
        for obj in scene.objects:
            if obj.keypoints is None:
                continue
            assert obj.keypoints.shape == (18, 3) and set(np.unique(obj.keypoints[:, 2])) <= {0, 1}
            for x, y, seen in obj.keypoints:
                if seen:
                    assert scene.index_map[int(y), int(x)] == obj.depth


def test_a_whole_person_who_faces_us_alone_shows_all_points() -> None:
    alone = [s.objects[0] for s in PEOPLE_SCENES if len(s.objects) == 1]
    people = [obj.person for obj in alone if obj.person]
    faces = [person for person in people if not (person.portrait or person.from_behind)]
    body = [i for i in range(18) if i not in FACE_POINTS]
    assert len(faces) > 15
    for person in faces:
        assert person.keypoints[body, 2].all(), person.pose
    assert np.mean([person.keypoints[:, 2].sum() for person in faces]) > 16.5


def test_backs_have_no_eyes_and_portraits_no_ankles() -> None:
    people = [obj.person for scene in PEOPLE_SCENES for obj in scene.objects if obj.person]
    backs = [person for person in people if person.from_behind]
    portraits = [person for person in people if person.portrait]
    assert backs and portraits
    for person in backs:
        assert not person.keypoints[[0, 14, 15], 2].any()
    for person in portraits:
        assert not person.keypoints[[10, 13], 2].any()


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_figure_fits_its_picture_at_any_size_and_holds_its_joints(kind: str) -> None:
    for seed in range(40):
        figure = make_mannequin(random.Random(seed), kind)
        width, height = round(150 * figure.aspect), 150
        alpha = figure.at(width, height)[..., 3]
        rim = np.concatenate([alpha[0], alpha[:, 0], alpha[:, -1]])
        assert rim.max() < 128, (seed, figure.pose.name)
        points = figure.keypoints(width, height)
        for x, y, seen in points:
            if seen:
                assert alpha[int(y), int(x)] >= 128, (seed, figure.pose.name)
        small = figure.keypoints(round(width / 2), round(height / 2))
        assert small[:, :2] * 2 == pytest.approx(points[:, :2], rel=0.03, abs=1)


def test_right_is_at_the_viewers_left_from_the_front_and_right_from_behind() -> None:
    right, left = KEYPOINTS.index("right shoulder"), KEYPOINTS.index("left shoulder")
    for seed in range(60):
        figure = make_mannequin(random.Random(seed), "man")
        points = figure.keypoints(100, 100)
        if not figure.pose.sideways:
            assert (points[right, 0] < points[left, 0]) != figure.from_behind


def test_every_pose_is_drawn_and_said_in_known_words() -> None:
    known = set(vocabulary())
    for pose in POSES:
        assert set(split_words(" ".join(pose.words))) <= known
    seen = {make_mannequin(random.Random(seed), "girl").pose.name for seed in range(300)}
    assert seen == {pose.name for pose in POSES}


@pytest.mark.parametrize("shape", [spec.name for spec in SOLIDS])
def test_a_solid_has_the_color_that_is_said(shape: str) -> None:
    for word in ("red", "green", "blue"):
        solid = make_solid(shape, word, random.Random(1))
        drawn = solid.at(round(100 * solid.aspect), 100)
        mean = drawn[drawn[..., 3] == 255][:, :3].mean(axis=0).astype(np.float32) / 255
        hue = float(cv2.cvtColor(mean[None, None], cv2.COLOR_RGB2HSV)[0, 0, 0])
        assert abs((hue - PAINTS[word][0] + 180) % 360 - 180) < 20
        assert (solid.relief(round(100 * solid.aspect), 100) >= 0).all()


def test_the_sheet_shows_the_maps_and_refuses_scenes_without() -> None:
    scene: Scene = PEOPLE_SCENES[0]
    assert [picture.shape for picture in maps(scene)] == [(SIZE, SIZE, 3)] * 4
    assert skeleton(scene).any()
    with pytest.raises(ValueError, match="truth=True"):
        maps(make_scene(0, LIBRARY, SIZE))
