"""The places: a studio, a room, a table top; those under the open sky are in outdoors.py."""

import math
import random
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .canvas import Canvas
from .palette import PAINTS, mix, paint
from .truth import FLOOR, RUG, TABLE, WALL, WINDOW, Terrain

WHITE = np.array([255, 255, 255], np.float32)
SHADE = np.array([24, 20, 40], np.float32)
WALL_COLORS = ("yellow", "blue", "pink", "green", "white", "purple", "orange", "gray", "red")
BACKDROP_COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white", "gray", "black")


@dataclass(frozen=True, slots=True)
class Background:
    """A place without its things.

    `image` is (size, size, 3) uint8 RGB. Lengths are shares of the side: the ground plane vanishes at
    `horizon`, things stand with their feet between `stand` (far, near). `phrases` are true words for what is
    on the ground, `air_phrases` for what flies. `tint` multiplies the
    RGB of things, `shadow` in [0, 1] is how dark their shadows are; `terrain` is its truth where asked for.
    """

    place: str
    image: np.ndarray
    horizon: float
    stand: tuple[float, float]
    phrases: tuple[str, ...]
    air_phrases: tuple[str, ...]
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    shadow: float = 0.5
    terrain: Terrain | None = None

    @property
    def colors(self) -> tuple[str, ...]:
        """All colour words in the phrases, and so all that are said to be true of the place."""
        said = set(" ".join(self.phrases + self.air_phrases).split())
        return tuple(word for word in PAINTS if word in said)


class Painter(Protocol):
    """Paints a place with a side in pixels, with its truth if asked; the picture is the same either way."""

    def __call__(self, rng: random.Random, size: int, truth: bool = False) -> Background:
        """Paint it."""


def article(words: str) -> str:
    """Put "a" or "an" before words."""
    exceptions = ("unicorn", "u", "one")
    vowel = words[0] in "aeiou" and words.split()[0] not in exceptions
    return f"{'an' if vowel else 'a'} {words}"


def soft_color(word: str, rng: random.Random, pale: float = 0.35) -> np.ndarray:
    """Return a wall-like, paler RGB of a colour word."""
    if word == "black":
        return mix(paint(word, rng), WHITE, 0.06)
    return mix(paint(word, rng), WHITE, 0.0 if word in ("white", "gray") else rng.uniform(pale * 0.5, pale))


def studio(rng: random.Random, size: int, truth: bool = False) -> Background:
    """Paint a seamless backdrop in one named colour."""
    word = rng.choice(BACKDROP_COLORS)
    color = soft_color(word, rng, 0.30)
    canvas = Canvas(size, truth)
    horizon = rng.uniform(0.58, 0.72)
    dark, light = mix(color, SHADE, 0.10), mix(color, WHITE, 0.08 if word == "black" else 0.18)
    canvas.ground(horizon - 0.30)
    canvas.now(WALL, horizon)
    canvas.rows(0, horizon, (mix(color, SHADE, 0.05), color))
    canvas.now(FLOOR)
    canvas.rows(horizon, 1, (color, light, mix(color, dark, 0.4)))
    canvas.glow((rng.uniform(0.35, 0.65), 0.42), (0.62, 0.5), light, 0.7)
    phrases = (
        f"on a plain {word} background", f"on a {word} background", f"in front of a plain {word} backdrop",
        f"against a {word} backdrop", f"in a studio with a {word} background",
    )  # fmt: skip
    return Background("studio", canvas.image, horizon, (0.70, 0.95), _an(phrases), _an(phrases),
                      shadow=0.45, terrain=canvas.terrain)  # fmt: skip


def _an(phrases: tuple[str, ...]) -> tuple[str, ...]:
    """Correct "a orange" to "an orange"."""
    return tuple(p.replace(" a orange", " an orange") for p in phrases)


