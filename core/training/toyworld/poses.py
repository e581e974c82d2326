"""How people stand: named poses with chance in every joint, and where the joints are then."""

import math
import random
from dataclasses import dataclass

import numpy as np

# The 18 key points of OpenPose's COCO model, in its order; right and left are the person's own.
KEYPOINTS = (
    "nose", "neck", "right shoulder", "right elbow", "right wrist", "left shoulder", "left elbow",
    "left wrist", "right hip", "right knee", "right ankle", "left hip", "left knee", "left ankle",
    "right eye", "left eye", "right ear", "left ear",
)  # fmt: skip
FACE_POINTS = (0, 14, 15, 16, 17)

Angles = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Pose:
    """A named pose.

    `words` say it in a caption. An arm or leg is four angles in degrees: how far its upper part is lifted
    from hanging down (0) to straight up (180), negative inwards, and to where that lift goes, from sideways
    (0) to forwards (90) or backwards (-90); then the same for its lower part. `strong` is the side that acts.
    `lean` tilts the body sideways, `bow` forwards; `airborne` is the height of a jump;
    `sideways` poses show best from the side; `skirt` says whether a skirt can follow.
    """

    name: str
    words: tuple[str, ...]
    strong_arm: Angles
    weak_arm: Angles
    strong_leg: Angles
    weak_leg: Angles
    lean: float = 0.0
    bow: float = 0.0
    airborne: float = 0.0
    sideways: bool = False
    skirt: bool = True
    weight: float = 1.0


