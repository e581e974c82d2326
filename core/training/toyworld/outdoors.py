"""The places under the open sky: meadow, beach, snow, desert, night, sunset, street and sea."""

import math
import random

from .backgrounds import SHADE, WHITE, Background, article
from .canvas import Canvas
from .landscape import (
    paint_clouds,
    paint_flowers,
    paint_house,
    paint_pines,
    paint_ridge,
    paint_sky,
    paint_tufts,
    rgb,
)
from .palette import mix, paint
from .truth import BUILDING, EARTH, FIELD, GRASS, HILL, MOUNTAIN, ROAD, SAND, SEA, SIDEWALK, SKY, TREE


def meadow(rng: random.Random, size: int, truth: bool = False) -> Background:
    """Paint green grass under a blue sky."""
    canvas, horizon = Canvas(size, truth), rng.uniform(0.46, 0.62)
    canvas.ground(horizon)
    paint_sky(canvas, rng, horizon)
    clouds = paint_clouds(canvas, rng, horizon)
    grass = mix(paint("green", rng), paint("yellow", rng), rng.uniform(0.12, 0.34))
    hills = rng.random() < 0.65
    canvas.now(HILL, horizon + 0.02)
    if hills:
        far = mix(grass, rgb(150, 200, 235), 0.45)
        paint_ridge(canvas, rng, horizon, rng.uniform(0.12, 0.22), mix(far, WHITE, 0.12), far)
        paint_ridge(
            canvas, rng, horizon, rng.uniform(0.05, 0.12), mix(far, grass, 0.6), mix(grass, SHADE, 0.05)
        )
    canvas.now(GRASS)
    canvas.rows(horizon, 1, (mix(grass, WHITE, 0.22), grass, mix(grass, SHADE, 0.16)))
    flowers = rng.random() < 0.35
    paint_tufts(canvas, rng, horizon, mix(grass, SHADE, 0.24))
    if flowers:
        paint_flowers(canvas, rng, horizon)
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
    return Background("meadow", canvas.image, horizon, (horizon + 0.08, 0.95), tuple(phrases), air,
                      terrain=canvas.terrain)  # fmt: skip


def beach(rng: random.Random, size: int, truth: bool = False) -> Background:
    """Paint sand before the sea."""
    canvas, horizon = Canvas(size, truth), rng.uniform(0.36, 0.46)
    shore = horizon + rng.uniform(0.10, 0.16)
    canvas.ground(horizon)
    paint_sky(canvas, rng, horizon)
    paint_clouds(canvas, rng, horizon)
    sea = mix(paint("blue", rng), rgb(40, 200, 210), rng.uniform(0.1, 0.6))
    canvas.now(SEA)
    canvas.rows(horizon, shore + 0.05, (mix(sea, SHADE, 0.12), sea, mix(sea, WHITE, 0.35)))
    for _ in range(6):
        x, y = rng.random(), rng.uniform(horizon + 0.02, shore - 0.02)
        canvas.ellipse((x, y), (rng.uniform(0.04, 0.10), 0.004), mix(sea, WHITE, 0.5))
    sand, phase = mix(rgb(244, 214, 150), rgb(250, 196, 120), rng.random()), rng.uniform(0, 6.3)
    curve = [
        (i / 24, shore + 0.016 * math.sin(i / 3.2 + phase) + 0.008 * math.sin(i / 1.3)) for i in range(-1, 26)
    ]
    canvas.now(SAND)
    ends = [(1.05, 1.02), (-0.05, 1.02)]
    canvas.polygon([*[(x, y - 0.014) for x, y in curve], *ends], rgb(250, 253, 255))
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
    return Background("beach", canvas.image, horizon, (shore + 0.10, 0.95), phrases, air,
                      terrain=canvas.terrain)  # fmt: skip


