"""The registry of places: a painter and how often it is drawn."""

from .backgrounds import Painter, room, studio, table
from .outdoors import beach, desert, meadow, night, sea, snow, street, sunset

PAINTERS: dict[str, Painter] = {
    "studio": studio, "room": room, "table": table, "meadow": meadow, "beach": beach, "snow": snow,
    "desert": desert, "night": night, "sunset": sunset, "street": street, "sea": sea,
}  # fmt: skip
PLACE_WEIGHTS: dict[str, float] = {
    "studio": 24, "room": 12, "table": 11, "meadow": 14, "beach": 7, "snow": 6, "desert": 5, "night": 5,
    "sunset": 5, "street": 7, "sea": 4,
}  # fmt: skip
