"""The table of things that may stand in the toy world; adding a thing is adding a row to objects.csv."""

import csv
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from .truth import BALL, BOX, PERSON, PLAYTHING

PLACES = (
    "studio", "room", "table", "meadow", "beach", "snow", "desert", "night", "sunset", "street", "sea",
)  # fmt: skip
PEOPLE_PLACES = ("studio", "room", "meadow", "beach", "snow", "desert", "night", "sunset", "street")
GROUPS = {
    "land": ("meadow", "beach", "snow", "desert", "night", "sunset", "street"),
    "indoor": ("room", "table"),
}
STANDS = ("ground", "air", "water")


@dataclass(frozen=True, slots=True)
class ObjectSpec:
    """One row of objects.csv.

    `size` is the height beside other things (1.0 is a small car; compressed, as toys are), `places` are
    the places where it fits (the studio always), `stand` says what carries it, `color` is the word that is
    true of the untouched sprite or None, `shift` allows recolouring, and `ade` is its class in ADE20K,
    counted from 0.
    """

    code: str
    name: str
    plural: str
    category: str
    size: float
    places: frozenset[str]
    stand: str
    color: str | None
    shift: bool
    ade: int


def plural(noun: str) -> str:
    """Return the regular English plural."""
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2:-1] not in tuple("aeiou"):
        return noun[:-1] + "ies"
    return noun + "s"


def _spec(row: dict[str, str]) -> ObjectSpec:
    """Make one spec from a CSV row.

    Raises:
        ValueError: an unknown place or kind of standing.
    """
    places = {"studio"}
    for word in row["places"].split():
        places.update(GROUPS.get(word, (word,)))
    if unknown := places - set(PLACES):
        raise ValueError(f"objects.csv, {row['name']}: unknown places {sorted(unknown)}; known: {PLACES}")
    if row["stand"] not in STANDS:
        raise ValueError(f"objects.csv, {row['name']}: stand is {row['stand']!r}; allowed: {STANDS}")
    return ObjectSpec(
        code=row["code"],
        name=row["name"],
        plural=row["plural"] or plural(row["name"]),
        category=row["category"],
        size=float(row["size"]),
        places=frozenset(places),
        stand=row["stand"],
        color=row["color"] or None,
        shift=row["shift"] == "yes",
        ade=int(row["ade"]),
    )


@lru_cache(maxsize=1)
def all_objects() -> tuple[ObjectSpec, ...]:
    """Read objects.csv beside this file."""
    with (Path(__file__).parent / "objects.csv").open(newline="", encoding="utf-8") as lines:
        return tuple(_spec(row) for row in csv.DictReader(lines))


def _figure(name: str, plural: str, category: str, size: float, ade: int) -> ObjectSpec:
    """Make the spec of something that is drawn, not a sprite."""
    return ObjectSpec("", name, plural, category, size, frozenset(PEOPLE_PLACES), "ground", None, False, ade)


PEOPLE = (
    _figure("man", "men", "person", 1.2, PERSON), _figure("woman", "women", "person", 1.15, PERSON),
    _figure("boy", "boys", "person", 0.95, PERSON), _figure("girl", "girls", "person", 0.95, PERSON),
)  # fmt: skip
SOLIDS = (
    _figure("cube", "cubes", "toy", 0.7, BOX), _figure("ball", "balls", "toy", 0.65, BALL),
    _figure("cylinder", "cylinders", "toy", 0.75, PLAYTHING),
    _figure("cone", "cones", "toy", 0.75, PLAYTHING),
)  # fmt: skip
