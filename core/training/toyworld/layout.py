"""What stands where: the things of a scene and their places, before anything is painted."""

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

from .backgrounds import Background
from .compose import Drawable
from .mannequin import KINDS, Mannequin, make_mannequin
from .objects import PEOPLE, SOLIDS, ObjectSpec
from .palette import SHIFT_COLORS
from .solids import SOLID_COLORS, make_solid
from .sprites import SpriteLibrary

FAINT = {"snow": ("white",), "night": ("black",)}  # colours that a place swallows
PAINTABLE_WEIGHT = 1.8  # with it, about a third of all things are repainted
PEOPLE_SHARE, SOLIDS_SHARE = 0.22, 0.06  # of all scenes
PORTRAIT_SHARE = 0.14  # of the scenes with one person
FRAMED_HEIGHT, FRAMED_WIDTH, FRAMED_FOOT = 0.58, 0.84, 0.80  # of a thing alone in the middle: at most


@dataclass(frozen=True, slots=True)
class Choice:
    """A thing chosen for a scene; `figure` draws it, or a sprite does if that is None."""

    spec: ObjectSpec
    color: str | None
    figure: Drawable | None = None

    def aspect(self, library: SpriteLibrary) -> float:
        """Width over height."""
        return library.sprite(self.spec.name).aspect if self.figure is None else self.figure.aspect

    def picture(self, library: SpriteLibrary) -> Drawable:
        """Return what draws it."""
        return library.sprite(self.spec.name, self.color) if self.figure is None else self.figure


@dataclass(frozen=True, slots=True)
class Plan:
    """A thing before it is painted; lengths are shares of the side, `x` is its middle."""

    choice: Choice
    height: float
    width: float
    x: float
    foot: float
    flying: bool = False


@cache
def is_held_out(name: str, context: str) -> bool:
    """Say whether a thing in a place or in a painted colour is kept from training (one in sixteen)."""
    return zlib.crc32(f"{name}|{context}".encode()) % 16 == 0


def draw_kind(rng: random.Random) -> str:
    """Choose what a scene is about: "people", "solids" or "sprites"."""
    chance = rng.random()
    if chance < PEOPLE_SHARE:
        return "people"
    return "solids" if chance < PEOPLE_SHARE + SOLIDS_SHARE else "sprites"


def _avoided(place: Background) -> Sequence[str]:
    """Return the colours that are lost in a place: red on red."""
    return place.colors if place.place == "studio" else FAINT.get(place.place, ())


def _pick(library: SpriteLibrary, place: Background, rng: random.Random, novel: bool) -> Choice:
    """Choose a thing that fits a place, and a new paint for it or None.

    `novel` asks for combinations that training never shows, where there are any; else there are none of them.
    """
    fitting = library.fitting[place.place]
    fitting = tuple(s for s in fitting if is_held_out(s.name, place.place) == novel) or fitting
    avoid = _avoided(place)
    clear = [s for s in fitting if s.color is None or s.color not in avoid] or list(fitting)
    # What fits few places would else be rare: the model must learn every noun.
    weights = [(PAINTABLE_WEIGHT if s.shift else 1.0) / len(s.places) for s in clear]
    spec = rng.choices(clear, weights)[0]
    if not spec.shift or rng.random() < 0.25:
        return Choice(spec, None)
    words = [w for w in SHIFT_COLORS if w != spec.color and w not in avoid]
    words = [w for w in words if novel or not is_held_out(spec.name, w)]
    return Choice(spec, rng.choice(words))


def _pick_person(place: Background, rng: random.Random, novel: bool) -> Choice:
    """Choose a person for a place."""
    fitting = [s for s in PEOPLE if is_held_out(s.name, place.place) == novel] or list(PEOPLE)
    spec = rng.choices(fitting, [KINDS[s.name] for s in fitting])[0]
    return Choice(spec, None, make_mannequin(rng, spec.name, _avoided(place)))


