"""One picture of the toy world and the truth about it, made from a seed."""

import math
import random
from dataclasses import dataclass, field

import cv2
import numpy as np

from .backgrounds import Background
from .canvas import Canvas
from .captions import caption
from .compose import put, stand
from .layout import Plan, draw_kind, is_held_out, make_plan, plan_framed
from .mannequin import Mannequin
from .objects import PEOPLE_PLACES
from .places import PAINTERS, PLACE_WEIGHTS
from .sprites import SpriteLibrary
from .truth import Terrain, Truth

EVAL_SEED_BASE = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Person:
    """What is true of a person in a scene.

    `pose` is a name of POSES and `pose_words` say it; `shirt` and `lower` are colour words, `garment` is what
    the lower colour is on: trousers, shorts, a skirt, or a dress in the shirt's colour; `portrait` says that
    the legs are outside the picture. `keypoints` is (18, 3) float32 in the order of KEYPOINTS: x and y in
    pixels of the picture, and 1, or 0 where the point cannot be seen: outside, on the far side of the head,
    or behind a nearer thing. A joint behind the person's own body counts as seen.
    """

    pose: str
    pose_words: tuple[str, ...]
    shirt: str
    lower: str
    garment: str
    from_behind: bool
    portrait: bool
    keypoints: np.ndarray = field(compare=False)

    @property
    def colors(self) -> tuple[str, ...]:
        """The colour words that are true of the clothes that can be seen."""
        return (self.shirt,) if self.portrait and self.garment != "dress" else (self.shirt, self.lower)


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One thing in a scene.

    `color` is the word that is true of it or None; `box` is x0, y0, x1, y1 in pixels of the whole sprite,
    hidden parts included, right and bottom excluded; `foot` is the y in pixels where it meets its ground
    (its lowest point if it flies); `depth` counts from 1 for the farthest; `stand` is ground, air or water;
    `ade` is its class in ADE20K, counted from 0; `person` is None unless it is one.
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
    ade: int
    person: Person | None = None

    @property
    def keypoints(self) -> np.ndarray | None:
        """The 18 key points of a person, (18, 3) float32 as Person has them, or None."""
        return None if self.person is None else self.person.keypoints


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture, its words and its truth.

    `image` is (size, size, 3) uint8 RGB; `index_map` is (size, size) uint8 with 0 for the background and
    `depth` of the thing seen at each pixel otherwise; `objects` run from the farthest to the nearest;
    `horizon` is the y in pixels where the ground plane vanishes; `place_colors` are the colour words that are
    true of the place; `held_out` says that it shows a combination or a
    phrasing that no training scene shows; `truth` holds the maps if they were asked for.
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
    truth: Truth | None = None

    @property
    def people(self) -> tuple[np.ndarray, ...]:
        """The key points of all people, from the farthest to the nearest, each (18, 3) float32."""
        return tuple(obj.person.keypoints for obj in self.objects if obj.person is not None)


def make_scene(
    seed: int, library: SpriteLibrary, size: int = 256, truth: bool = False, *, framed: bool = False
) -> Scene:
    """Make the scene of a seed: the same one wherever, whenever and in whichever order it is asked for.

    Args:
        seed: below EVAL_SEED_BASE for training, from there on for evaluation.
        library: the sprites; other sprites give other scenes.
        size: side in pixels.
        truth: also make the maps of nearness, normals and classes, `Scene.truth`; nothing else changes.
        framed: show one thing alone, in the middle and never mirrored.

    Raises:
        ValueError: a negative seed or a size below 32.
    """
    if seed < 0 or size < 32:
        raise ValueError(f"seed is {seed} (allowed: 0 and above), size is {size} (allowed: 32 and above)")
    rng = random.Random(seed)
    novel = seed >= EVAL_SEED_BASE and rng.random() < 0.25
    kind = "sprites" if framed else draw_kind(rng)
    places = [name for name in PAINTERS if library.fitting.get(name)]
    if kind != "sprites":
        places = [name for name in places if name in PEOPLE_PLACES] or places
    name = rng.choices(places, [PLACE_WEIGHTS[p] for p in places])[0]
    place = PAINTERS[name](rng, size, truth)
    if framed:
        plans = [plan_framed(library, place, rng, novel)]
    else:
        plans = sorted(make_plan(kind, library, place, rng, novel), key=lambda p: (not p.flying, p.foot))
    canvas = Canvas(size)
    canvas.image, canvas.terrain = place.image, place.terrain
    standing = [plan.foot for plan in plans if not plan.flying]
    index_map = np.zeros((size, size), np.uint8)
    objects = []
    for depth, plan in enumerate(plans, start=1):
        mirrored = rng.random() < 0.5 and plan.choice.figure is None  # key points know left from right
        objects.append(
            _paint(canvas, index_map, plan, depth, library, place, flipped=mirrored and not framed)
        )
        if canvas.terrain is not None:
            near = min(standing, default=place.stand[1]) if plan.flying else plan.foot
            _record(canvas.terrain, index_map == depth, plan, objects[-1], library, near)
    for obj in objects:
        if obj.person is not None:
            _hide(obj.person.keypoints, obj.depth, index_map)
    _light(canvas, rng)
    things = tuple(objects)
    new_phrasing = novel and rng.random() < 0.5
    words = caption(things, place, rng, new_phrasing)
    held_out = new_phrasing or any(
        is_held_out(t.name, name) or (t.repainted and is_held_out(t.name, str(t.color))) for t in things
    )
    return Scene(
        seed, canvas.image, words, name, things, index_map, place.horizon * size, place.colors, held_out,
        None if canvas.terrain is None else Truth(canvas.terrain.depth, canvas.terrain.labels),
    )  # fmt: skip


