"""The places under the open sky: meadow, beach, snow, desert, night, sunset, street and sea."""

import math
import random

import numpy as np

from .backgrounds import SHADE, WHITE, Background, Painter, article, room, soft_color, studio, table
from .canvas import Canvas
from .palette import mix, paint


def _rgb(r: float, g: float, b: float) -> np.ndarray:
    """Write a colour."""
    return np.array([r, g, b], np.float32)


def _sky(canvas: Canvas, rng: random.Random, horizon: float) -> None:
    """Paint a clear blue sky, paler at the horizon."""
    blue = paint("blue", rng)
    canvas.rows(0, horizon, (mix(blue, WHITE, 0.12), mix(blue, WHITE, 0.42), mix(blue, WHITE, 0.72)))


def _cloud(canvas: Canvas, x: float, y: float, w: float, rng: random.Random) -> None:
    """Paint a puffy white cloud about w wide."""
    low = _rgb(214, 226, 244)
    puffs = [(x + w * t, y - w * rng.uniform(0.0, 0.10), w * rng.uniform(0.15, 0.22)) for t in (-0.28, 0.30)]
    puffs.append((x + w * rng.uniform(-0.06, 0.06), y - w * 0.12, w * rng.uniform(0.22, 0.28)))
    for px, py, r in puffs:
        canvas.ellipse((px, py), (r, r * 0.86), WHITE, low)
    canvas.ellipse((x, y + w * 0.05), (w * 0.5, w * 0.13), WHITE, low)


def _clouds(canvas: Canvas, rng: random.Random, horizon: float) -> bool:
    """Perhaps paint one to three clouds; say whether."""
    count = rng.choice((0, 1, 2, 2, 3))
    for i in range(count):
        x = (i + rng.uniform(0.2, 0.8)) / count
        _cloud(canvas, x, rng.uniform(0.10, max(0.12, horizon - 0.16)), rng.uniform(0.18, 0.30), rng)
    return count > 0


def _ridge(
    canvas: Canvas, rng: random.Random, base: float, height: float, top: np.ndarray, bottom: np.ndarray
) -> None:
    """Paint a rolling line of hills from `base` upwards, filled below."""
    phase, waves, lean = rng.uniform(0, 6.3), rng.uniform(0.7, 1.6), rng.uniform(0, 6.3)
    xs = [i / 24 for i in range(-1, 26)]
    crest = [
        (x, base - height * (0.55 + 0.3 * math.sin(x * waves * 6.3 + phase) + 0.15 * math.sin(x * 9 + lean)))
        for x in xs
    ]
    canvas.polygon([*crest, (xs[-1], base + 0.02), (xs[0], base + 0.02)], top, bottom)


def _tufts(canvas: Canvas, rng: random.Random, horizon: float, color: np.ndarray, count: int = 14) -> None:
    """Scatter small blades, larger nearer."""
    for _ in range(count):
        y = rng.uniform(horizon + 0.06, 1.0)
        s, x = 0.012 + 0.045 * (y - horizon), rng.random()
        lean = rng.uniform(-0.4, 0.4)
        left, right = (x - s * (0.45 - lean), y - s), (x + s * (0.4 + lean), y - s * 1.1)
        canvas.polygon([(x - s * 0.5, y), left, (x, y), right, (x + s * 0.5, y)], color)


def _flowers(canvas: Canvas, rng: random.Random, horizon: float) -> None:
    """Scatter small flowers."""
    colors = [paint(w, rng) for w in rng.sample(("red", "yellow", "pink", "purple", "white"), 2)]
    for _ in range(12):
        y = rng.uniform(horizon + 0.08, 0.98)
        s, x, color = 0.008 + 0.026 * (y - horizon), rng.random(), rng.choice(colors)
        canvas.ellipse((x, y), (s, s * 0.8), mix(color, WHITE, 0.15), color)
        canvas.ellipse((x, y), (s * 0.42, s * 0.34), _rgb(255, 214, 80))


