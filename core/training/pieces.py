"""Scenes with their captions and maps, as other processes make them for a GPU."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from core.config import TextConfig
from core.models.text_encoder import TextEncoder
from core.training.base import vary_caption
from core.training.data import places_shown
from core.training.hints import canny_hint, depth_hint, normal_hint, openpose_hint
from core.training.near import place_of_thing
from core.training.toyworld.scene import make_scene
from core.training.toyworld.sprites import SpriteLibrary

Image = NDArray[np.uint8]
CAPTIONS = 4  # how many ways each scene's caption is kept in
NEAR_BY = 8  # how many places of each scene's things are kept, to look at from near by
DRAWN = ("canny", "depth", "normal", "seg", "openpose")  # maps that are made with the scenes
OF_ALL = ("canny",)  # the others are made of the first scenes alone
_LIBRARY: SpriteLibrary | None = None  # of this process
_TEXT: TextEncoder | None = None  # without weights: its tokenizer alone is asked


@dataclass(frozen=True, slots=True)
class Piece:
    """Some scenes: ``images`` (n, H, W, 3) RGB, ``tokens`` (n, CAPTIONS, length) int32, and maps by name.

    ``places`` (n, NEAR_BY, 2) int8 are some of things, see ``place_of_thing``. A map is
    (n, H, W) uint8, or (n, H, W, 3); "seg" holds the numbers of the classes. "openpose" may be of fewer
    scenes: those of ``people``, (k,), counted within the piece.
    """

    images: Image
    tokens: NDArray[np.int32]
    places: NDArray[np.int8]
    maps: dict[str, Image]
    people: NDArray[np.int64]


def made_with(truth: bool, framed: bool) -> tuple[str, ...]:
    """Return the maps that are made with scenes of this kind."""
    return () if framed else DRAWN if truth else OF_ALL


def start_worker(library: SpriteLibrary, text: TextConfig) -> None:
    """Get this process ready for ``make_piece``."""
    global _LIBRARY, _TEXT
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    with torch.device("meta"):
        _LIBRARY, _TEXT = library, TextEncoder(text)


def make_piece(seeds: Sequence[int], size: int, truth: bool, framed: bool = False) -> Piece:
    """Make the scenes of ``seeds``; with ``truth`` all maps, else canny's alone, and ``framed`` none."""
    assert _LIBRARY is not None and _TEXT is not None
    images, tokens, places, people = [], [], [], []
    maps: dict[str, list[Image]] = {name: [] for name in made_with(truth, framed)}
    for at, seed in enumerate(seeds):
        scene = make_scene(seed, _LIBRARY, size, truth=truth, framed=framed)
        rng = random.Random(seed)
        images.append(scene.image)
        captions = [vary_caption(scene.caption, rng) for _ in range(CAPTIONS)]
        tokens.append(_TEXT.tokenize(captions).numpy().astype(np.int32))
        shown, chance = places_shown(scene), random.Random(seed)
        places.append([place_of_thing(shown, chance) for _ in range(NEAR_BY)])
        if not framed:
            maps["canny"].append(canny_hint(scene.image, rng))
        if scene.truth is None:
            continue
        maps["depth"].append(depth_hint(scene, rng))
        maps["normal"].append(normal_hint(scene, rng))
        maps["seg"].append(scene.truth.segmentation)
        if scene.people or seed % 8 == 0:
            people.append(at)
            maps["openpose"].append(openpose_hint(scene, rng))
    shape = {"openpose": (0, size, size, 3)}
    stacked = {k: np.stack(v) if v else np.zeros(shape[k], np.uint8) for k, v in maps.items()}
    return Piece(
        np.stack(images), np.stack(tokens), np.array(places, np.int8), stacked, np.array(people, np.int64)
    )
