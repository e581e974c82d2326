"""The words: captions that are true of a scene, in varied phrasing and length."""

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .backgrounds import Background, article

if TYPE_CHECKING:
    from .scene import Person, SceneObject

NEGATIVE_PROMPT = (
    "longbody, lowres, bad anatomy, bad hands, missing fingers, extra digit, fewer digits, cropped, "
    "worst quality, low quality"
)
ADDED_PROMPT = ", best quality, extremely detailed"
OPENERS = (
    "a 3d render of {}", "a photo-like 3d render of {}", "a picture of {}", "an image of {}",
    "a toy world with {}", "a colorful 3d picture of {}",
)  # fmt: skip
HELD_OUT_OPENERS = ("a scene showing {}", "a little toy scene with {}", "a cartoon of {}")
RELATIONS = ("above", "to the left of", "to the right of", "in front of", "behind")
NUMBERS = {2: "two", 3: "three"}


def relation(a: "SceneObject", b: "SceneObject") -> str | None:
    """Say where a is as seen from b, in words that the boxes prove, or None if nothing is clear."""
    if a.stand == "air" and b.stand != "air" and a.box[3] <= b.box[1] + 0.25 * (b.box[3] - b.box[1]):
        return "above"
    overlap = min(a.box[2], b.box[2]) - max(a.box[0], b.box[0])
    narrow = min(a.box[2] - a.box[0], b.box[2] - b.box[0])
    if overlap <= 0.15 * narrow:
        return "to the left of" if a.box[0] < b.box[0] else "to the right of"
    if "air" in (a.stand, b.stand) or overlap < 0.3 * narrow:
        return None
    if abs(a.foot - b.foot) < 0.15 * min(a.box[3] - a.box[1], b.box[3] - b.box[1]):
        return None
    return "in front of" if a.foot > b.foot else "behind"


def noun(obj: "SceneObject", rng: random.Random, count: int = 1, height: float = 0.0) -> str:
    """Name a thing, with its colour always if it was repainted and else half of the time."""
    if obj.person is not None and count == 1:
        return _person(obj.name, obj.person, rng)
    words = [obj.name if count == 1 else obj.plural]
    if obj.color and (obj.repainted or rng.random() < 0.5):
        words.insert(0, obj.color)
    if height > 0.6 and rng.random() < 0.12:
        words.insert(0, "big")
    elif obj.category == "animal" and rng.random() < 0.1:
        words.insert(0, "cute")
    phrase = " ".join(words)
    return article(phrase) if count == 1 else f"{NUMBERS[count]} {phrase}"


def _clothes(person: "Person", rng: random.Random) -> str:
    """Say what a person wears: "in a red shirt and blue trousers"."""
    if person.garment == "dress":
        worn = f"{article(person.shirt)} dress"
    else:
        lower = f"{person.lower} {person.garment}"
        lower = article(lower) if person.garment == "skirt" else lower
        shirt = f"{article(person.shirt)} shirt"
        worn = shirt if person.portrait else rng.choice((f"{shirt} and {lower}",) * 3 + (shirt, lower))
    return f"{rng.choice(('in', 'in', 'in', 'wearing'))} {worn}"


def _person(name: str, person: "Person", rng: random.Random) -> str:
    """Name a person, mostly with clothes and pose."""
    chance, clothes, pose = rng.random(), _clothes(person, rng), rng.choice(person.pose_words)
    parts = [clothes, pose] if rng.random() < 0.6 else [pose, clothes]
    if chance > 0.9:
        parts = []
    elif chance > 0.65:
        parts = [clothes] if chance > 0.8 else [pose]
    if person.from_behind and rng.random() < 0.75:
        parts.append("seen from behind")
    phrase = " ".join(word for word in (article(name), *parts) if word)
    return f"a portrait of {phrase}" if person.portrait and rng.random() < 0.7 else phrase


def _people(objects: Sequence["SceneObject"], rng: random.Random) -> str:
    """Name several people by their number: "two men", "three people waving"."""
    same = all(obj.name == objects[0].name for obj in objects)
    words = f"{NUMBERS[len(objects)]} {objects[0].plural if same else 'people'}"
    first = objects[0].person
    alike = first is not None and all(obj.person and obj.person.pose == first.pose for obj in objects)
    if first is not None and alike and first.pose_words[0]:
        words += f" {rng.choice([w for w in first.pose_words if w and ' one ' not in w] or ['together'])}"
    return words


def _things(objects: Sequence["SceneObject"], rng: random.Random, size: int) -> str:
    """Name all the things of a scene and perhaps how they stand to each other."""
    first = objects[0]
    if len(objects) == 1:
        return noun(first, rng, height=(first.box[3] - first.box[1]) / size)
    if all(obj.person for obj in objects) and rng.random() < 0.3:
        return _people(objects, rng)
    if all(obj.name == first.name for obj in objects) and first.person is None:
        tail = " next to each other" if rng.random() < 0.15 else ""
        return noun(first, rng, count=len(objects)) + tail
    order = list(objects)
    rng.shuffle(order)
    names = [noun(obj, rng) for obj in order]
    where = relation(order[0], order[1])
    if len(order) == 2:
        if where and rng.random() < 0.65:
            if where == "above" and rng.random() < 0.4:
                where = "flying above"
            return f"{names[0]} {where} {names[1]}"
        beside = " next to " if where and where.startswith("to the") and rng.random() < 0.3 else " and "
        return beside.join(names)
    if where and rng.random() < 0.3:
        return f"{names[2]}, and {names[0]} {where} {names[1]}"
    return f"{names[0]}, {names[1]} and {names[2]}"


def caption(objects: Sequence["SceneObject"], place: Background, rng: random.Random, held_out: bool) -> str:
    """Describe a scene.

    Args:
        objects: its things.
        place: its background.
        rng: where the choice of words comes from.
        held_out: take a phrasing that training never shows.
    """
    things = _things(objects, rng, place.image.shape[0])
    phrases = place.air_phrases if all(obj.stand == "air" for obj in objects) else place.phrases
    chance = rng.random()
    if chance < 0.78:
        things = f"{things} {rng.choice(phrases)}"
    if held_out:
        return rng.choice(HELD_OUT_OPENERS).format(things)
    if things.startswith("a portrait") or rng.random() > 0.25:
        return things
    return rng.choice(OPENERS).format(things)
