"""One picture of the toy world and the truth about it, made from a seed."""

import math
import random
import zlib
from dataclasses import dataclass, replace
from functools import cache

import cv2
import numpy as np

from .backgrounds import Background
from .canvas import Canvas
from .captions import caption
from .compose import put
from .objects import ObjectSpec
from .palette import SHIFT_COLORS
from .places import PAINTERS, PLACE_WEIGHTS
from .sprites import SpriteLibrary

EVAL_SEED_BASE = 1_000_000_000
FAINT = {"snow": ("white",), "night": ("black",)}  # colours that a place swallows
PAINTABLE_WEIGHT = 1.8  # with it, about a third of all things are repainted


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One thing in a scene.

    `color` is the word that is true of it or None; `box` is x0, y0, x1, y1 in pixels of the whole sprite,
    hidden parts included, right and bottom excluded; `foot` is the y in pixels where it meets its ground
    (its lowest point if it flies); `depth` counts from 1 for the farthest; `stand` is ground, air or water.
    """

    name: str
    plural: str
    category: str
    color: str | None
    repainted: bool
    box: tuple[int, int, int, int]
    foot: float
    depth: int
    stand: str
    flipped: bool


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture, its words and its truth.

    `image` is (size, size, 3) uint8 RGB; `index_map` is (size, size) uint8 with 0 for the background and
    `depth` of the thing seen at each pixel otherwise; `objects` run from the farthest to the nearest;
    `horizon` is the y in pixels where the ground plane vanishes; `place_colors` are the colour words that are
    true of the place; `held_out` says that it shows a combination or a
    phrasing that no training scene shows.
    """

    seed: int
    image: np.ndarray
    caption: str
    place: str
    objects: tuple[SceneObject, ...]
    index_map: np.ndarray
    horizon: float
    place_colors: tuple[str, ...]
    held_out: bool


@dataclass(frozen=True, slots=True)
class _Plan:
    """A thing before it is painted; lengths are shares of the side, `x` is its middle."""

    spec: ObjectSpec
    color: str | None
    height: float
    width: float
    x: float
    foot: float
    flying: bool


@cache
def is_held_out(name: str, context: str) -> bool:
    """Say whether a thing in a place or in a painted colour is kept from training (one in sixteen)."""
    return zlib.crc32(f"{name}|{context}".encode()) % 16 == 0


def _pick(
    library: SpriteLibrary, place: Background, rng: random.Random, novel: bool
) -> tuple[ObjectSpec, str | None]:
    """Choose a thing that fits a place, and a new paint for it or None.

    `novel` asks for combinations that training never shows, where there are any; else there are none of them.
    """
    fitting = library.fitting[place.place]
    fitting = tuple(s for s in fitting if is_held_out(s.name, place.place) == novel) or fitting
    avoid = place.colors if place.place == "studio" else FAINT.get(place.place, ())  # red on red is lost
    clear = [s for s in fitting if s.color is None or s.color not in avoid] or list(fitting)
    # What fits few places would else be rare: the model must learn every noun.
    weights = [(PAINTABLE_WEIGHT if s.shift else 1.0) / len(s.places) for s in clear]
    spec = rng.choices(clear, weights)[0]
    if not spec.shift or rng.random() < 0.25:
        return spec, None
    words = [w for w in SHIFT_COLORS if w != spec.color and w not in avoid]
    words = [w for w in words if novel or not is_held_out(spec.name, w)]
    return spec, rng.choice(words)


def _plan_one(
    spec: ObjectSpec,
    color: str | None,
    library: SpriteLibrary,
    place: Background,
    rng: random.Random,
    large: bool,
) -> _Plan:
    """Place a single thing, large or small."""
    height = rng.uniform(0.40, 0.75) if large else rng.uniform(0.2, 0.4) * min(1.2, spec.size + 0.2)
    aspect = library.sprite(spec.name).aspect
    height = min(height, 0.9 / aspect)
    width = height * aspect
    flying = spec.stand == "air" and place.place not in ("studio", "table")
    if flying:
        foot = rng.uniform(height + 0.04, max(height + 0.05, min(0.9, place.horizon + 0.2)))
    else:
        low, high = place.stand
        low = min(high, max(low, height + 0.04, high - 0.14 if large else low))
        foot = rng.uniform(low, high)
    margin = width / 2 + 0.02
    x = rng.triangular(margin, 1 - margin, 0.5) if margin < 0.5 else 0.5
    return _Plan(spec, color, height, width, x, foot, flying)


