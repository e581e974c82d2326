"""The pose detector: what the original finds and draws from the same maps, and that it bears any picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from annotators import pose
from annotators.base import Annotation
from annotators.maps import SKELETON
from annotators.nets.keypoints import MAX_PEAKS, blur, connect, find_bodies, find_hand, find_peaks, hand_box
from annotators.nets.openpose import BodyNet, HandNet, OpenPoseConfig, published_key
from annotators.networks import NetworkCache
from annotators.pose import HAND_SCALES, Pose, prepare
from annotators.skeleton import draw, from_json
from core.errors import WeightsMissing
from core.weights.registry import Registry
from tests.annotators.pose_maps import BODIES, CASES, HANDS, INNER, SIZE, DrawnBody, DrawnHands, drawn
from tests.deterministic_weights import fill_tensors

PICTURE = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> NetworkCache:
    made = NetworkCache()
    made.configure(device="cpu", dtype="float32")
    monkeypatch.setattr(pose, "NETWORKS", made)
    return made


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, networks: NetworkCache) -> Path:
    monkeypatch.setenv("CONTROLNET_CKPTS", str(tmp_path))
    return tmp_path


def write(path: Path, net: BodyNet | HandNet, salt: str = "narrow") -> None:
    """Write a narrow network whose heat maps reach well above the thresholds."""
    state = {published_key(key): value for key, value in net.state_dict().items()}
    fill_tensors(state.items(), salt, lambda key: 2.5)
    save_file(state, path, {"config": net.config.to_json()})


NARROW = OpenPoseConfig(front=(8, 8, 8, 8), features=8, first=8, refine=8, stages=2)


@pytest.fixture
def narrow(folder: Path) -> Path:
    write(folder / "body_pose_model.pth", BodyNet(NARROW))
    write(folder / "hand_pose_model.pth", HandNet(NARROW))
    return folder


def with_networks(monkeypatch: pytest.MonkeyPatch, **nets: nn.Module) -> None:
    class Given:
        def get(self, name: str, build: object, **_: object) -> nn.Module:
            return nets[name]

    monkeypatch.setattr(pose, "NETWORKS", Given())
    monkeypatch.setattr(pose, "find_weights", lambda name, demo=None: pose_weights(name))


def pose_weights(name: str) -> object:
    from annotators.networks import Weights

    return Weights(name, name, demo=False)


@pytest.mark.parametrize("case", CASES)
def test_the_peaks_and_people_are_the_originals(case: str) -> None:
    found = find_bodies(BODIES[f"{case}.L1"][0], BODIES[f"{case}.L2"][0], INNER, SIZE)
    candidates, subset = BODIES[f"{case}.candidate"], BODIES[f"{case}.subset"]
    assert np.array_equal(found.people, subset[:, :18])
    np.testing.assert_allclose(found.peaks, candidates[:, :3], rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_the_map_is_the_originals_and_its_key_points_draw_it_again(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_networks(monkeypatch, openpose_body=DrawnBody(case))
    made = Pose()(PICTURE, size=SIZE, resolution=320)
    assert np.array_equal(made.hint, drawn(f"pose.{case}")) and np.array_equal(made.preview, made.hint)
    assert made.data is not None
    people, size = from_json(made.data)
    assert size == SIZE and len(people) == len(BODIES[f"{case}.subset"])
    assert np.array_equal(draw(people, size), made.hint)


def test_hands_are_the_originals_but_for_its_disc_in_the_corner(monkeypatch: pytest.MonkeyPatch) -> None:
    with_networks(monkeypatch, openpose_body=DrawnBody("all"), openpose_hand=DrawnHands())
    made = Pose()(PICTURE, size=SIZE, resolution=320, detect_hands=True)
    theirs = drawn("pose_hand.fake")
    rows, columns = np.nonzero((made.hint != theirs).any(axis=2))
    assert rows.max() <= 4 and columns.max() <= 4
    assert theirs[0, 0].tolist() == [0, 0, 255] and not made.hint[:5, :5].any()
    assert made.data is not None
    people, size = from_json(made.data)
    assert [len(person.hands) for person in people] == [2, 2]
    assert np.array_equal(draw(people, size), made.hint)


@pytest.mark.parametrize("which", [0, 1])
def test_the_joints_of_a_hand_are_the_originals(which: int) -> None:
    side = 70
    outputs = []
    for i, factor in enumerate(HAND_SCALES):
        inner = (round(368 * factor), round(368 * factor))
        outputs.append((HANDS[f"map{4 * which + i}"][0], inner))
    theirs = HANDS[f"peaks{which}"]
    size = (side, side) if which == 0 else (61, 61)
    joints = find_hand(outputs, size)
    assert np.array_equal(joints[:, :2], theirs)
    assert np.array_equal(joints[:, 2] == 0, (theirs == 0).all(axis=1))


@pytest.mark.parametrize("case", CASES)
def test_hands_are_looked_for_where_the_original_looks(case: str) -> None:
    found = find_bodies(BODIES[f"{case}.L1"][0], BODIES[f"{case}.L2"][0], INNER, SIZE)
    peaks = np.concatenate([found.peaks, np.zeros((1, 3))])
    boxes = []
    for parts in found.people:
        for side in ("left", "right"):
            box = hand_box(peaks[parts], side, SIZE)
            if box is not None:
                boxes.append([*box, side == "left"])
    assert boxes == BODIES[f"{case}.hand_boxes"].tolist()


def test_a_hand_too_small_to_see_has_no_box() -> None:
    body = np.zeros((18, 3))
    body[5:8] = [[50, 50, 1], [55, 50, 1], [60, 50, 1]]
    assert hand_box(body, "left", (100, 100)) is None
    body[5:8, 0] = 10, 40, 70
    assert hand_box(body, "left", (100, 100)) == (57, 27, 42)  # 1.5 x 30 = 45 wide, cut off at the right
    assert hand_box(body, "right", (100, 100)) is None


def test_nobody_gives_a_black_map_and_no_people(monkeypatch: pytest.MonkeyPatch) -> None:
    with_networks(monkeypatch, openpose_body=DrawnBody("none"))
    made = Pose()(PICTURE, size=(128, 192), detect_hands=True)  # no hand network is asked for
    assert made.hint.shape == (128, 192, 3) and not made.hint.any()
    assert made.data is not None and made.data["people"] == []


def test_the_network_sees_bgr_at_half_the_height_it_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    net = DrawnBody("none")
    with_networks(monkeypatch, openpose_body=net)
    red = np.zeros((*SIZE, 3), np.uint8)
    red[:, :, 0] = 255
    Pose()(red, size=SIZE, resolution=320)
    (seen,) = net.seen
    assert seen.shape == (1, 3, 184, 224)  # 384 x 184 / 320 = 220.8, then up to a multiple of 8
    assert seen[0, :, 0, 0].tolist() == [-0.5, -0.5, 255 / 256 - 0.5]
    assert (seen[:, :, :, 221:] == 0).all() and (seen[:, 2, :, :221] == 255 / 256 - 0.5).all()


@pytest.mark.parametrize(
    ("size", "inputs", "inner"),
    [
        ((1, 1), (184, 184), (184, 184)),
        ((64, 2048), (48, 1472), (46, 1472)),  # a scale of 1472 / 2048, not of 184 / 64
        ((2048, 64), (184, 8), (184, 6)),
        ((3000, 1), (184, 8), (184, 1)),
    ],
)
def test_odd_shapes_fit_the_network(
    size: tuple[int, int], inputs: tuple[int, int], inner: tuple[int, int]
) -> None:
    made, seen = prepare(np.zeros((*size, 3), np.uint8), 0.5)
    assert tuple(made.shape) == (1, 3, *inputs) and seen == inner


def test_the_blur_is_a_gaussian_of_three_pixels_that_keeps_the_sum() -> None:
    dot = np.zeros((61, 61))
    dot[30, 30] = 1
    made = blur(dot)
    assert made.sum() == pytest.approx(1) and made[30, 43] == 0 < made[30, 42]
    assert made[30, 33] / made[30, 30] == pytest.approx(np.exp(-0.5))
    edge = np.zeros((1, 40))
    edge[0, 0] = 1
    assert blur(edge).sum() == pytest.approx(1)  # what leaves at the edge comes back


def test_the_blur_is_that_of_scipy() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    for shape in ((97, 131), (3, 50), (1, 1)):
        values = np.random.default_rng(0).random(shape)
        np.testing.assert_allclose(blur(values), ndimage.gaussian_filter(values, 3), rtol=0, atol=1e-12)


def test_peaks_keep_their_unblurred_value_and_their_order() -> None:
    heat = np.zeros((60, 80), np.float32)
    for x, y, value in ((60, 40, 0.9), (20, 10, 0.5), (70, 9, 0.08)):
        heat[y - 8 : y + 9, x - 8 : x + 9] = value
        heat[y, x] = value + 0.05
    assert find_peaks(heat)[:, :2].tolist() == [[20, 10], [60, 40]]  # the third is too low when blurred
    np.testing.assert_allclose(find_peaks(heat)[:, 2], [0.55, 0.95], rtol=1e-6)


def test_a_map_without_end_of_peaks_is_cut_short() -> None:
    assert len(find_peaks(np.full((100, 100), 0.5, np.float32))) == MAX_PEAKS


def test_a_peak_is_joined_once_to_the_best() -> None:
    field = np.zeros((40, 60, 2), np.float32)
    field[10, :, 0] = 1  # along the row of the first two
    field[20, :, 0] = 0.5
    a = np.array([[10.0, 10.0, 1.0], [10.0, 20.0, 1.0]])
    b = np.array([[25.0, 20.0, 1.0], [25.0, 10.0, 1.0], [28.0, 10.0, 1.0]])
    made = connect(a, b, field)
    assert [(i, j) for i, j, _ in made] == [(0, 1), (1, 0)]
    assert [score for *_, score in made] == pytest.approx([1.0, 0.5])


def pictures() -> dict[str, NDArray[np.generic] | Image.Image]:
    rng = np.random.default_rng(0)
    return {
        "grey": rng.integers(0, 256, (50, 70), dtype=np.uint8),
        "rgba": rng.integers(0, 256, (50, 70, 4), dtype=np.uint8),
        "sixteen bits": rng.integers(0, 65536, (50, 70, 3), dtype=np.uint16),
        "one pixel": np.full((1, 1, 3), 90, np.uint8),
        "flat wide": rng.integers(0, 256, (20, 3000, 3), dtype=np.uint8),
        "tall": rng.integers(0, 256, (3000, 20, 3), dtype=np.uint8),
        "black": np.zeros((64, 64, 3), np.uint8),
        "white": np.full((64, 64, 3), 255, np.uint8),
        "noise": rng.integers(0, 256, (64, 64, 3), dtype=np.uint8),
    }


def check(made: Annotation) -> None:
    assert made.hint.shape == (128, 192, 3) and made.hint.dtype == np.uint8
    assert made.data is not None
    people, size = from_json(made.data)
    assert draw(people, size).shape == (*size, 3)


@pytest.mark.parametrize("kind", list(pictures()))
def test_any_picture_gives_a_map_and_key_points(kind: str, narrow: Path) -> None:
    check(Pose()(pictures()[kind], size=(128, 192), resolution=128))


@pytest.mark.parametrize("kind", ["noise", "one pixel"])
def test_hands_are_looked_for_in_any_picture_but_not_without_end(
    kind: str, narrow: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pose, "MAX_HANDS", 2)
    made = Pose()(pictures()[kind], size=(128, 192), resolution=128, detect_hands=True)
    check(made)
    people, _ = from_json(made.data)
    assert sum(len(person.hands) for person in people) <= 2


def test_numbers_stay_in_32_bits(narrow: Path, networks: NetworkCache) -> None:
    networks.configure(device="cpu", dtype="bfloat16")
    plain = Pose()(PICTURE, size=(128, 128), resolution=128)
    (net,) = networks._networks.values()
    assert next(net.parameters()).dtype == torch.float32
    assert plain.data is not None


def test_missing_weights_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Registry, "find", lambda self, name: None)
    with pytest.raises(WeightsMissing) as caught:
        Pose()(PICTURE, size=(64, 64))
    assert "get openpose_body" in str(caught.value) and "NOT for commercial use" in str(caught.value)


def test_the_hands_weights_are_asked_for_only_with_hands(narrow: Path) -> None:
    (narrow / "hand_pose_model.pth").unlink()
    Pose()(PICTURE, size=(64, 64), resolution=128)
    with pytest.raises(WeightsMissing) as caught:
        Pose()(PICTURE, size=(64, 64), resolution=128, detect_hands=True)
    assert "get openpose_hand" in str(caught.value) and "NOT for commercial use" in str(caught.value)


def test_the_controls_are_the_originals() -> None:
    assert Pose.resolution is not None
    assert (Pose.resolution.minimum, Pose.resolution.maximum, Pose.resolution.default) == (128, 1024, 512)
    assert Pose.resolution.label == "OpenPose Resolution"
    assert [(p.name, p.default) for p in Pose.params] == [("detect_hands", False)]
    assert Pose.kind is SKELETON