def meadow(rng: random.Random, size: int) -> Background:
    """Paint green grass under a blue sky."""
    canvas, horizon = Canvas(size), rng.uniform(0.46, 0.62)
    _sky(canvas, rng, horizon)
    clouds = _clouds(canvas, rng, horizon)
    grass = mix(paint("green", rng), paint("yellow", rng), rng.uniform(0.12, 0.34))
    hills = rng.random() < 0.65
    if hills:
        far = mix(grass, _rgb(150, 200, 235), 0.45)
        _ridge(canvas, rng, horizon, rng.uniform(0.12, 0.22), mix(far, WHITE, 0.12), far)
        _ridge(canvas, rng, horizon, rng.uniform(0.05, 0.12), mix(far, grass, 0.6), mix(grass, SHADE, 0.05))
    canvas.rows(horizon, 1, (mix(grass, WHITE, 0.22), grass, mix(grass, SHADE, 0.16)))
    flowers = rng.random() < 0.35
    _tufts(canvas, rng, horizon, mix(grass, SHADE, 0.24))
    if flowers:
        _flowers(canvas, rng, horizon)
    phrases = [
        "on green grass under a blue sky",
        "on green grass",
        "in a green meadow",
        "in a meadow under a blue sky",
    ]
    if clouds:
        phrases.append("on green grass under a blue sky with white clouds")
    if hills:
        phrases.append("on green grass in front of green hills")
    if flowers:
        phrases.append("in a green meadow with flowers")
    air = ("in a blue sky above green grass", "in the blue sky", "in the air above a green meadow")
    return Background("meadow", canvas.image, horizon, (horizon + 0.08, 0.95), tuple(phrases), air)


def beach(rng: random.Random, size: int) -> Background:
    """Paint sand before the sea."""
    canvas, horizon = Canvas(size), rng.uniform(0.36, 0.46)
    shore = horizon + rng.uniform(0.10, 0.16)
    _sky(canvas, rng, horizon)
    _clouds(canvas, rng, horizon)
    sea = mix(paint("blue", rng), _rgb(40, 200, 210), rng.uniform(0.1, 0.6))
    canvas.rows(horizon, shore + 0.05, (mix(sea, SHADE, 0.12), sea, mix(sea, WHITE, 0.35)))
    for _ in range(6):
        x, y = rng.random(), rng.uniform(horizon + 0.02, shore - 0.02)
        canvas.ellipse((x, y), (rng.uniform(0.04, 0.10), 0.004), mix(sea, WHITE, 0.5))
    sand, phase = mix(_rgb(244, 214, 150), _rgb(250, 196, 120), rng.random()), rng.uniform(0, 6.3)
    curve = [
        (i / 24, shore + 0.016 * math.sin(i / 3.2 + phase) + 0.008 * math.sin(i / 1.3)) for i in range(-1, 26)
    ]
    ends = [(1.05, 1.02), (-0.05, 1.02)]
    canvas.polygon([*[(x, y - 0.014) for x, y in curve], *ends], _rgb(250, 253, 255))
    canvas.polygon([*curve, *ends], mix(sand, SHADE, 0.14))
    canvas.polygon(
        [*[(x, y + 0.02) for x, y in curve], *ends], mix(sand, WHITE, 0.25), mix(sand, SHADE, 0.06)
    )
    for _ in range(9):
        y = rng.uniform(shore + 0.08, 0.98)
        canvas.ellipse((rng.random(), y), (rng.uniform(0.02, 0.07), 0.004), mix(sand, SHADE, 0.10))
    phrases = (
        "on a beach under a blue sky", "on yellow sand in front of the blue sea", "on a sandy beach",
        "on the beach by the sea", "on a beach",
    )  # fmt: skip
    air = ("in the blue sky above a beach", "in the air above a sandy beach")
    return Background("beach", canvas.image, horizon, (shore + 0.10, 0.95), phrases, air)


def _pines(canvas: Canvas, rng: random.Random, horizon: float, color: np.ndarray) -> None:
    """Plant far fir trees along the horizon."""
    for i in range(rng.randint(5, 10)):
        x, h = (i + rng.random()) / 9, rng.uniform(0.06, 0.13)
        for k in range(3):
            top, half = horizon - h * (1 - 0.26 * k), h * (0.16 + 0.08 * k)
            canvas.polygon(
                [(x, top), (x + half, top + h * 0.44), (x - half, top + h * 0.44)],
                mix(color, WHITE, 0.1),
                color,
            )


