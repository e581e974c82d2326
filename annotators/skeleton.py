"""People as key points: drawn as the pose ControlNet knows them, written and read as OpenPose's JSON."""

from __future__ import annotations

import colorsys
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from core.images import MAX_INPUT_PIXELS, MAX_INPUT_SIDE

Floats = NDArray[np.float64]

BODY_NAMES = (
    *("nose", "neck", "right shoulder", "right elbow", "right wrist", "left shoulder", "left elbow"),
    *("left wrist", "right hip", "right knee", "right ankle", "left hip", "left knee", "left ankle"),
    *("right eye", "left eye", "right ear", "left ear"),
)
BODY_POINTS, HAND_POINTS = len(BODY_NAMES), 21
# Each joins two of the body's points. The last two are found but not drawn.
LIMBS = (
    *((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13)),
    *((1, 0), (0, 14), (14, 16), (0, 15), (15, 17), (2, 16), (5, 17)),
)
DRAWN_LIMBS = LIMBS[:17]
# From the wrist, 0, to the thumb's tip, 4, and so on to the little finger's, 20.
HAND_LIMBS = tuple((tip - 3 + i - 1 if i else 0, tip - 3 + i) for tip in (4, 8, 12, 16, 20) for i in range(4))
# RGB. The point i and the limb i share a colour.
BODY_COLOURS = (
    *((255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0), (0, 255, 0)),
    *((0, 255, 85), (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255), (0, 0, 255), (85, 0, 255)),
    *((170, 0, 255), (255, 0, 255), (255, 0, 170), (255, 0, 85)),
)
HAND_COLOURS = tuple(tuple(255 * v for v in colorsys.hsv_to_rgb(i / 20, 1, 1)) for i in range(20))
HAND_POINT_COLOUR = (0, 0, 255)
RADIUS = 4  # pixels: of points, and half the width of a limb
HAND_LINE = 2  # pixels
COVER = 0.6  # how much of a limb's colour covers what is below

MAX_PEOPLE = 1000
MAX_TEXT = 4_000_000  # characters
# Where OpenPose's newer list of 25 points has the ones of ours.
FROM_25 = (*range(8), *range(9, 19))


@dataclass(frozen=True, slots=True, eq=False)
class Person:
    """The key points of someone: ``body`` (18, 3) and hands (21, 3), each x, y in pixels and a score.

    A score of 0 is a point that was not found; None a hand that was not looked for. Left and right are the
    person's own.
    """

    body: Floats
    left_hand: Floats | None = None
    right_hand: Floats | None = None

    @property
    def hands(self) -> tuple[Floats, ...]:
        """The hands there are, left before right."""
        return tuple(hand for hand in (self.left_hand, self.right_hand) if hand is not None)