def _plane(size: int, top: float, vanish: tuple[float, float], scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Return where the pixels below `top` lie on the floor.

    Returns:
        Sideways position and distance, each (rows, size) float32, in tiles.
    """
    rows = np.arange(round(top * size), size, dtype=np.float32)[:, None] + 0.5
    columns = np.arange(size, dtype=np.float32)[None] + 0.5
    distance = scale / (rows / size - vanish[1])
    return (columns / size - vanish[0]) * distance, np.broadcast_to(distance * 1.6, (len(rows), size))


def _boards(across: np.ndarray, depth: np.ndarray, color: np.ndarray, rng: random.Random) -> np.ndarray:
    """Colour a floor as wooden boards running away from the viewer, (rows, size, 3) float32."""
    index = np.floor(across).astype(int)
    tones = np.array([rng.uniform(-0.07, 0.07) for _ in range(64)], np.float32)
    tone = tones[index % 64]
    gap = np.abs(across - np.round(across))
    width = np.abs(np.gradient(across, axis=1)) * 1.1
    seam = np.clip(1.3 - gap / np.maximum(width, 1e-4), 0, 1) * 0.30
    grain = np.sin(across * 23 + np.sin(depth * 1.3 + index * 1.7) * 2) * 0.015
    return np.asarray(color * (1 + tone + grain - seam)[..., None], np.float32)


def _tiles(across: np.ndarray, depth: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Colour a floor as a chequerboard with smooth edges, (rows, size, 3) float32."""
    wave = np.sin(np.pi * across) * np.sin(np.pi * depth)
    slope = np.pi * (np.abs(np.gradient(across, axis=1)) + np.abs(np.gradient(depth, axis=0)))
    share = np.clip(wave / np.maximum(slope, 1e-3) + 0.5, 0, 1)[..., None]
    return np.asarray(a + (b - a) * share, np.float32)


def _floor(canvas: Canvas, rng: random.Random, top: float, vanish: tuple[float, float]) -> str:
    """Paint a floor below `top`; return its words."""
    kind = rng.choice(("wood", "wood", "tiles", "carpet"))
    across, depth = _plane(canvas.size, top, vanish, rng.uniform(1.6, 2.4))
    fade = np.linspace(0.86, 1.04, len(across), dtype=np.float32)[:, None, None]
    if kind == "wood":
        wood = mix(paint("brown", rng), paint("orange", rng), rng.uniform(0.25, 0.5))
        canvas.band(top, _boards(across, depth, mix(wood, WHITE, rng.uniform(0.08, 0.35)), rng) * fade)
        return "a wooden floor"
    word = rng.choice(("red", "blue", "green", "purple", "gray", "pink", "orange", "yellow"))
    color = soft_color(word, rng, 0.3)
    if kind == "tiles":
        light = np.array([246, 244, 240], np.float32)
        canvas.band(top, _tiles(across, depth, color, light) * fade)
        return f"{article(word)} and white checkered floor"
    canvas.band(top, np.broadcast_to(color, (*across.shape, 3)) * fade)
    return f"{article(word)} carpet"


def _window(canvas: Canvas, rng: random.Random, bottom: float) -> None:
    """Hang a window with a view of the sky on the wall."""
    x, y = rng.uniform(0.06, 0.62), rng.uniform(0.06, 0.14)
    w, h = rng.uniform(0.22, 0.32), min(rng.uniform(0.26, 0.36), bottom - y - 0.12)
    frame, sky = np.array([250, 248, 244], np.float32), paint("blue", rng)
    canvas.rectangle((x - 0.012, y - 0.004), (x + w + 0.018, y + h + 0.024), mix(frame, SHADE, 0.35))
    canvas.rectangle((x - 0.018, y - 0.018), (x + w + 0.018, y + h + 0.018), frame, mix(frame, SHADE, 0.08))
    canvas.rectangle((x, y), (x + w, y + h), mix(sky, WHITE, 0.45), mix(sky, WHITE, 0.8))
    hill = [(x + w * i / 12, y + h * (1 - 0.24 * math.sin(math.pi * i / 12))) for i in range(13)]
    canvas.polygon(hill, mix(paint("green", rng), WHITE, 0.25))
    canvas.line((x + w / 2, y), (x + w / 2, y + h), frame, 0.014)
    canvas.line((x, y + h / 2), (x + w, y + h / 2), frame, 0.014)


def room(rng: random.Random, size: int, truth: bool = False) -> Background:
    """Paint a room: a wall, perhaps a window, a side wall or a rug, and a floor in perspective."""
    canvas = Canvas(size, truth)
    word = rng.choice(WALL_COLORS)
    wall = soft_color(word, rng, 0.45)
    top = rng.uniform(0.54, 0.66)
    vanish = (rng.uniform(0.35, 0.65), rng.uniform(0.18, 0.30))
    canvas.ground(vanish[1])
    canvas.now(WALL, top)
    canvas.rows(0, top, (mix(wall, SHADE, 0.06), mix(wall, WHITE, 0.12)))
    canvas.now(FLOOR)
    floor = _floor(canvas, rng, top, vanish)
    window = rng.random() < 0.4
    if window:
        canvas.now(WINDOW, top)
        _window(canvas, rng, top)
    canvas.now(WALL, top)
    canvas.rows(top - 0.028, top, (mix(wall, WHITE, 0.75), mix(wall, WHITE, 0.55)))
    canvas.rows(top - 0.004, top + 0.004, (mix(wall, SHADE, 0.55),))
    rug = rng.choice(("red", "blue", "yellow", "purple", "pink", "green")) if rng.random() < 0.3 else None
    canvas.now(RUG)
    if rug:
        color = paint(rug, rng)
        center, axes = (rng.uniform(0.4, 0.6), 0.83), (rng.uniform(0.34, 0.44), 0.12)
        canvas.ellipse((center[0], center[1] + 0.006), (axes[0], axes[1]), mix(color, SHADE, 0.45))
        canvas.ellipse(center, axes, mix(color, WHITE, 0.1), color)
        canvas.ellipse(
            center, (axes[0] * 0.86, axes[1] * 0.84), mix(color, WHITE, 0.4), mix(color, WHITE, 0.3)
        )
        canvas.ellipse(center, (axes[0] * 0.80, axes[1] * 0.77), mix(color, WHITE, 0.12), color)
    phrases = [
        f"on {floor} in front of {article(word)} wall", f"in a room with {article(word)} wall",
        f"in a room with {article(word)} wall and {floor}", f"on {floor}",
    ]  # fmt: skip
    if window:
        phrases.append(f"in a room with {article(word)} wall and a window")
    if rug:
        phrases.append(f"in a room with {article(word)} wall and {article(rug)} rug")
    air = tuple(p for p in phrases if p.startswith("in "))
    return Background("room", canvas.image, vanish[1], (top + 0.08, 0.94), tuple(phrases), air,
                      terrain=canvas.terrain)  # fmt: skip


def table(rng: random.Random, size: int, truth: bool = False) -> Background:
    """Paint a table top with its front edge, before a wall."""
    canvas = Canvas(size, truth)
    word = rng.choice(WALL_COLORS)
    wall = soft_color(word, rng, 0.45)
    top, edge = rng.uniform(0.52, 0.62), rng.uniform(0.90, 0.95)
    canvas.ground(top - 0.35)
    canvas.now(WALL, top - 0.08)
    canvas.rows(0, 1, (mix(wall, SHADE, 0.04), mix(wall, WHITE, 0.15), mix(wall, SHADE, 0.12)))
    if rng.random() < 0.6:
        wood = mix(paint("brown", rng), paint("orange", rng), rng.uniform(0.2, 0.5))
        name, color, wooden = "a wooden table", mix(wood, WHITE, rng.uniform(0.05, 0.3)), True
    else:
        said = rng.choice(("white", "red", "blue", "green", "yellow", "pink", "purple"))
        name, color, wooden = f"{article(said)} table", soft_color(said, rng, 0.2), False
    inset = rng.uniform(0.06, 0.14)
    behind = Canvas(size, truth)
    behind.image = canvas.image.copy()
    if canvas.terrain is not None and behind.terrain is not None:
        behind.terrain.labels = canvas.terrain.labels.copy()
        behind.terrain.depth = canvas.terrain.depth.copy()
    canvas.now(TABLE)
    across, depth = _plane(size, top, (0.5, top - 0.35), 1.3)
    surface = _boards(across, depth, color, rng) if wooden else np.broadcast_to(color, (*across.shape, 3))
    canvas.band(top, surface * np.linspace(1.06, 0.94, len(across), dtype=np.float32)[:, None, None])
    _cut(canvas, behind, [(inset, top), (1 - inset, top), (1.03, edge), (-0.03, edge)])
    canvas.now(TABLE, edge)
    canvas.rectangle((-0.03, edge), (1.03, edge + 0.045), mix(color, SHADE, 0.22), mix(color, SHADE, 0.36))
    canvas.now(WALL, top - 0.08)
    canvas.rectangle((-0.03, edge + 0.045), (1.03, 1.02), mix(wall, SHADE, 0.5), mix(wall, SHADE, 0.35))
    canvas.now(TABLE)
    canvas.line((0, edge), (1, edge), mix(color, WHITE, 0.35), 0.006)
    phrases = (
        f"on {name} in front of {article(word)} wall", f"on {name}", f"standing on {name}",
        f"on {name} with {article(word)} wall behind",
    )  # fmt: skip
    air = (f"in front of {article(word)} wall above {name}",)
    return Background("table", canvas.image, top - 0.3, (top + 0.10, edge - 0.03), phrases, air,
                      terrain=canvas.terrain)  # fmt: skip


def _cut(canvas: Canvas, outside: Canvas, corners: list[tuple[float, float]]) -> None:
    """Keep the picture inside a polygon and put `outside` around it."""
    stencil = Canvas(canvas.size)
    stencil.polygon(corners, WHITE)
    share = stencil.image.astype(np.float32) / 255
    under = outside.image.astype(np.float32)
    canvas.image = np.rint(under + (canvas.image - under) * share).astype(np.uint8)
    if canvas.terrain is not None and outside.terrain is not None:
        inside = stencil.image[..., 0] >= 128
        canvas.terrain.labels = np.where(inside, canvas.terrain.labels, outside.terrain.labels)
        canvas.terrain.depth = np.where(inside, canvas.terrain.depth, outside.terrain.depth)