def snow(rng: random.Random, size: int) -> Background:
    """Paint a field of snow."""
    canvas, horizon = Canvas(size), rng.uniform(0.46, 0.60)
    pale = mix(paint("blue", rng), WHITE, rng.uniform(0.35, 0.5))
    canvas.rows(0, horizon, (mix(pale, SHADE, 0.06), pale, mix(pale, WHITE, 0.55)))
    shade = _rgb(196, 214, 240)
    _ridge(canvas, rng, horizon, rng.uniform(0.08, 0.20), WHITE, shade)
    pines = rng.random() < 0.6
    if pines:
        _pines(canvas, rng, horizon + 0.02, mix(_rgb(40, 110, 96), pale, 0.3))
    canvas.rows(horizon, 1, (_rgb(248, 251, 255), _rgb(238, 244, 253), _rgb(214, 227, 246)))
    for _ in range(3):
        x, y = rng.random(), rng.uniform(horizon + 0.10, 0.95)
        canvas.glow((x, y), (0.40, 0.06), shade, 0.55)
    falling = rng.random() < 0.6
    for _ in range(46 if falling else 0):
        r = rng.uniform(0.003, 0.008)
        canvas.ellipse((rng.random(), rng.random() * 0.95), (r, r), WHITE)
    phrases = ["on white snow under a pale blue sky", "on white snow", "in the snow", "on a snowy field"]
    if pines:
        phrases.append("on white snow in front of pine trees")
    if falling:
        phrases += ["in falling snow", "on white snow in falling snow"]
    air = ("in a pale blue sky above white snow", "in the air above a snowy field")
    return Background("snow", canvas.image, horizon, (horizon + 0.08, 0.95), tuple(phrases), air,
                      (0.97, 0.99, 1.03), 0.4)  # fmt: skip


def desert(rng: random.Random, size: int) -> Background:
    """Paint dunes of orange sand."""
    canvas, horizon = Canvas(size), rng.uniform(0.46, 0.58)
    _sky(canvas, rng, horizon)
    if rng.random() < 0.6:
        x, y = rng.uniform(0.12, 0.88), rng.uniform(0.10, 0.22)
        canvas.glow((x, y), (0.26, 0.26), _rgb(255, 246, 200), 0.9)
        canvas.ellipse((x, y), (0.06, 0.06), _rgb(255, 244, 170), _rgb(255, 226, 110))
    sand = mix(_rgb(240, 178, 96), _rgb(234, 146, 78), rng.random())
    _ridge(canvas, rng, horizon, rng.uniform(0.10, 0.18), mix(sand, WHITE, 0.28), mix(sand, SHADE, 0.05))
    _ridge(canvas, rng, horizon + 0.01, rng.uniform(0.04, 0.10), mix(sand, SHADE, 0.10), sand)
    canvas.rows(horizon, 1, (mix(sand, WHITE, 0.25), sand, mix(sand, SHADE, 0.12)))
    for _ in range(6):
        y, x = rng.uniform(horizon + 0.08, 0.97), rng.random()
        canvas.glow((x, y), (rng.uniform(0.15, 0.4), 0.022), mix(sand, SHADE, 0.4), 0.5)
    phrases = (
        "in a desert under a blue sky",
        "on orange sand in a desert",
        "in the desert",
        "on the orange sand of a desert",
    )
    air = ("in the blue sky above a desert", "in the air above orange sand")
    return Background("desert", canvas.image, horizon, (horizon + 0.08, 0.95), phrases, air,
                      (1.02, 0.99, 0.95), 0.55)  # fmt: skip