def _plan_row(
    chosen: list[tuple[ObjectSpec, str | None]], library: SpriteLibrary, place: Background, rng: random.Random
) -> list[_Plan]:
    """Place two or three things side by side, with sizes that suit each other."""
    rng.shuffle(chosen)
    count = len(chosen)
    unit = rng.uniform(0.40, 0.58) if count == 2 else rng.uniform(0.32, 0.44)
    largest = max(spec.size for spec, _ in chosen) ** 0.8
    slot = 0.96 / count
    plans = []
    far, near = place.stand
    for i, (spec, color) in enumerate(chosen):
        flying = spec.stand == "air" and place.place not in ("studio", "table")
        step = rng.uniform(0.25, 1.0)
        height = unit * spec.size**0.8 / largest * (0.75 + 0.25 * step)
        aspect = library.sprite(spec.name).aspect
        height = min(height, slot * 1.02 / aspect)
        width = height * aspect
        foot = far + (near - far) * step
        if flying:
            foot = rng.uniform(height + 0.04, max(height + 0.06, place.horizon * 0.9))
        play = max(0.0, (slot - width) / 2)
        plans.append(
            _Plan(
                spec, color, height, width, 0.02 + slot * (i + 0.5) + rng.uniform(-play, play), foot, flying
            )
        )
    return plans


def _plan_depth(
    chosen: list[tuple[ObjectSpec, str | None]], library: SpriteLibrary, place: Background, rng: random.Random
) -> list[_Plan]:
    """Place two things one before the other, the nearer hiding a part of the farther."""
    (a, a_color), (b, b_color) = sorted(chosen, key=lambda pair: -pair[0].size)
    far, near = place.stand
    back_aspect, front_aspect = library.sprite(a.name).aspect, library.sprite(b.name).aspect
    back = min(rng.uniform(0.46, 0.60), 0.62 / back_aspect)
    front = min(back * rng.uniform(0.45, 0.65), 0.40 / front_aspect)
    foot_back = max(far + 0.2 * (near - far), back + 0.04)
    foot_front = max(near - rng.uniform(0.0, 0.02), foot_back + 0.13)
    side = rng.choice((-1, 1))
    x = 0.5 - side * rng.uniform(0.05, 0.12)
    reach = back * back_aspect / 2
    x_front = x + side * (reach * rng.uniform(0.55, 0.8))
    plans = [
        _Plan(a, a_color, back, back * back_aspect, x, min(foot_back, 0.84), False),
        _Plan(b, b_color, front, front * front_aspect, x_front, min(foot_front, 0.97), False),
    ]
    return [replace(p, x=min(max(p.x, p.width / 2 + 0.01), 1 - p.width / 2 - 0.01)) for p in plans]


def _plan(library: SpriteLibrary, place: Background, rng: random.Random, novel: bool) -> list[_Plan]:
    """Choose the things of a scene and where they are."""
    layout = rng.random()
    if layout < 0.67:
        return [_plan_one(*_pick(library, place, rng, novel), library, place, rng, large=layout < 0.55)]
    if layout < 0.80:
        return _plan_row([_pick(library, place, rng, novel)] * rng.choice((2, 2, 3)), library, place, rng)
    chosen: list[tuple[ObjectSpec, str | None]] = []
    for _ in range(8):
        spec, color = _pick(library, place, rng, novel)
        if all(spec.name != other.name for other, _ in chosen):
            chosen.append((spec, color))
    chosen = chosen[: 2 if layout < 0.94 else 3]
    standing = [c for c in chosen if c[0].stand != "air"]
    if layout < 0.87 and len(standing) == 2:
        return _plan_depth(chosen, library, place, rng)
    return _plan_row(chosen, library, place, rng) if len(chosen) > 1 else [
        _plan_one(*chosen[0], library, place, rng, large=True)
    ]  # fmt: skip


