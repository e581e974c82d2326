"""The figures by which maps are compared, on cases whose values are known."""

from __future__ import annotations

import numpy as np
import pytest

from core.training.figures import agreement, key_points_met, normal_angle, spearman


def test_only_the_order_counts_for_spearman() -> None:
    a = np.random.default_rng(0).random((8, 8))
    assert spearman(a, np.exp(5 * a)) == pytest.approx(1)
    assert spearman(a, -a) == pytest.approx(-1)
    assert spearman(a, np.zeros((8, 8))) == 0


def test_equal_values_share_their_mean_rank() -> None:
    # Ranks 1.5, 1.5, 3, 4 and 1, 2, 3, 4: their correlation is 4.5 / sqrt(4.5 * 5).
    assert spearman(np.array([1, 1, 2, 3]), np.array([1, 2, 3, 4])) == pytest.approx(4.5 / (4.5 * 5) ** 0.5)


def test_normals_that_stand_at_right_angles_are_90_degrees_apart() -> None:
    x, z = np.full((4, 4, 3), 127.5).astype(np.uint8), np.full((4, 4, 3), 127.5).astype(np.uint8)
    x[..., 0], z[..., 2] = 255, 255
    assert normal_angle(x, z) == pytest.approx(90, abs=0.6)  # a channel of 0 is 127.5, between two levels
    assert normal_angle(x, x) == pytest.approx(0, abs=1e-3)


def test_classes_are_compared_over_all_pictures_and_only_those_that_are_true_count() -> None:
    true = np.array([[3, 3, 3, 7]], np.uint8)
    found = np.array([[3, 3, 9, 9]], np.uint8)
    iou, right = agreement([(found, true)])
    assert right == 0.5
    assert iou == pytest.approx((2 / 3 + 0) / 2)


def person(x: float, y: float) -> np.ndarray:
    points = np.zeros((18, 3))
    points[:, 0], points[:, 1], points[:, 2] = x, y + np.linspace(0, 100, 18), 1
    return points


def test_a_key_point_may_be_a_tenth_of_the_person_off() -> None:
    true = [person(50, 0)]
    assert key_points_met([person(59, 0)], true) == (18, 18)
    assert key_points_met([person(61, 0)], true) == (0, 18)
    assert key_points_met([], true) == (0, 18)


def test_nobody_is_found_twice_and_unseen_points_do_not_count() -> None:
    true = [person(50, 0), person(53, 0)]
    assert key_points_met([person(51, 0)], true) == (18, 36)
    true[1][4:, 2] = 0
    assert key_points_met([person(51, 0), person(53, 0)], true) == (22, 22)