def night(rng: random.Random, size: int) -> Background:
    """Paint a starry night over dark grass."""
    canvas, horizon = Canvas(size), rng.uniform(0.54, 0.66)
    deep = mix(_rgb(16, 18, 66), _rgb(40, 20, 84), rng.random())
    canvas.rows(0, horizon, (mix(deep, SHADE, 0.3), deep, mix(deep, _rgb(96, 110, 200), 0.55)))
    for _ in range(40):
        r = rng.choice((0.0022, 0.003, 0.0045))
        canvas.ellipse((rng.random(), rng.random() * horizon), (r, r), _rgb(255, 252, 224))
    moon = rng.random() < 0.6
    if moon:
        x, y, r = rng.uniform(0.14, 0.86), rng.uniform(0.12, 0.24), rng.uniform(0.055, 0.085)
        canvas.glow((x, y), (r * 3.4, r * 3.4), _rgb(200, 200, 255), 0.45)
        canvas.ellipse((x, y), (r, r), _rgb(255, 250, 220), _rgb(246, 226, 160))
        for dx, dy, k in ((-0.3, -0.2, 0.22), (0.35, 0.1, 0.17), (-0.05, 0.45, 0.14)):
            canvas.ellipse((x + dx * r, y + dy * r), (k * r, k * r), _rgb(232, 214, 160))
    ground = mix(_rgb(24, 74, 74), _rgb(38, 60, 110), rng.random() * 0.7)
    _ridge(canvas, rng, horizon, rng.uniform(0.06, 0.16), mix(ground, deep, 0.4), mix(ground, deep, 0.6))
    canvas.rows(horizon, 1, (mix(ground, WHITE, 0.08), ground, mix(ground, SHADE, 0.4)))
    _tufts(canvas, rng, horizon, mix(ground, WHITE, 0.10), 10)
    phrases = ["at night", "under a starry night sky", "at night under the stars", "on a dark field at night"]
    if moon:
        phrases.append("at night under the moon")
    air = ("in a starry night sky", "in the sky at night")
    return Background("night", canvas.image, horizon, (horizon + 0.08, 0.95), tuple(phrases), air,
                      (0.88, 0.90, 1.0), 0.6)  # fmt: skip


def sunset(rng: random.Random, size: int) -> Background:
    """Paint a low sun in a glowing sky."""
    canvas, horizon = Canvas(size), rng.uniform(0.52, 0.62)
    word = rng.choice(("orange", "pink", "purple"))
    high = {"orange": _rgb(232, 104, 66), "pink": _rgb(228, 96, 150), "purple": _rgb(112, 72, 176)}[word]
    canvas.rows(0, horizon, (high, mix(high, _rgb(255, 158, 84), 0.5), _rgb(255, 196, 110)))
    x, r = rng.uniform(0.15, 0.85), rng.uniform(0.09, 0.13)
    canvas.glow((x, horizon - 0.03), (0.5, 0.42), _rgb(255, 226, 150), 0.8)
    canvas.ellipse((x, horizon - 0.03), (r, r), _rgb(255, 250, 214), _rgb(255, 222, 120))
    for _ in range(rng.randint(1, 4)):
        cx, cy = rng.random(), rng.uniform(0.08, horizon - 0.2)
        canvas.ellipse((cx, cy), (rng.uniform(0.10, 0.22), 0.014), mix(high, WHITE, 0.3))
        canvas.ellipse((cx + 0.05, cy + 0.016), (rng.uniform(0.08, 0.14), 0.010), mix(high, WHITE, 0.2))
    ground = mix(_rgb(96, 84, 60), _rgb(120, 66, 70), rng.random())
    _ridge(canvas, rng, horizon, rng.uniform(0.04, 0.10), mix(ground, high, 0.5), mix(ground, high, 0.3))
    canvas.rows(horizon, 1, (mix(ground, _rgb(255, 176, 96), 0.45), ground, mix(ground, SHADE, 0.25)))
    _tufts(canvas, rng, horizon, mix(ground, SHADE, 0.3), 10)
    phrases = ("at sunset", f"in front of {article(word)} sunset", f"at sunset under {article(word)} sky",
               "in front of the setting sun")  # fmt: skip
    air = (f"in {article(word)} sky at sunset", "in the sky at sunset")
    return Background("sunset", canvas.image, horizon, (horizon + 0.08, 0.95), phrases, air,
                      (1.0, 0.93, 0.88), 0.6)  # fmt: skip


def _house(canvas: Canvas, rng: random.Random, x: float, w: float, base: float, height: float) -> None:
    """Paint a house front with a roof and windows."""
    front = soft_color(
        rng.choice(("yellow", "pink", "blue", "green", "orange", "white", "red", "purple")), rng, 0.5
    )
    roof = mix(paint(rng.choice(("red", "brown", "blue", "gray")), rng), SHADE, 0.1)
    top = base - height
    if rng.random() < 0.6:
        canvas.polygon(
            [(x - 0.012, top), (x + w / 2, top - w * 0.42), (x + w + 0.012, top)],
            mix(roof, WHITE, 0.15),
            roof,
        )
    else:
        canvas.rectangle((x - 0.006, top - 0.02), (x + w + 0.006, top), roof)
    canvas.rectangle((x, top), (x + w, base), mix(front, WHITE, 0.12), mix(front, SHADE, 0.08))
    glass, columns = _rgb(150, 206, 240), 2
    for row in range(int(height / 0.11)):
        for column in range(columns):
            wx, wy = x + w * (0.16 + 0.42 * column), top + 0.03 + row * 0.11
            if wy + 0.06 < base:
                canvas.rectangle((wx, wy), (wx + w * 0.26, wy + 0.055), mix(glass, WHITE, 0.4), glass)