def _pick_solid(place: Background, rng: random.Random, novel: bool) -> Choice:
    """Choose a solid for a place, and its paint."""
    fitting = [s for s in SOLIDS if is_held_out(s.name, place.place) == novel] or list(SOLIDS)
    spec, avoid = rng.choice(fitting), _avoided(place)
    words = [w for w in SOLID_COLORS if w not in avoid and (novel or not is_held_out(spec.name, w))]
    word = rng.choice(words)
    return Choice(spec, word, make_solid(spec.name, word, rng))


def _plan_one(
    choice: Choice, library: SpriteLibrary, place: Background, rng: random.Random, large: bool
) -> Plan:
    """Place a single thing, large or small."""
    spec, aspect = choice.spec, choice.aspect(library)
    height = rng.uniform(0.40, 0.75) if large else rng.uniform(0.2, 0.4) * min(1.2, spec.size + 0.2)
    if isinstance(choice.figure, Mannequin):
        height += 0.12  # people are slim
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
    return Plan(choice, height, width, x, foot, flying)


def _plan_portrait(choice: Choice, library: SpriteLibrary, rng: random.Random) -> Plan:
    """Place a person so near that the legs are outside the picture."""
    height = rng.uniform(1.15, 1.65)
    top = rng.uniform(0.05, 0.16)
    return Plan(choice, height, height * choice.aspect(library), rng.uniform(0.42, 0.58), top + height)


def _plan_row(
    chosen: list[Choice], library: SpriteLibrary, place: Background, rng: random.Random
) -> list[Plan]:
    """Place two or three things side by side, with sizes that suit each other."""
    rng.shuffle(chosen)
    count = len(chosen)
    unit = rng.uniform(0.40, 0.58) if count == 2 else rng.uniform(0.32, 0.44)
    people = sum(isinstance(choice.figure, Mannequin) for choice in chosen)
    if people:
        unit += 0.14
    largest = max(choice.spec.size for choice in chosen) ** 0.8
    slot = 0.96 / count
    plans = []
    far, near = place.stand
    for i, choice in enumerate(chosen):
        spec, aspect = choice.spec, choice.aspect(library)
        flying = spec.stand == "air" and place.place not in ("studio", "table")
        step = rng.uniform(0.25, 1.0)
        height = unit * spec.size**0.8 / largest * (0.75 + 0.25 * step)
        room = slot * 1.18 if isinstance(choice.figure, Mannequin) else slot * 1.02
        height = min(height, room / aspect, 0.92)
        width = height * aspect
        foot = max(far + (near - far) * step, height + 0.02)
        if flying:
            foot = rng.uniform(height + 0.04, max(height + 0.06, place.horizon * 0.9))
        play = max(0.0, (slot - width) / 2)
        x = 0.02 + slot * (i + 0.5) + rng.uniform(-play, play)
        plans.append(Plan(choice, height, width, x, foot, flying))
    return plans


def _plan_depth(
    chosen: list[Choice], library: SpriteLibrary, place: Background, rng: random.Random
) -> list[Plan]:
    """Place two things one before the other, the nearer hiding a part of the farther."""
    a, b = sorted(chosen, key=lambda choice: -choice.spec.size)
    far, near = place.stand
    back_aspect, front_aspect = a.aspect(library), b.aspect(library)
    back = min(rng.uniform(0.46, 0.60) + (0.12 if isinstance(a.figure, Mannequin) else 0), 0.62 / back_aspect)
    front = min(back * rng.uniform(0.45, 0.65), 0.40 / front_aspect)
    foot_back = max(far + 0.2 * (near - far), back + 0.04)
    foot_front = max(near - rng.uniform(0.0, 0.02), foot_back + 0.13)
    side = rng.choice((-1, 1))
    x = 0.5 - side * rng.uniform(0.05, 0.12)
    reach = back * back_aspect / 2
    x_front = x + side * (reach * rng.uniform(0.55, 0.8))
    plans = [
        Plan(a, back, back * back_aspect, x, min(foot_back, 0.84)),
        Plan(b, front, front * front_aspect, x_front, min(foot_front, 0.97)),
    ]
    return [replace(p, x=min(max(p.x, p.width / 2 + 0.01), 1 - p.width / 2 - 0.01)) for p in plans]