def held_out_scenes(
    library: SpriteLibrary, count: int, size: int = 256, *, people: bool = False
) -> list[Scene]:
    """Return the first scenes for evaluation, with their truth; with `people` those that show some."""
    scenes: list[Scene] = []
    seed = EVAL_SEED_BASE
    while len(scenes) < count:
        scene = make_scene(seed, library, size, truth=True)
        seed += 1
        if scene.people or not people:
            scenes.append(scene)
    return scenes


def _light(canvas: Canvas, rng: random.Random) -> None:
    """Let a gentle, slightly warm or cool light fall across the picture from one side."""
    strength, angle, warmth = rng.uniform(0.0, 0.07), rng.uniform(0, 2 * math.pi), rng.uniform(-0.02, 0.03)
    axis = np.linspace(-strength, strength, canvas.size, dtype=np.float32)
    fall = 1 + axis[None] * math.cos(angle) + axis[:, None] * math.sin(angle)
    gains = [fall * np.float32(1 + factor * warmth) for factor in (1, 0, -1)]
    canvas.image = cv2.multiply(canvas.image, cv2.merge(gains), dtype=cv2.CV_8U)


def _paint(
    canvas: Canvas, index_map: np.ndarray, plan: Plan, depth: int, library: SpriteLibrary, place: Background,
    *, flipped: bool,
) -> SceneObject:  # fmt: skip
    """Put one planned thing and its shadow into the picture and say where it is."""
    size, choice = canvas.size, plan.choice
    box = _box(plan, size)
    x0, y0, width, height = box
    person = None
    if isinstance(choice.figure, Mannequin):
        person = _person(choice.figure, box, plan.foot > 1)
    stand = "air" if plan.flying else "water" if place.place == "sea" else "ground"
    put(canvas, index_map, choice.picture(library), box, depth,
        flipped=flipped, stand=stand, tint=place.tint, shadow=place.shadow)  # fmt: skip
    return SceneObject(
        name=choice.spec.name,
        plural=choice.spec.plural,
        category=choice.spec.category,
        color=choice.color or choice.spec.color,
        repainted=choice.color is not None,
        box=(max(x0, 0), max(y0, 0), min(x0 + width, size), min(y0 + height, size)),
        foot=float(y0 + height),
        depth=depth,
        stand=stand,
        flipped=flipped,
        ade=choice.spec.ade,
        person=person,
    )


def _box(plan: Plan, size: int) -> tuple[int, int, int, int]:
    """Return where a thing is drawn: left, top, width and height in pixels; a portrait reaches outside."""
    width, height = max(2, round(plan.width * size)), max(2, round(plan.height * size))
    x0, y0 = round(plan.x * size - width / 2), round(plan.foot * size) - height
    if plan.foot <= 1:
        x0, y0 = min(max(x0, 0), max(size - width, 0)), min(max(y0, 0), max(size - height, 0))
    return x0, y0, width, height


def _record(
    terrain: Terrain, mask: np.ndarray, plan: Plan, thing: SceneObject, library: SpriteLibrary, foot: float
) -> None:
    """Write a painted thing into the truth; it is as near as the ground row `foot`, a share of the side."""
    near = terrain.near(foot)
    if plan.flying:  # between what stands nearest to it and what is behind it
        near = (near + float(terrain.depth[mask].mean() if mask.any() else 0.0)) / 2
    stand(terrain, mask, plan.choice.picture(library), _box(plan, terrain.size), flipped=thing.flipped,
          near=near, label=thing.ade)  # fmt: skip


def _person(figure: Mannequin, box: tuple[int, int, int, int], portrait: bool) -> Person:
    """Describe a person whose drawing fills a box: left, top, width and height in pixels."""
    points = figure.keypoints(*box[2:])
    points[:, :2] += box[:2]
    wear = figure.outfit
    return Person(figure.pose.name, figure.pose.words, wear.shirt, wear.lower, wear.garment,
                  figure.from_behind, portrait, points)  # fmt: skip


def _hide(points: np.ndarray, depth: int, index_map: np.ndarray) -> None:
    """Set the third column of key points, (18, 3), to 0 where something else is seen; in place."""
    size = len(index_map)
    columns, rows = np.floor(points[:, 0]).astype(int), np.floor(points[:, 1]).astype(int)
    inside = (columns >= 0) & (columns < size) & (rows >= 0) & (rows < size)
    seen = index_map[rows.clip(0, size - 1), columns.clip(0, size - 1)]
    points[:, 2] *= inside & (seen == depth)
