"""From OpenPose's maps to people: peaks, limbs that join them, and the joints of a hand."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from annotators.nets.openpose import HAND_PARTS, STRIDE
from annotators.skeleton import BODY_POINTS, HAND_POINTS, LIMBS

Floats = NDArray[np.float64]

BLUR = 3.0  # pixels; peaks are looked for in blurred maps
PEAK, FIELD, HAND = 0.1, 0.05, 0.05  # what a blurred part, a field along a limb, a blurred joint must exceed
SAMPLES = 10  # along a limb
ENOUGH_SAMPLES = 9  # that follow the limb: more than 0.8 of them
MIN_PARTS, MIN_SCORE = 4, 0.4  # of a person; the score is the mean over the parts
MAX_PEAKS = 128  # of one part: noise could have thousands, and pairs go with the square
# LIMBS are drawn but for the last two, from the shoulders to the ears, which only say what belongs together.
FIELDS = (12, 20, 14, 16, 22, 24, 0, 2, 4, 6, 8, 10, 28, 30, 34, 32, 36, 18, 26)  # x of each limb; y is next
JOINING_ONLY = 17
SHOULDER_ELBOW_WRIST = {"left": (5, 6, 7), "right": (2, 3, 4)}
MIN_HAND = 20  # pixels


@dataclass(frozen=True, slots=True, eq=False)
class Bodies:
    """Peaks (n, 3): x, y in pixels and score; people (p, 18): the index of each part's peak, or -1."""

    peaks: Floats
    people: NDArray[np.int64]


def enlarge(maps: NDArray[np.float32], inner: tuple[int, int], size: tuple[int, int]) -> NDArray[np.float32]:
    """Bring a network's maps (c, h, w) to the picture's ``size`` = (H, W), as (H, W) or, of more, (H, W, c).

    ``inner`` is the (height, width) of the network's input without its padding.
    """
    whole = np.ascontiguousarray(maps.transpose(1, 2, 0))  # (h, w, c)
    whole = cv2.resize(whole, (0, 0), fx=STRIDE, fy=STRIDE, interpolation=cv2.INTER_CUBIC)
    whole = whole[: inner[0], : inner[1]]
    return np.asarray(cv2.resize(whole, size[::-1], interpolation=cv2.INTER_CUBIC))


def blur(values: Floats) -> Floats:
    """Blur (H, W) by a Gaussian of sigma 3 cut off at 4 sigma; the edge pixel is mirrored too."""
    radius = int(4 * BLUR + 0.5)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / BLUR) ** 2)
    weights /= weights.sum()
    return np.asarray(cv2.sepFilter2D(values, cv2.CV_64F, weights, weights, borderType=cv2.BORDER_REFLECT))


def find_peaks(heat: NDArray[np.float32]) -> Floats:
    """Return x, y and unblurred value (n, 3) of the peaks of a part's map (H, W), row by row."""
    values = heat.astype(np.float64)
    if values.max() <= PEAK:  # blurring cannot lift it
        return np.zeros((0, 3))
    smooth = blur(values)
    framed = np.pad(smooth, 1)
    peak = smooth > PEAK
    for neighbour in (framed[:-2, 1:-1], framed[2:, 1:-1], framed[1:-1, :-2], framed[1:-1, 2:]):
        peak &= smooth >= neighbour
    y, x = np.nonzero(peak)
    if len(x) > MAX_PEAKS:
        kept = np.sort(np.argsort(-smooth[y, x], kind="stable")[:MAX_PEAKS])
        y, x = y[kept], x[kept]
    return np.stack([x, y, values[y, x]], axis=1).astype(np.float64)


def find_bodies(
    pafs: NDArray[np.float32],
    heat: NDArray[np.float32],
    inner: tuple[int, int],
    size: tuple[int, int],
) -> Bodies:
    """Find people in fields (38, h, w) and heat maps (19, h, w).

    ``inner`` is as for ``enlarge``; ``size`` is the (height, width) of the picture, whose pixels count.

    Source: the OpenPose detector of the ControlNet 1.0 demos.
    """
    parts = [find_peaks(enlarge(heat[i : i + 1], inner, size)) for i in range(BODY_POINTS)]
    starts = np.cumsum([0, *(len(peaks) for peaks in parts)])
    limbs: list[list[tuple[int, int, float]]] = []
    for (a, b), field in zip(LIMBS, FIELDS, strict=True):
        found: list[tuple[int, int, float]] = []
        if len(parts[a]) and len(parts[b]):
            along = enlarge(pafs[field : field + 2], inner, size)
            found = [(starts[a] + i, starts[b] + j, s) for i, j, s in connect(parts[a], parts[b], along)]
        limbs.append(found)
    peaks = np.concatenate(parts)
    return Bodies(peaks, assemble(limbs, peaks[:, 2]))