def draw(people: Sequence[Person], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Draw people on black: (H, W, 3) uint8 RGB of ``size`` = (H, W), whose pixels their points count.

    Source: the OpenPose detector of the ControlNet 1.0 demos. It drew joints of a hand that it had not found
    in the upper left corner; here they are left out.
    """
    canvas = np.zeros((*size, 3), np.uint8)
    for i, colour in enumerate(BODY_COLOURS):
        for person in people:
            x, y, score = person.body[i]
            if score > 0:
                cv2.circle(canvas, (int(x), int(y)), RADIUS, colour, thickness=-1)
    for (a, b), colour in zip(DRAWN_LIMBS, BODY_COLOURS, strict=False):
        for person in people:
            if person.body[a, 2] > 0 and person.body[b, 2] > 0:
                _draw_limb(canvas, person.body[a], person.body[b], colour)
    for person in people:
        for hand in person.hands:
            _draw_hand(canvas, hand)
    return canvas


def _draw_limb(canvas: NDArray[np.uint8], a: Floats, b: Floats, colour: tuple[int, ...]) -> None:
    """Blend an ellipse from a to b into the canvas."""
    (x0, y0), (x1, y1) = a[:2].tolist(), b[:2].tolist()
    middle = int((x0 + x1) / 2), int((y0 + y1) / 2)
    half, angle = int(math.hypot(x0 - x1, y0 - y1) / 2), int(math.degrees(math.atan2(y0 - y1, x0 - x1)))
    outline = np.asarray(cv2.ellipse2Poly(middle, (half, RADIUS), angle, 0, 360, 1))
    left, top = np.maximum(outline.min(axis=0), 0)
    right, bottom = outline.max(axis=0) + 1
    part = canvas[top : max(bottom, top), left : max(right, left)]  # only there does blending change anything
    if part.size:
        covered = cv2.fillConvexPoly(part.copy(), outline - (left, top), colour)
        part[:] = cv2.addWeighted(part, 1 - COVER, covered, COVER, 0)


def _draw_hand(canvas: NDArray[np.uint8], hand: Floats) -> None:
    """Draw the lines of a hand, then its joints."""
    points = [(int(x), int(y)) for x, y, _ in hand]
    for (a, b), colour in zip(HAND_LIMBS, HAND_COLOURS, strict=True):
        if hand[a, 2] > 0 and hand[b, 2] > 0:
            cv2.line(canvas, points[a], points[b], colour, thickness=HAND_LINE)
    for point, score in zip(points, hand[:, 2], strict=True):
        if score > 0:
            cv2.circle(canvas, point, RADIUS, HAND_POINT_COLOUR, thickness=-1)


def scale(people: Iterable[Person], old: tuple[int, int], new: tuple[int, int]) -> list[Person]:
    """Bring people from a canvas of (height, width) ``old`` to one of ``new``."""
    factors = np.array([new[1] / old[1], new[0] / old[0], 1.0])
    return [
        Person(
            person.body * factors,
            *(None if hand is None else hand * factors for hand in (person.left_hand, person.right_hand)),
        )
        for person in people
    ]


def to_json(people: Iterable[Person], size: tuple[int, int]) -> dict[str, Any]:
    """Write people on a canvas of ``size`` = (H, W) as OpenPose does, in what the json module takes.

    Points are x, y in pixels and the score, one after the other; those of a hand not looked for are empty.
    """

    def flat(points: Floats | None) -> list[float]:
        return [] if points is None else points.ravel().tolist()

    return {
        "people": [
            {
                "pose_keypoints_2d": flat(person.body),
                "hand_left_keypoints_2d": flat(person.left_hand),
                "hand_right_keypoints_2d": flat(person.right_hand),
            }
            for person in people
        ],
        "canvas_width": int(size[1]),
        "canvas_height": int(size[0]),
    }


def from_json(given: Any) -> tuple[list[Person], tuple[int, int]]:
    """Read people and the (height, width) of their canvas from OpenPose's JSON, as text or as parsed.

    Bodies may have 18 points or the 25 of newer files; x and y may be pixels or shares of the canvas; other
    keys, such as the face's, are passed over. Nothing about ``given`` is trusted.

    Raises:
        ValueError: says which part is wrong and what belongs there.
    """
    if isinstance(given, (str, bytes)):
        given = _parse(given)
    if not isinstance(given, dict) or not isinstance(given.get("people"), list):
        raise ValueError('The key points have no list "people": give JSON as OpenPose writes it.')
    size = _side(given, "canvas_height"), _side(given, "canvas_width")
    if size[0] * size[1] > MAX_INPUT_PIXELS:
        raise ValueError(f"The canvas is {size[1]} x {size[0]}: give at most {MAX_INPUT_PIXELS} pixels.")
    if len(given["people"]) > MAX_PEOPLE:
        raise ValueError(f"There are {len(given['people'])} people: give at most {MAX_PEOPLE}.")
    people = [_person(person, f"people[{i}]") for i, person in enumerate(given["people"])]
    points = [points for person in people for points in (person.body, *person.hands)]
    found = np.concatenate([*(p[p[:, 2] > 0] for p in points), np.zeros((0, 3))])
    if len(found) and (found[:, :2] >= 0).all() and (found[:, :2] <= 1).all():
        people = scale(people, (1, 1), size)
    elif (np.abs(found[:, :2] - np.array(size[::-1]) / 2) > 1.5 * np.array(size[::-1])).any():
        raise ValueError(
            f"Key points lie far outside of the canvas, {size[1]} x {size[0]}: give x and y in its pixels."
        )
    return people, size


def _parse(text: str | bytes) -> Any:
    if len(text) > MAX_TEXT:
        raise ValueError(f"The key points are {len(text)} characters long: give at most {MAX_TEXT}.")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError("The key points are no JSON: give a file as OpenPose writes it.") from error


def _side(given: dict[str, Any], name: str) -> int:
    value = given.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 1 <= value <= MAX_INPUT_SIDE:
        raise ValueError(f"{name} is {value!r:.40}: give a whole number from 1 to {MAX_INPUT_SIDE}.")
    return int(value)


def _person(given: Any, where: str) -> Person:
    if not isinstance(given, dict):
        raise ValueError(f'{where} is no object: give one with "pose_keypoints_2d".')
    body = _points(given, "pose_keypoints_2d", where, (BODY_POINTS, 25))
    hands = [_points(given, f"hand_{side}_keypoints_2d", where, (HAND_POINTS,)) for side in ("left", "right")]
    if body is None:
        body = np.zeros((BODY_POINTS, 3))
    return Person(body[list(FROM_25)] if len(body) == 25 else body, *hands)


def _points(given: dict[str, Any], name: str, where: str, counts: tuple[int, ...]) -> Floats | None:
    """Return points (n, 3), those with a score of 0 or less as zeros; None where there are none."""
    values = given.get(name)
    if values is None or values == []:
        return None
    if not isinstance(values, list) or len(values) not in [3 * count for count in counts]:
        allowed = " or ".join(str(3 * count) for count in counts)
        raise ValueError(f"{where}.{name} is wrong: give a list of {allowed} numbers, or leave it out.")
    for value in values:
        # A whole number may be too large for a float, so the type alone does not do.
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not -1e9 < value < 1e9:
            raise ValueError(f"{where}.{name} has {value!r:.40}: give finite numbers: x, y, score and so on.")
    points = np.array(values, np.float64).reshape(-1, 3)
    points[points[:, 2] <= 0] = 0
    return points
