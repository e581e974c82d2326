"""How far apart two maps are: of edges, of depth, of normals, of classes, of key points."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.floating] | NDArray[np.integer]
EDGE_RADIUS = 3  # px
PCK_SHARE = 0.1  # of a person's size: within it a key point is right


def edge_f1(found: NDArray[np.uint8], given: NDArray[np.uint8], radius: int = EDGE_RADIUS) -> float:
    """Return the F1 of two edge maps (H, W): an edge is met within ``radius`` px of one in the other."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    found_on, given_on = found > 0, given > 0
    if not found_on.any() or not given_on.any():
        return float(found_on.any() == given_on.any())
    precision = float((cv2.dilate(given, kernel)[found_on] > 0).mean())
    recall = float((cv2.dilate(found, kernel)[given_on] > 0).mean())
    return 2 * precision * recall / max(precision + recall, 1e-9)


def spearman(a: Numbers, b: Numbers) -> float:
    """Return the rank correlation of two maps of one shape; equal values share their mean rank.

    A map that is the same everywhere ranks nothing: the result is 0.
    """
    first, second = _ranks(a.ravel()), _ranks(b.ravel())
    if first.min() == first.max() or second.min() == second.max():
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def _ranks(values: Numbers) -> NDArray[np.float64]:
    _, which, count = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(count) - (count - 1) / 2)[which.ravel()], np.float64)


def normal_angle(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Return the mean angle in degrees between two maps of normals (H, W, 3) in one order of channels."""
    vectors = [m.astype(np.float64) / 127.5 - 1 for m in (a, b)]
    units = [v / np.maximum(np.linalg.norm(v, axis=2, keepdims=True), 1e-9) for v in vectors]
    cosine = (units[0] * units[1]).sum(axis=2).clip(-1, 1)
    return float(np.degrees(np.arccos(cosine)).mean())


def agreement(pairs: Iterable[tuple[NDArray[np.uint8], NDArray[np.uint8]]]) -> tuple[float, float]:
    """Compare found with true classes (H, W), 0 to 149, over many pictures.

    Returns:
        The mean intersection over union of all classes that are true anywhere, and the share of pixels that
        are right.
    """
    table = np.zeros((256, 256), np.int64)
    for found, true in pairs:
        table += np.bincount(true.ravel().astype(np.int64) * 256 + found.ravel(), minlength=2**16).reshape(
            256, 256
        )
    right, there = np.diag(table), table.sum(axis=1)
    union = there + table.sum(axis=0) - right
    present = there > 0
    return float((right[present] / union[present]).mean()), float(right.sum() / max(1, table.sum()))


def key_points_met(
    found: Sequence[NDArray[np.floating]], true: Sequence[NDArray[np.floating]]
) -> tuple[int, int]:
    """Count the key points that were found where they are, and all that are seen (PCK at a tenth).

    People are key points (18, 3): x, y and a score, 0 where unseen. A point is right within a tenth of the
    longer side of the box around its person's points. Each true person takes the found one that meets the
    most of its points; nobody is taken twice.
    """
    met = np.zeros((len(true), len(found)), np.int64)
    for i, person in enumerate(true):
        seen = person[:, 2] > 0
        if not seen.any():
            continue
        reach = PCK_SHARE * float(np.ptp(person[seen, :2], axis=0).max())
        for j, other in enumerate(found):
            near = np.linalg.norm(other[:, :2] - person[:, :2], axis=1) <= reach
            met[i, j] = int((near & seen & (other[:, 2] > 0)).sum())
    total = 0
    while met.size and met.max() > 0:
        row, column = np.unravel_index(met.argmax(), met.shape)
        total += int(met[row, column])
        met[row], met[:, column] = 0, 0
    return total, sum(int((person[:, 2] > 0).sum()) for person in true)