def connect(a: Floats, b: Floats, field: NDArray[np.float32]) -> list[tuple[int, int, float]]:
    """Match peaks (n, 3) with (m, 3) along a limb's field (H, W, 2): their indices and score, best first.

    A peak is matched once. The score is the mean of the field along the limb, less for a long limb.
    """
    delta = b[None, :, :2] - a[:, None, :2]  # (n, m, 2)
    length = np.maximum(np.sqrt((delta**2).sum(axis=2)), 0.001)
    direction = delta / length[..., None]
    share = np.arange(SAMPLES)[:, None, None, None]
    points = share * (delta / (SAMPLES - 1)) + a[None, :, None, :2]  # (10, n, m, 2)
    points[-1] = b[None, :, :2]
    at = np.rint(points).astype(np.intp)
    along = (field[at[..., 1], at[..., 0]].astype(np.float64) * direction).sum(axis=3)  # (10, n, m)
    score = along.mean(axis=0) + np.minimum(0.5 * field.shape[0] / length - 1, 0)
    i, j = np.nonzero(((along > FIELD).sum(axis=0) >= ENOUGH_SAMPLES) & (score > 0))
    order = np.argsort(-score[i, j], kind="stable")
    used_a, used_b = set[int](), set[int]()
    matched = []
    for first, second in zip(i[order].tolist(), j[order].tolist(), strict=True):
        if first not in used_a and second not in used_b:
            used_a.add(first)
            used_b.add(second)
            matched.append((first, second, float(score[first, second])))
    return matched


class _Person:
    """Someone being put together: the peak of each part or -1, the sum of scores, how many parts."""

    def __init__(self) -> None:
        self.parts = np.full(BODY_POINTS, -1, np.int64)
        self.score, self.count = 0.0, 0

    def add(self, part: int, peak: int, score: float) -> None:
        self.parts[part] = peak
        self.score += score
        self.count += 1

    def join(self, other: _Person, score: float) -> None:
        self.parts = np.maximum(self.parts, other.parts)
        self.score += other.score + score
        self.count += other.count


def assemble(limbs: Sequence[Iterable[tuple[int, int, float]]], scores: Floats) -> NDArray[np.int64]:
    """Put limbs together to people (p, 18): the index of each part's peak, or -1.

    ``limbs`` holds, for each of LIMBS, the two peaks and the score of those found; ``scores`` those of the
    peaks. Limbs that share a peak belong together.
    """
    people: list[_Person] = []
    for k, ((a, b), found) in enumerate(zip(LIMBS, limbs, strict=True)):
        for peak_a, peak_b, score in found:
            near = [p for p in people if p.parts[a] == peak_a or p.parts[b] == peak_b][:2]
            if len(near) == 2 and not ((near[0].parts >= 0) & (near[1].parts >= 0)).any():
                near[0].join(near[1], score)
                people.remove(near[1])
            elif len(near) == 2 or (near and near[0].parts[b] != peak_b):
                near[0].add(b, peak_b, float(scores[peak_b]) + score)
            elif not near and k < JOINING_ONLY:
                person = _Person()
                person.add(a, peak_a, float(scores[peak_a]))
                person.add(b, peak_b, float(scores[peak_b]) + score)
                people.append(person)
    kept = [p.parts for p in people if p.count >= MIN_PARTS and p.score / p.count >= MIN_SCORE]
    return np.array(kept, np.int64).reshape(-1, BODY_POINTS)


def hand_box(body: Floats, side: str, size: tuple[int, int]) -> tuple[int, int, int] | None:
    """Say in which square (left, top, side in pixels) a hand should be; None where the arm is not seen.

    ``body`` is (18, 3), x, y and score; ``side`` "left" or "right", the person's own; ``size`` the picture's
    (height, width).
    """
    arm = body[list(SHOULDER_ELBOW_WRIST[side])]
    if (arm[:, 2] <= 0).any():
        return None
    shoulder, elbow, wrist = arm[:, :2]
    middle = wrist + 0.33 * (wrist - elbow)
    width = 1.5 * max(math.dist(wrist, elbow), 0.9 * math.dist(elbow, shoulder))
    left, top = (max(float(v) - width / 2, 0.0) for v in middle)
    width = min(width, size[1] - left, size[0] - top)
    return (int(left), int(top), int(width)) if width >= MIN_HAND else None


def find_hand(
    outputs: Sequence[tuple[NDArray[np.float32], tuple[int, int]]], size: tuple[int, int]
) -> Floats:
    """Find the joints (21, 3), x, y and score, of the hand in a picture of ``size`` = (height, width).

    ``outputs`` are the heat maps (22, h, w) at each scale, with ``inner`` as for ``enlarge``. A joint that is
    not found has zeros.
    """
    heat = np.zeros((*size, HAND_PARTS))
    for maps, inner in outputs:
        heat += enlarge(maps, inner, size) / len(outputs)
    joints = np.zeros((HAND_POINTS, 3))
    for i in range(HAND_POINTS):
        values = np.ascontiguousarray(heat[:, :, i])
        count, labels = cv2.connectedComponents((blur(values) > HAND).astype(np.uint8), connectivity=8)
        if count == 1:
            continue
        weight = np.bincount(labels.ravel(), weights=values.ravel(), minlength=count)
        inside = np.where(labels == 1 + weight[1:].argmax(), values, -np.inf)
        y, x = np.unravel_index(inside.argmax(), inside.shape)
        if inside[y, x] > 0:
            joints[i] = x, y, inside[y, x]
    return joints
