"""People of the toy world: smooth jointed figures in coloured clothes whose key points are known exactly."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np

from .head import HAIRS, THICKNESS, draw_back_hair, draw_head
from .palette import mix, paint
from .pen import Pen
from .poses import FACE_POINTS, POSES, Build, Joints, Pose, make_build, take_pose
from .shapes import Layer

KINDS = {"man": 3.0, "woman": 3.0, "boy": 2.0, "girl": 2.0}
SKINS = ((255, 214, 178), (244, 190, 146), (222, 160, 112), (176, 116, 76), (128, 82, 56), (255, 206, 92))
HAIR_COLORS = ((58, 42, 40), (36, 32, 40), (112, 70, 44), (166, 104, 54), (232, 184, 92), (196, 92, 50),
               (190, 186, 190))  # fmt: skip
SHOES = ((250, 250, 250), (70, 66, 80), (214, 66, 66), (150, 96, 62), (70, 110, 200))
SHIRT_COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white", "black", "gray")
TROUSER_COLORS = ("blue", "blue", "black", "gray", "brown", "green", "red", "white", "purple", "orange")
SKIRT_COLORS = ("red", "blue", "purple", "pink", "green", "yellow", "black", "white", "orange")
BACK_SHARE, TURNED_SHARE = 0.12, 0.24
MARGIN = 0.008  # air around a figure, in shares of its height
BLACK_LIFT = 0.06  # black cloth keeps some light, or its folds would vanish


@dataclass(frozen=True, slots=True)
class Outfit:
    """What a person wears; the colours are words of PAINTS. `dress` is a shirt and a skirt in one colour."""

    shirt: str
    lower: str
    garment: str  # trousers, shorts, skirt or dress
    long_sleeves: bool

    @property
    def colors(self) -> tuple[str, ...]:
        """The colour words that are true of it."""
        return (self.shirt,) if self.garment == "dress" else (self.shirt, self.lower)


@dataclass(frozen=True, slots=True)
class Paints:
    """The colours of a person's parts, each (3,) float32 RGB in [0, 255]."""

    skin: np.ndarray
    hair: np.ndarray
    shirt: np.ndarray
    lower: np.ndarray
    shoes: np.ndarray