def make_scene(seed: int, library: SpriteLibrary, size: int = 256) -> Scene:
    """Make the scene of a seed: the same one wherever, whenever and in whichever order it is asked for.

    Args:
        seed: below EVAL_SEED_BASE for training, from there on for evaluation.
        library: the sprites; other sprites give other scenes.
        size: side in pixels.

    Raises:
        ValueError: a negative seed or a size below 32.
    """
    if seed < 0 or size < 32:
        raise ValueError(f"seed is {seed} (allowed: 0 and above), size is {size} (allowed: 32 and above)")
    rng = random.Random(seed)
    novel = seed >= EVAL_SEED_BASE and rng.random() < 0.25
    places = [name for name in PAINTERS if library.fitting.get(name)]
    name = rng.choices(places, [PLACE_WEIGHTS[p] for p in places])[0]
    place = PAINTERS[name](rng, size)
    plans = sorted(_plan(library, place, rng, novel), key=lambda p: (not p.flying, p.foot))
    canvas = Canvas(size)
    canvas.image = place.image
    index_map = np.zeros((size, size), np.uint8)
    objects = []
    for depth, plan in enumerate(plans, start=1):
        objects.append(_paint(canvas, index_map, plan, depth, library, place, rng))
    _light(canvas, rng)
    things = tuple(objects)
    new_phrasing = novel and rng.random() < 0.5
    words = caption(things, place, rng, new_phrasing)
    held_out = new_phrasing or any(
        is_held_out(t.name, name) or (t.repainted and is_held_out(t.name, str(t.color))) for t in things
    )
    return Scene(
        seed, canvas.image, words, name, things, index_map, place.horizon * size, place.colors, held_out
    )


def _light(canvas: Canvas, rng: random.Random) -> None:
    """Let a gentle, slightly warm or cool light fall across the picture from one side."""
    strength, angle, warmth = rng.uniform(0.0, 0.07), rng.uniform(0, 2 * math.pi), rng.uniform(-0.02, 0.03)
    axis = np.linspace(-strength, strength, canvas.size, dtype=np.float32)
    fall = 1 + axis[None] * math.cos(angle) + axis[:, None] * math.sin(angle)
    gains = [fall * np.float32(1 + factor * warmth) for factor in (1, 0, -1)]
    canvas.image = cv2.multiply(canvas.image, cv2.merge(gains), dtype=cv2.CV_8U)


def _paint(
    canvas: Canvas, index_map: np.ndarray, plan: _Plan, depth: int, library: SpriteLibrary, place: Background,
    rng: random.Random,
) -> SceneObject:  # fmt: skip
    """Put one planned thing and its shadow into the picture and say where it is."""
    size = canvas.size
    width, height = max(2, round(plan.width * size)), max(2, round(plan.height * size))
    x0 = min(max(round(plan.x * size - width / 2), 0), size - width)
    y0 = min(max(round(plan.foot * size) - height, 0), size - height)
    flipped = rng.random() < 0.5
    stand = "air" if plan.flying else "water" if place.place == "sea" else "ground"
    put(canvas, index_map, library.sprite(plan.spec.name, plan.color), (x0, y0, width, height), depth,
        flipped=flipped, stand=stand, tint=place.tint, shadow=place.shadow)  # fmt: skip
    return SceneObject(
        name=plan.spec.name,
        plural=plan.spec.plural,
        category=plan.spec.category,
        color=plan.color or plan.spec.color,
        repainted=plan.color is not None,
        box=(x0, y0, x0 + width, y0 + height),
        foot=float(y0 + height),
        depth=depth,
        stand=stand,
        flipped=flipped,
    )