def make_plan(
    kind: str, library: SpriteLibrary, place: Background, rng: random.Random, novel: bool
) -> list[Plan]:
    """Choose the things of a scene and where they are; `kind` is what `draw_kind` chose."""
    if kind == "people":
        return _plan_people(library, place, rng, novel)
    if kind == "solids":
        return _plan_solids(library, place, rng, novel)
    layout = rng.random()
    if layout < 0.67:
        return [_plan_one(_pick(library, place, rng, novel), library, place, rng, large=layout < 0.55)]
    if layout < 0.80:
        return _plan_row([_pick(library, place, rng, novel)] * rng.choice((2, 2, 3)), library, place, rng)
    chosen: list[Choice] = []
    for _ in range(8):
        choice = _pick(library, place, rng, novel)
        if all(choice.spec.name != other.spec.name for other in chosen):
            chosen.append(choice)
    chosen = chosen[: 2 if layout < 0.94 else 3]
    standing = [c for c in chosen if c.spec.stand != "air"]
    if layout < 0.87 and len(standing) == 2:
        return _plan_depth(chosen, library, place, rng)
    return _plan_row(chosen, library, place, rng) if len(chosen) > 1 else [
        _plan_one(chosen[0], library, place, rng, large=True)
    ]  # fmt: skip


def plan_framed(library: SpriteLibrary, place: Background, rng: random.Random, novel: bool) -> Plan:
    """Choose one thing and show it alone: in the middle, large, with hardly any play."""
    choice = _pick(library, place, rng, novel)
    aspect = choice.aspect(library)
    height = min(FRAMED_HEIGHT * rng.uniform(0.95, 1.05), FRAMED_WIDTH / aspect)
    flying = choice.spec.stand == "air" and place.place not in ("studio", "table")
    low, high = (0.0, 1.0) if flying else place.stand
    foot = (0.5 + height / 2 if flying else FRAMED_FOOT) + rng.uniform(-0.015, 0.015)
    foot = min(max(foot, low, height + 0.04), high)
    return Plan(choice, height, height * aspect, 0.5 + rng.uniform(-0.03, 0.03), foot, flying)


def _plan_people(library: SpriteLibrary, place: Background, rng: random.Random, novel: bool) -> list[Plan]:
    """Choose one to three people, perhaps with a thing, and where they are."""
    first, layout = _pick_person(place, rng, novel), rng.random()
    if layout < 0.60:
        if rng.random() < PORTRAIT_SHARE and first.aspect(library) < 0.55:
            return [_plan_portrait(first, library, rng)]
        return [_plan_one(first, library, place, rng, large=layout < 0.54)]
    if layout < 0.84:
        thing = _pick(library, place, rng, novel)
        if layout < 0.66 and thing.spec.stand != "air":
            return _plan_depth([first, thing], library, place, rng)
        return _plan_row([first, thing], library, place, rng)
    others = [_pick_person(place, rng, novel) for _ in range(1 if layout < 0.94 else 2)]
    return _plan_row([first, *others], library, place, rng)


def _plan_solids(library: SpriteLibrary, place: Background, rng: random.Random, novel: bool) -> list[Plan]:
    """Choose one to three solids, or one with a thing, and where they are."""
    first, layout = _pick_solid(place, rng, novel), rng.random()
    if layout < 0.5:
        return [_plan_one(first, library, place, rng, large=True)]
    if layout < 0.65:
        return _plan_row([first, _pick(library, place, rng, novel)], library, place, rng)
    others = [_pick_solid(place, rng, novel) for _ in range(rng.choice((1, 1, 2)))]
    chosen = [first, *(other for other in others if other.spec.name != first.spec.name)]
    if len(chosen) == 3 and chosen[1].spec.name == chosen[2].spec.name:
        chosen.pop()
    if len(chosen) == 1:
        return [_plan_one(first, library, place, rng, large=True)]
    if len(chosen) == 2 and layout > 0.85:
        return _plan_depth(chosen, library, place, rng)
    return _plan_row(chosen, library, place, rng)