def snow(rng: random.Random, size: int, truth: bool = False) -> Background:
    """Paint a field of snow."""
    canvas, horizon = Canvas(size, truth), rng.uniform(0.46, 0.60)
    pale = mix(paint("blue", rng), WHITE, rng.uniform(0.35, 0.5))
    canvas.ground(horizon)
    canvas.rows(0, horizon, (mix(pale, SHADE, 0.06), pale, mix(pale, WHITE, 0.55)))
    shade = rgb(196, 214, 240)
    canvas.now(MOUNTAIN, horizon + 0.02)
    paint_ridge(canvas, rng, horizon, rng.uniform(0.08, 0.20), WHITE, shade)
    pines = rng.random() < 0.6
    canvas.now(TREE, horizon + 0.04)
    if pines:
        paint_pines(canvas, rng, horizon + 0.02, mix(rgb(40, 110, 96), pale, 0.3))
    canvas.now(FIELD)
    canvas.rows(horizon, 1, (rgb(248, 251, 255), rgb(238, 244, 253), rgb(214, 227, 246)))
    for _ in range(3):
        x, y = rng.random(), rng.uniform(horizon + 0.10, 0.95)
        canvas.glow((x, y), (0.40, 0.06), shade, 0.55)
    falling = rng.random() < 0.6
    snow_free = canvas.terrain  # a flake is too small to be a thing of its own
    canvas.terrain = None
    for _ in range(46 if falling else 0):
        r = rng.uniform(0.003, 0.008)
        canvas.ellipse((rng.random(), rng.random() * 0.95), (r, r), WHITE)
    canvas.terrain = snow_free
    phrases = ["on white snow under a pale blue sky", "on white snow", "in the snow", "on a snowy field"]
    if pines:
        phrases.append("on white snow in front of pine trees")
    if falling:
        phrases += ["in falling snow", "on white snow in falling snow"]
    air = ("in a pale blue sky above white snow", "in the air above a snowy field")
    return Background("snow", canvas.image, horizon, (horizon + 0.08, 0.95), tuple(phrases), air,
                      (0.97, 0.99, 1.03), 0.4, canvas.terrain)  # fmt: skip


def desert(rng: random.Random, size: int, truth: bool = False) -> Background:
    """Paint dunes of orange sand."""
    canvas, horizon = Canvas(size, truth), rng.uniform(0.46, 0.58)
    canvas.ground(horizon)
    paint_sky(canvas, rng, horizon)
    if rng.random() < 0.6:
        x, y = rng.uniform(0.12, 0.88), rng.uniform(0.10, 0.22)
        canvas.glow((x, y), (0.26, 0.26), rgb(255, 246, 200), 0.9)
        canvas.ellipse((x, y), (0.06, 0.06), rgb(255, 244, 170), rgb(255, 226, 110))
    sand = mix(rgb(240, 178, 96), rgb(234, 146, 78), rng.random())
    canvas.now(SAND, horizon + 0.02)
    paint_ridge(canvas, rng, horizon, rng.uniform(0.10, 0.18), mix(sand, WHITE, 0.28), mix(sand, SHADE, 0.05))
    paint_ridge(canvas, rng, horizon + 0.01, rng.uniform(0.04, 0.10), mix(sand, SHADE, 0.10), sand)
    canvas.now(SAND)
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
                      (1.02, 0.99, 0.95), 0.55, canvas.terrain)  # fmt: skip


def night(rng: random.Random, size: int, truth: bool = False) -> Background:
    """Paint a starry night over dark grass."""
    canvas, horizon = Canvas(size, truth), rng.uniform(0.54, 0.66)
    deep = mix(rgb(16, 18, 66), rgb(40, 20, 84), rng.random())
    canvas.ground(horizon)
    canvas.rows(0, horizon, (mix(deep, SHADE, 0.3), deep, mix(deep, rgb(96, 110, 200), 0.55)))
    for _ in range(40):
        r = rng.choice((0.0022, 0.003, 0.0045))
        canvas.ellipse((rng.random(), rng.random() * horizon), (r, r), rgb(255, 252, 224))
    moon = rng.random() < 0.6
    if moon:
        x, y, r = rng.uniform(0.14, 0.86), rng.uniform(0.12, 0.24), rng.uniform(0.055, 0.085)
        canvas.glow((x, y), (r * 3.4, r * 3.4), rgb(200, 200, 255), 0.45)
        canvas.ellipse((x, y), (r, r), rgb(255, 250, 220), rgb(246, 226, 160))
        for dx, dy, k in ((-0.3, -0.2, 0.22), (0.35, 0.1, 0.17), (-0.05, 0.45, 0.14)):
            canvas.ellipse((x + dx * r, y + dy * r), (k * r, k * r), rgb(232, 214, 160))
    ground = mix(rgb(24, 74, 74), rgb(38, 60, 110), rng.random() * 0.7)
    canvas.now(HILL, horizon + 0.02)
    paint_ridge(canvas, rng, horizon, rng.uniform(0.06, 0.16), mix(ground, deep, 0.4), mix(ground, deep, 0.6))
    canvas.now(GRASS)
    canvas.rows(horizon, 1, (mix(ground, WHITE, 0.08), ground, mix(ground, SHADE, 0.4)))
    paint_tufts(canvas, rng, horizon, mix(ground, WHITE, 0.10), 10)
    phrases = ["at night", "under a starry night sky", "at night under the stars", "on a dark field at night"]
    if moon:
        phrases.append("at night under the moon")
    air = ("in a starry night sky", "in the sky at night")
    return Background("night", canvas.image, horizon, (horizon + 0.08, 0.95), tuple(phrases), air,
                      (0.88, 0.90, 1.0), 0.6, canvas.terrain)  # fmt: skip


