"""The bundled demo detectors do on toy pictures what they are there for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import annotators
from annotators.base import Annotation

PICTURES = Path(__file__).parents[2] / "test_imgs"


@pytest.fixture(autouse=True)
def no_published_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for weights in an empty folder, and then among the bundled ones."""
    monkeypatch.setenv("CONTROLNET_CKPTS", str(tmp_path))


def found(detector: str, picture: str) -> Annotation:
    made = annotators.load(detector)(PICTURES / picture, size=(256, 256), resolution="auto")
    assert made.weights is not None and made.weights.demo
    return made


@pytest.mark.parametrize("picture", ["toy_ambulance.png", "toy_bicycles.png"])
def test_what_stands_is_nearer_than_the_sky_and_the_ground_comes_nearer_downwards(picture: str) -> None:
    depth = found("depth", picture).hint[:, :, 0].astype(float)
    sky, middle, bottom = depth[10:50].mean(), depth[120:170, 100:156].mean(), depth[-20:].mean()
    assert sky + 30 < middle < bottom


def test_normals_lean_where_a_thing_is_round_and_face_the_viewer_in_the_sky() -> None:
    normals = found("normal", "toy_ambulance.png").preview.astype(float) / 127.5 - 1
    assert normals[20:60, :, 2].mean() > 0.98
    lean = np.hypot(normals[100:200, 60:200, 0], normals[100:200, 60:200, 1])
    assert lean.mean() > 0.1