class Mannequin:
    """A person in one pose, to be drawn at any size.

    `aspect` and `foot` are those of a Sprite; the ground is the lower edge of its picture, also under a jump.
    """

    def __init__(
        self, kind: str, pose: Pose, outfit: Outfit, build: Build, joints: Joints, paints: Paints, *,
        hair: str, laughing: bool,
    ) -> None:  # fmt: skip
        """Take what `make_mannequin` chose."""
        self.kind, self.pose, self.outfit, self.hair, self.laughing = kind, pose, outfit, hair, laughing
        self._build, self._joints, self._paints = build, joints, paints

    @property
    def from_behind(self) -> bool:
        """Whether the face cannot be seen."""
        return bool(self._joints.turn[2, 2] < -0.3)

    @cached_property
    def _frame(self) -> tuple[float, float, float, float]:
        """The left, right, lower and upper end of the figure."""
        j, b = self._joints, self._build
        discs = [(j.pelvis, 0.11), (j.head, b.head * 1.02 * THICKNESS.get(self.hair, 1.07))]
        reach = {"long": (((0, 0.15, -0.3), 1.0), ((0, -0.95, -0.3), 0.88)),
                 "pigtails": (((1.25, -0.85, -0.35), 0.24), ((1.0, 0.10, -0.35), 0.36))}  # fmt: skip
        for (x, y, z), radius in (((1.0, -0.05, -0.05), 0.25), *reach.get(self.hair, ())):
            spots = (j.head + j.turn @ np.array([side * x, y, z]) * b.head for side in (-1, 1))
            discs += [(spot, radius * b.head) for spot in spots]
        discs += [(p, 0.045) for p in j.elbows]
        discs += [(_hand(elbow, wrist), 0.040) for elbow, wrist in zip(j.elbows, j.wrists, strict=True)]
        discs += [(p, 0.058) for pair in (j.knees, j.ankles, j.toes) for p in pair]
        discs += [(p, 0.068) for p in j.shoulders]
        if self.hair == "bun":
            discs.append((j.head + j.turn @ np.array([0, 1.2, -0.25]) * b.head, b.head * 0.36))
        if self.outfit.garment in ("skirt", "dress"):
            discs += [(p * 0.4 + q * 0.6, 0.10) for p, q in zip(j.hips, j.knees, strict=True)]
        low = min(float(p[1]) for p in (*j.toes, *j.ankles, *j.knees)) - 0.045
        return (
            min(float(p[0]) - r for p, r in discs) - MARGIN,
            max(float(p[0]) + r for p, r in discs) + MARGIN,
            min(0.0, low),
            max(float(p[1]) + r for p, r in discs) + MARGIN,
        )

    @property
    def aspect(self) -> float:
        """Width over height."""
        left, right, low, high = self._frame
        return (right - left) / (high - low)

    @cached_property
    def foot(self) -> tuple[float, float]:
        """The left and right end of what is on or over the ground, as shares of the width."""
        left, right, _, _ = self._frame
        j = self._joints
        touching = [p for p in (*j.ankles, *j.toes, *j.knees, j.pelvis)]
        lowest = min(float(p[1]) for p in touching)
        xs = [float(p[0]) for p in touching if p[1] < lowest + 0.06]
        return ((min(xs) - 0.045 - left) / (right - left), (max(xs) + 0.045 - left) / (right - left))

    def at(self, width: int, height: int) -> np.ndarray:
        """Draw at a size in pixels, (height, width, 4) uint8 premultiplied RGBA."""
        return self._draw(width, height, relief=False).picture()

    def relief(self, width: int, height: int) -> np.ndarray:
        """Return how far the surface stands out, (height, width) float32 in pixels, 0 where nothing is."""
        drawn = self._draw(width, height, relief=True).relief
        assert drawn is not None
        return drawn - min(0.0, float(drawn.min()))

    def keypoints(self, width: int, height: int) -> np.ndarray:
        """Return the 18 key points, (18, 3): x and y in pixels of the drawing, and 1 or 0.

        Points of the face are 0 where the head itself hides them.
        """
        j, b = self._joints, self._build
        face = {0: (0.0, -0.06, 0.97), 14: (-0.33, 0.10, 0.90), 15: (0.33, 0.10, 0.90),
                16: (-1.0, -0.05, -0.05), 17: (1.0, -0.05, -0.05)}  # fmt: skip
        body = [j.neck, j.shoulders[0], j.elbows[0], j.wrists[0], j.shoulders[1], j.elbows[1], j.wrists[1],
                j.hips[0], j.knees[0], j.ankles[0], j.hips[1], j.knees[1], j.ankles[1]]  # fmt: skip
        points = np.ones((18, 3), np.float32)
        for i, joint in enumerate(body, start=1):
            points[i, :2] = self._pixel(joint, width, height)
        for i in FACE_POINTS:
            spot = j.turn @ np.array(face[i])
            points[i, :2] = self._pixel(j.head + spot * b.head, width, height)
            points[i, 2] = spot[2] > (-0.25 if i > 15 else 0.15)
        return points

    def _pixel(self, point: np.ndarray, width: int, height: int) -> tuple[float, float]:
        """Project a point to x, y in pixels."""
        left, right, low, high = self._frame
        return (
            (float(point[0]) - left) / (right - left) * width,
            (high - float(point[1])) / (high - low) * height,
        )

    def _draw(self, width: int, height: int, relief: bool) -> Layer:
        """Draw all parts from the farthest to the nearest."""
        layer, j = Layer(width, height, relief), self._joints
        pen = Pen(layer, height / (self._frame[3] - self._frame[2]), lambda p: self._pixel(p, width, height))
        parts: list[tuple[float, Callable[[], None]]] = []
        for side in (0, 1):
            leg = (j.hips[side], j.knees[side], j.ankles[side], j.toes[side])
            arm = (j.shoulders[side], j.elbows[side], j.wrists[side])
            forward = j.knees[side][2] - j.hips[side][2] > 0.09
            depth = 0.035 if forward else min(-0.01, float(leg[1][2] + leg[2][2]) / 2 * 0.3 - 0.03)
            parts.append((depth, partial(self._leg, pen, leg)))
            depth = float(arm[1][2] + arm[2][2]) / 2 - float(j.neck[2]) + 0.02
            parts.append((depth, partial(self._arm, pen, arm)))
        body, skin, hair = self._build, self._paints.skin, self._paints.hair
        parts.append((0.0, partial(self._trunk, pen)))
        parts.append((0.012, partial(draw_head, pen, self.hair, j, body, skin, hair, self.laughing)))
        over = 0.013 if j.turn[2, 2] < -0.2 else -9.0  # hair falls over the back
        parts.append((over, partial(draw_back_hair, pen, self.hair, j, body, hair)))
        for _, part in sorted(parts, key=lambda pair: pair[0]):
            part()
        return layer

    def _leg(self, pen: Pen, joints: Sequence[np.ndarray]) -> None:
        """Draw a leg and its shoe."""
        hip, knee, ankle, toe = joints
        cut = {"trousers": 1.86, "shorts": 0.86}.get(self.outfit.garment, 0.0)
        shoe_first = toe[2] < ankle[2] - 0.01
        shoe = (ankle + (toe - ankle) * 0.05, toe, 0.040, 0.036)
        if shoe_first:
            pen.stroke(*shoe, self._paints.shoes)
        pen.limb((hip, knee, ankle), (0.060, 0.046, 0.036), self._paints.lower, self._paints.skin, cut)
        if not shoe_first:
            pen.stroke(*shoe, self._paints.shoes)

    def _arm(self, pen: Pen, joints: Sequence[np.ndarray]) -> None:
        """Draw an arm and its hand."""
        shoulder, elbow, wrist = joints
        cut = 1.80 if self.outfit.long_sleeves else 0.62
        hand = _hand(elbow, wrist)
        pen.limb((shoulder, elbow, wrist), (0.046, 0.037, 0.031), self._paints.shirt, self._paints.skin, cut,
                 end=(hand, 0.036))  # fmt: skip

    def _trunk(self, pen: Pen) -> None:
        """Draw the neck, the shirt and, where there is one, the skirt."""
        j, b, paints = self._joints, self._build, self._paints
        breadth = abs(float(j.shoulders[1][0] - j.shoulders[0][0])) / 2
        half = float(np.hypot(breadth + 0.018, 0.072))
        waist = float(np.hypot(abs(float(j.hips[1][0] - j.hips[0][0])) / 2 + 0.040, 0.066))
        up = j.neck + (j.head - j.neck) / max(float(np.linalg.norm(j.head - j.neck)), 1e-6) * 0.05
        pen.stroke(j.neck, up, 0.044, 0.040, paints.skin, gloss=0.0)
        garment = self.outfit.garment
        top = j.neck + (j.neck - j.pelvis) / max(float(np.linalg.norm(j.neck - j.pelvis)), 1e-6) * 0.036
        nip = 0.012 if self.kind == "woman" or garment in ("skirt", "dress") else 0.0
        skirt = garment in ("skirt", "dress")
        if skirt:
            hems = [hip * 0.30 + knee * 0.70 for hip, knee in zip(j.hips, j.knees, strict=True)]
            spread = abs(float(hems[1][0] - hems[0][0])) / 2 + 0.085
            pen.body(j.pelvis * 0.72 + j.neck * 0.28, (hems[0] + hems[1]) / 2, waist * 0.92, spread, 0.035,
                     0.0, paints.lower)  # fmt: skip
        bottom = j.pelvis + (j.pelvis - top) * (0.0 if skirt else 0.10)
        pen.body(top, bottom, min(half, b.shoulder + 0.05), waist, 0.052, nip, paints.shirt)