def sunset(rng: random.Random, size: int, truth: bool = False) -> Background:
    """Paint a low sun in a glowing sky."""
    canvas, horizon = Canvas(size, truth), rng.uniform(0.52, 0.62)
    word = rng.choice(("orange", "pink", "purple"))
    high = {"orange": rgb(232, 104, 66), "pink": rgb(228, 96, 150), "purple": rgb(112, 72, 176)}[word]
    canvas.ground(horizon)
    canvas.rows(0, horizon, (high, mix(high, rgb(255, 158, 84), 0.5), rgb(255, 196, 110)))
    x, r = rng.uniform(0.15, 0.85), rng.uniform(0.09, 0.13)
    canvas.glow((x, horizon - 0.03), (0.5, 0.42), rgb(255, 226, 150), 0.8)
    canvas.ellipse((x, horizon - 0.03), (r, r), rgb(255, 250, 214), rgb(255, 222, 120))
    for _ in range(rng.randint(1, 4)):
        cx, cy = rng.random(), rng.uniform(0.08, horizon - 0.2)
        canvas.ellipse((cx, cy), (rng.uniform(0.10, 0.22), 0.014), mix(high, WHITE, 0.3))
        canvas.ellipse((cx + 0.05, cy + 0.016), (rng.uniform(0.08, 0.14), 0.010), mix(high, WHITE, 0.2))
    ground = mix(rgb(96, 84, 60), rgb(120, 66, 70), rng.random())
    canvas.now(HILL, horizon + 0.02)
    paint_ridge(canvas, rng, horizon, rng.uniform(0.04, 0.10), mix(ground, high, 0.5), mix(ground, high, 0.3))
    canvas.now(EARTH)
    canvas.rows(horizon, 1, (mix(ground, rgb(255, 176, 96), 0.45), ground, mix(ground, SHADE, 0.25)))
    paint_tufts(canvas, rng, horizon, mix(ground, SHADE, 0.3), 10)
    phrases = ("at sunset", f"in front of {article(word)} sunset", f"at sunset under {article(word)} sky",
               "in front of the setting sun")  # fmt: skip
    air = (f"in {article(word)} sky at sunset", "in the sky at sunset")
    return Background("sunset", canvas.image, horizon, (horizon + 0.08, 0.95), phrases, air,
                      (1.0, 0.93, 0.88), 0.6, canvas.terrain)  # fmt: skip


def street(rng: random.Random, size: int, truth: bool = False) -> Background:
    """Paint a road before a row of houses."""
    canvas, base = Canvas(size, truth), rng.uniform(0.50, 0.60)
    canvas.ground(base - 0.25)
    canvas.now(SKY, 0.0)
    paint_sky(canvas, rng, base)
    paint_clouds(canvas, rng, base - 0.2)
    canvas.now(BUILDING, base)
    x = -rng.uniform(0, 0.1)
    while x < 1:
        w = rng.uniform(0.17, 0.25)
        paint_house(canvas, rng, x, w - 0.008, base, rng.uniform(0.20, 0.36))
        x += w
    path, road = rgb(206, 204, 208), rgb(112, 114, 128) * rng.uniform(0.8, 1.05)
    kerb = base + rng.uniform(0.06, 0.09)
    canvas.now(SIDEWALK)
    canvas.rows(base, kerb, (mix(path, SHADE, 0.12), path))
    canvas.rows(kerb, kerb + 0.02, (mix(path, WHITE, 0.5), mix(path, SHADE, 0.35)))
    canvas.now(ROAD)
    canvas.rows(kerb + 0.02, 1, (mix(road, SHADE, 0.1), road, mix(road, WHITE, 0.06)))
    y, shift = kerb + 0.02 + (1 - kerb) * 0.42, rng.random() * 0.25
    for i in range(-1, 5):
        left = i * 0.27 + shift
        canvas.polygon(
            [(left, y), (left + 0.14, y), (left + 0.135, y + 0.026), (left - 0.012, y + 0.026)],
            rgb(248, 246, 236),
        )
    phrases = ("on a gray road in front of colorful houses", "on a street", "on a gray street",
               "on a street with houses", "on a road under a blue sky")  # fmt: skip
    air = ("in the blue sky above a street", "above a street with colorful houses")
    return Background("street", canvas.image, base - 0.25, (kerb + 0.10, 0.95), phrases, air,
                      terrain=canvas.terrain)  # fmt: skip


def sea(rng: random.Random, size: int, truth: bool = False) -> Background:
    """Paint open water."""
    canvas, horizon = Canvas(size, truth), rng.uniform(0.40, 0.54)
    canvas.ground(horizon)
    paint_sky(canvas, rng, horizon)
    clouds = paint_clouds(canvas, rng, horizon)
    water = mix(paint("blue", rng), rgb(30, 180, 210), rng.uniform(0.1, 0.5))
    canvas.now(SEA)
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
                      shadow=0.35, terrain=canvas.terrain)  # fmt: skip