HANG: Angles = (12, 0, 10, 40)
HIP: Angles = (52, -8, -48, 20)
STAND: Angles = (6, 0, 3, 0)
POSES = (
    Pose("standing", ("standing", "standing", ""), HANG, HANG, STAND, STAND, weight=1.6),
    Pose("waving", ("waving", "waving one hand"), (105, 8, 172, 0), HANG, STAND, STAND, weight=1.5),
    Pose("walking", ("walking",), (28, 85, 40, 80), (30, -85, 16, -80), (26, -88, 42, -88), (28, 88, 8, 88),
         sideways=True, weight=1.3),
    Pose("running", ("running",), (48, 80, 128, 80), (52, -85, 42, 40), (28, -88, 88, -88), (66, 86, 8, -88),
         bow=12, sideways=True, skirt=False, weight=1.3),
    Pose("arms up", ("with both arms raised", "with arms up", "cheering"), (156, 0, 168, 0), (156, 0, 168, 0),
         STAND, STAND, weight=1.2),
    Pose("one arm up", ("with one arm raised", "raising one hand", "raising one arm"), (166, 0, 174, 0), HANG,
         STAND, STAND),
    Pose("arms out", ("with arms wide open", "with both arms out"), (88, 0, 92, 0), (88, 0, 92, 0),
         STAND, STAND, weight=1.2),
    Pose("posing", ("posing",), HIP, HIP, (12, 0, 9, 0), (12, 0, 9, 0)),
    Pose("pointing", ("pointing", "pointing to the side"), (90, 12, 92, 12), HIP, STAND, STAND),
    Pose("sitting", ("sitting",), (26, 55, 34, 70), (26, 55, 34, 70), (84, 62, 80, 66), (84, 62, 80, 66),
         skirt=False, weight=1.2),
    Pose("kneeling", ("kneeling",), (30, 60, 55, 70), HANG, (84, 80, 4, 80), (12, 85, 88, -88), skirt=False,
         weight=0.7),
    Pose("jumping", ("jumping",), (138, 0, 158, 0), (138, 0, 158, 0), (30, 25, 38, -50), (34, 30, 52, -60),
         airborne=0.14, skirt=False, weight=1.2),
    Pose("dancing", ("dancing",), (128, 0, 195, 0), (66, 0, 108, 0), (44, 20, -14, -20), (8, 0, 2, 0),
         lean=7, weight=1.3),
    Pose("kicking", ("kicking",), (62, 20, 70, 30), (70, 0, 78, 0), (70, 40, 72, 42), (6, 0, 4, 0), lean=8,
         skirt=False),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Build:
    """Lengths of a body in shares of its height when it stands."""

    head: float  # radius
    shoulder: float  # half the breadth
    hip: float
    torso: float
    upper_arm: float
    forearm: float
    thigh: float
    shin: float


def make_build(rng: random.Random, child: bool) -> Build:
    """Draw a body: toys have large heads, children more so."""
    head = rng.uniform(0.135, 0.155) if child else rng.uniform(0.100, 0.128)
    free = 1 - 2.04 * head - 0.075  # from the ankles to the shoulders
    torso = free * rng.uniform(0.44, 0.48)
    leg, arm = free - torso, free * rng.uniform(0.41, 0.45)
    return Build(
        head=head, shoulder=rng.uniform(0.095, 0.118), hip=rng.uniform(0.050, 0.060), torso=torso,
        upper_arm=arm * 0.52, forearm=arm * 0.48, thigh=leg * 0.51, shin=leg * 0.49,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Joints:
    """Where the joints are: (3,) arrays of x to the right, y up and z to the viewer, the ground at y = 0.

    Pairs are right, left. `turn` is the 3 x 3 matrix from the head's own axes to these.
    """

    head: np.ndarray
    neck: np.ndarray
    pelvis: np.ndarray
    shoulders: tuple[np.ndarray, np.ndarray]
    elbows: tuple[np.ndarray, np.ndarray]
    wrists: tuple[np.ndarray, np.ndarray]
    hips: tuple[np.ndarray, np.ndarray]
    knees: tuple[np.ndarray, np.ndarray]
    ankles: tuple[np.ndarray, np.ndarray]
    toes: tuple[np.ndarray, np.ndarray]
    turn: np.ndarray


def _about(axis: int, degrees: float) -> np.ndarray:
    """Return the rotation about x, y or z, (3, 3)."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    a, b = (axis + 1) % 3, (axis + 2) % 3
    matrix = np.eye(3)
    matrix[a, a], matrix[a, b], matrix[b, a], matrix[b, b] = c, -s, s, c
    return matrix


def _limb(start: np.ndarray, side: int, angles: Angles, lengths: tuple[float, float]) -> list[np.ndarray]:
    """Return the middle and the end joint of an arm or leg."""
    points = [start]
    for lift, turn, length in ((*angles[:2], lengths[0]), (*angles[2:], lengths[1])):
        up, around = math.radians(lift), math.radians(turn)
        way = (side * math.sin(up) * math.cos(around), -math.cos(up), math.sin(up) * math.sin(around))
        points.append(points[-1] + length * np.array(way))
    return points[1:]


def _shaken(angles: Angles, rng: random.Random, spread: float) -> Angles:
    """Add chance to the lifts and, twice as much, to the turns."""
    a, b, c, d = angles
    return (a + rng.gauss(0, spread), b + rng.gauss(0, 2 * spread),
            c + rng.gauss(0, spread), d + rng.gauss(0, 2 * spread))  # fmt: skip


def take_pose(pose: Pose, build: Build, yaw: float, rng: random.Random) -> Joints:
    """Bend a body into a pose, turn it by `yaw` degrees (0 faces the viewer) and stand it on the ground."""
    strong = rng.choice((-1, 1))  # -1 is the person's right, at the viewer's left from the front
    trunk = _about(2, pose.lean * strong + rng.gauss(0, 2)) @ _about(0, pose.bow + rng.gauss(0, 1.5))
    pelvis = np.zeros(3)
    neck = trunk @ np.array([0, build.torso, 0])
    nod = trunk @ _about(1, rng.gauss(0, 7)) @ _about(2, rng.gauss(0, 4)) @ _about(0, rng.gauss(-pose.bow, 3))
    head = neck + trunk @ np.array([0, 0.030, 0.006]) + nod @ np.array([0, build.head * 0.96, 0])
    names = ("arm0", "arm1", "arm2", "leg0", "leg1", "leg2")
    limbs: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for side in (-1, 1):
        arm = _shaken(pose.strong_arm if side == strong else pose.weak_arm, rng, 6)
        leg = _shaken(pose.strong_leg if side == strong else pose.weak_leg, rng, 3)
        shoulder = neck + trunk @ np.array([side * build.shoulder, -0.030, 0])
        hip = pelvis + np.array([side * build.hip, 0, 0])
        joints = [shoulder, *_limb(shoulder, side, arm, (build.upper_arm, build.forearm))]
        joints += [hip, *_limb(hip, side, leg, (build.thigh, build.shin))]
        for name, joint in zip(limbs, joints, strict=True):
            limbs[name].append(joint)
    toes = [_toe(limbs["leg1"][i], limbs["leg2"][i], side) for i, side in enumerate((-1, 1))]
    view = _about(0, 16 if pose.name in ("sitting", "kneeling") else 7) @ _about(1, yaw)
    low = min(*(float((view @ p)[1]) - 0.040 for p in (*limbs["leg1"], *limbs["leg2"], *toes)),
              float((view @ pelvis)[1]) - 0.075)  # fmt: skip
    shift = np.array([0, pose.airborne * rng.uniform(0.6, 1.2) - low, 0])

    def seen(point: np.ndarray) -> np.ndarray:
        return np.asarray(view @ point + shift)

    def pair(name: str) -> tuple[np.ndarray, np.ndarray]:
        return seen(limbs[name][0]), seen(limbs[name][1])

    return Joints(
        seen(head), seen(neck + trunk @ np.array([0, -0.030, 0])), seen(pelvis), pair("arm0"), pair("arm1"),
        pair("arm2"), pair("leg0"), pair("leg1"), pair("leg2"), (seen(toes[0]), seen(toes[1])), view @ nod,
    )  # fmt: skip


def _toe(knee: np.ndarray, ankle: np.ndarray, side: int) -> np.ndarray:
    """Return the tip of a foot: at a right angle to the shin, forwards and a little outwards."""
    shin = (ankle - knee) / max(float(np.linalg.norm(ankle - knee)), 1e-6)
    ahead = np.array([side * 0.35, -0.05, 1.0])
    ahead -= shin * float(ahead @ shin) * 0.9
    return np.asarray(ankle + shin * 0.012 + 0.062 * ahead / np.linalg.norm(ahead))