def street(rng: random.Random, size: int) -> Background:
    """Paint a road before a row of houses."""
    canvas, base = Canvas(size), rng.uniform(0.50, 0.60)
    _sky(canvas, rng, base)
    _clouds(canvas, rng, base - 0.2)
    x = -rng.uniform(0, 0.1)
    while x < 1:
        w = rng.uniform(0.17, 0.25)
        _house(canvas, rng, x, w - 0.008, base, rng.uniform(0.20, 0.36))
        x += w
    path, road = _rgb(206, 204, 208), _rgb(112, 114, 128) * rng.uniform(0.8, 1.05)
    kerb = base + rng.uniform(0.06, 0.09)
    canvas.rows(base, kerb, (mix(path, SHADE, 0.12), path))
    canvas.rows(kerb, kerb + 0.02, (mix(path, WHITE, 0.5), mix(path, SHADE, 0.35)))
    canvas.rows(kerb + 0.02, 1, (mix(road, SHADE, 0.1), road, mix(road, WHITE, 0.06)))
    y, shift = kerb + 0.02 + (1 - kerb) * 0.42, rng.random() * 0.25
    for i in range(-1, 5):
        left = i * 0.27 + shift
        canvas.polygon(
            [(left, y), (left + 0.14, y), (left + 0.135, y + 0.026), (left - 0.012, y + 0.026)],
            _rgb(248, 246, 236),
        )
    phrases = ("on a gray road in front of colorful houses", "on a street", "on a gray street",
               "on a street with houses", "on a road under a blue sky")  # fmt: skip
    air = ("in the blue sky above a street", "above a street with colorful houses")
    return Background("street", canvas.image, base - 0.25, (kerb + 0.10, 0.95), phrases, air)


def sea(rng: random.Random, size: int) -> Background:
    """Paint open water."""
    canvas, horizon = Canvas(size), rng.uniform(0.40, 0.54)
    _sky(canvas, rng, horizon)
    clouds = _clouds(canvas, rng, horizon)
    water = mix(paint("blue", rng), _rgb(30, 180, 210), rng.uniform(0.1, 0.5))
    canvas.rows(horizon, 1, (mix(water, WHITE, 0.18), water, mix(water, SHADE, 0.25)))
    for _ in range(22):
        y = horizon + 0.02 + (0.97 - horizon) * rng.random()
        w, x = 0.02 + 0.12 * (y - horizon) * rng.uniform(0.6, 1.4), rng.random()
        t = 0.003 + 0.008 * (y - horizon)
        canvas.ellipse((x, y), (w, t), mix(water, WHITE, 0.42))
        canvas.ellipse((x, y + t), (w * 1.05, t), mix(water, SHADE, 0.06))
    phrases = ["on the blue sea under a blue sky", "on the sea", "in the blue water", "on the blue ocean"]
    if clouds:
        phrases.append("on the blue sea under a blue sky with white clouds")
    air = ("in the blue sky above the sea", "in the sky above the blue sea")
    return Background("sea", canvas.image, horizon, (horizon + 0.14, 0.94), tuple(phrases), air,
                      shadow=0.35)  # fmt: skip


PAINTERS: dict[str, Painter] = {
    "studio": studio, "room": room, "table": table, "meadow": meadow, "beach": beach, "snow": snow,
    "desert": desert, "night": night, "sunset": sunset, "street": street, "sea": sea,
}  # fmt: skip
PLACE_WEIGHTS: dict[str, float] = {
    "studio": 24, "room": 12, "table": 11, "meadow": 14, "beach": 7, "snow": 6, "desert": 5, "night": 5,
    "sunset": 5, "street": 7, "sea": 4,
}  # fmt: skip