def _hand(elbow: np.ndarray, wrist: np.ndarray) -> np.ndarray:
    """Return the middle of a hand."""
    return np.asarray(wrist + (wrist - elbow) / max(float(np.linalg.norm(wrist - elbow)), 1e-6) * 0.022)


def make_mannequin(rng: random.Random, kind: str, avoid: Sequence[str] = ()) -> Mannequin:
    """Draw a person of a kind of KINDS; no cloth has a colour of `avoid`, where it would be lost."""
    pose = rng.choices(POSES, [pose.weight for pose in POSES])[0]
    build = make_build(rng, kind in ("boy", "girl"))
    outfit = _outfit(rng, kind, pose, avoid)
    turned = rng.random()
    if pose.sideways:
        yaw = rng.choice((-1, 1)) * rng.uniform(25, 75)
    elif turned < BACK_SHARE:
        yaw = 180 + rng.uniform(-30, 30)
    elif turned < BACK_SHARE + TURNED_SHARE:
        yaw = rng.choice((-1, 1)) * rng.uniform(22, 55)
    else:
        yaw = rng.uniform(-18, 18)
    joints = take_pose(pose, build, yaw, rng)

    def near(rgb: tuple[int, int, int]) -> np.ndarray:
        return np.array([min(255.0, c * rng.uniform(0.94, 1.04)) for c in rgb], np.float32)

    hairs = HAIR_COLORS[:-1] if kind in ("boy", "girl") else HAIR_COLORS  # the last is that of age
    paints = Paints(near(rng.choice(SKINS)), near(rng.choice(hairs)), _cloth(outfit.shirt, rng),
                    _cloth(outfit.lower, rng), near(rng.choice(SHOES)))  # fmt: skip
    if outfit.garment == "dress":
        paints = replace(paints, lower=paints.shirt)
    return Mannequin(kind, pose, outfit, build, joints, paints, hair=rng.choice(HAIRS[kind]),
                     laughing=rng.random() < 0.4)  # fmt: skip


def _outfit(rng: random.Random, kind: str, pose: Pose, avoid: Sequence[str]) -> Outfit:
    """Choose clothes that suit a pose."""
    garments = ["trousers", "trousers", "trousers", "shorts" if kind in ("boy", "girl") else "trousers"]
    if kind in ("woman", "girl") and pose.skirt:
        garments = ["trousers", "trousers", "skirt", "dress"]
    garment = rng.choice(garments)
    shirt = rng.choice([word for word in SHIRT_COLORS if word not in avoid])
    lowers = SKIRT_COLORS if garment in ("skirt", "dress") else TROUSER_COLORS
    lower = rng.choice([word for word in lowers if word != shirt and word not in avoid])
    return Outfit(shirt, shirt if garment == "dress" else lower, garment, rng.random() < 0.5)


def _cloth(word: str, rng: random.Random) -> np.ndarray:
    """Return the colour of cloth, (3,) float32."""
    color = paint(word, rng)
    return mix(color, np.array([255, 255, 255], np.float32), BLACK_LIFT) if word == "black" else color
