"""Hints of toy-world scenes: what the apps' own detectors find in them, or what is known of them."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from annotators.ade20k import nearest
from core.training.data import MadeOf, Scenes, made_of
from core.training.toyworld.objects import all_objects
from core.training.toyworld.scene import Scene, make_scene
from core.training.toyworld.sprites import SpriteLibrary
from core.training.toyworld.truth import Truth

Image = NDArray[np.uint8]
DETECT_AT = (256, 256, 256, 256, 256, 512)  # px; the demo model's own size mostly, or the detectors' default
STRIDE = 8  # px, at which maps of classes are looked through for what they show
SHOWN = 0.005  # of a map's places, from which on it shows a class
PEOPLE = {"man", "woman", "boy", "girl", "person", "men", "women", "boys", "girls", "people", "persons"}


def photographed(image: Image, rng: random.Random) -> Image:
    """Return ``image`` (H, W, 3) as a camera might have seen it: blurred, brighter or darker, noisy, JPEG."""
    if rng.random() < 0.5:
        return image
    out = image.astype(np.float32)
    if rng.random() < 0.4:
        out = cv2.GaussianBlur(out, (0, 0), rng.uniform(0.4, 1.3))
    out = (out - 127.5) * rng.uniform(0.8, 1.15) + 127.5 + rng.uniform(-20, 20)
    if rng.random() < 0.5:
        noise = np.random.default_rng(rng.getrandbits(32)).standard_normal(image.shape, np.float32)
        out += noise * rng.uniform(1, 8)
    seen = np.clip(out, 0, 255).astype(np.uint8)
    if rng.random() < 0.5:
        _, coded = cv2.imencode(".jpg", seen, [cv2.IMWRITE_JPEG_QUALITY, rng.randint(40, 95)])
        seen = np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), np.uint8)
    return seen


def canny_hint(image: Image, rng: random.Random) -> Image:
    """Return the edges (H, W) uint8 of ``image`` (H, W, 3), between the thresholds that people choose."""
    low = rng.uniform(40, 130)
    return np.asarray(cv2.Canny(image, low, low * rng.uniform(1.6, 2.4)), np.uint8)


def _detected(name: str, image: Image, rng: random.Random, **params: float) -> Image:
    import annotators

    made = annotators.load(name)(image, size=image.shape[:2], resolution=rng.choice(DETECT_AT), **params)
    return made.hint


def _grey(hint: Image) -> Image:
    return np.ascontiguousarray(hint[:, :, 0])


def in_colour(hint: Image) -> Image:
    """Return a hint (H, W) or (H, W, 3) as the ControlNets take it, (H, W, 3)."""
    return hint if hint.ndim == 3 else np.asarray(cv2.merge([hint] * 3), np.uint8)


def hed_hint(scene: Scene, rng: random.Random) -> Image:
    """Return the soft edges (H, W) that HED finds."""
    return _grey(_detected("hed", photographed(scene.image, rng), rng))


def scribble_hint(scene: Scene, rng: random.Random) -> Image:
    """Return strokes (H, W): mostly the fake scribble of HED's edges, at times thinner ones."""
    strokes = _grey(_detected("fake_scribble", photographed(scene.image, rng), rng))
    if rng.random() < 0.3:
        strokes = cv2.erode(strokes, np.ones((3, 3), np.uint8))
    return np.asarray(strokes, np.uint8)


def mlsd_hint(scene: Scene, rng: random.Random) -> Image:
    """Return the straight lines (H, W) that M-LSD finds."""
    values = {"value_threshold": rng.uniform(0.05, 0.15), "distance_threshold": rng.uniform(0.1, 3.0)}
    return _grey(_detected("mlsd", photographed(scene.image, rng), rng, **values))


def depth_hint(scene: Scene, rng: random.Random) -> Image:
    """Return the true depth (H, W), light is near, scaled to all of 0 to 255 as the depth app does."""
    return (_nearness(scene) * 255).astype(np.uint8)


def _nearness(scene: Scene) -> NDArray[np.float32]:
    """Return the true depth (H, W), from 0 for the farthest to 1 for the nearest pixel."""
    depth = _truth(scene).depth
    low, high = float(depth.min()), float(depth.max())
    return np.asarray((depth - low) / max(high - low, 1e-6), np.float32)


def _truth(scene: Scene) -> Truth:
    if scene.truth is None:
        raise ValueError(f"scene {scene.seed} was made without its truth: ask make_scene for it.")
    return scene.truth


def normal_hint(scene: Scene, rng: random.Random) -> Image:
    """Return the true normals (H, W, 3), in ControlNet 1.0's channel order; what is far faces the viewer."""
    normals = _truth(scene).normals.copy()
    normals[_nearness(scene) < rng.choice((0.4, 0.4, 0.2))] = (0, 0, 1)
    return np.ascontiguousarray((normals * 127.5 + 127.5).astype(np.uint8)[:, :, ::-1])


def seg_hint(scene: Scene, rng: random.Random) -> Image:
    """Return the true classes (H, W, 3) in ADE20K's colours."""
    return class_colours()[_truth(scene).segmentation]


def class_colours() -> Image:
    """Return the colours (150, 3) of ADE20K's classes."""
    from annotators.ade20k import PALETTE

    return np.array(PALETTE, np.uint8)


def openpose_hint(scene: Scene, rng: random.Random) -> Image:
    """Return the skeletons (H, W, 3) of the people in the scene."""
    from annotators.skeleton import Person, draw

    return draw([Person(points.astype(np.float64)) for points in scene.people], scene.image.shape[:2])


HINT_MAKERS: dict[str, Callable[[Scene, random.Random], Image]] = {
    "hed": hed_hint,
    "scribble": scribble_hint,
    "mlsd": mlsd_hint,
    "depth": depth_hint,
    "normal": normal_hint,
    "seg": seg_hint,
    "openpose": openpose_hint,
}
CONTROLS = ("canny", *HINT_MAKERS)
DETECTORS = {"canny": "canny", "hed": "hed", "scribble": "fake_scribble", "mlsd": "mlsd"}
NEEDS_TRUTH = {"depth", "normal", "seg"}


def plain_hint(control: str, scene: Scene) -> Image:
    """Return the hint (H, W[, 3]) that a person would get: an unspoilt picture, the apps' own settings."""
    if control in DETECTORS:
        return found_lines(control, scene.image)
    return HINT_MAKERS[control](scene, random.Random(0))


def found_lines(control: str, image: Image) -> Image:
    """Return what the detector of a control of lines finds in ``image`` (H, W, 3), as (H, W)."""
    import annotators

    annotator = annotators.load(DETECTORS[control])
    resolution = None if annotator.resolution is None else min(image.shape[:2])
    return _grey(annotator(image, size=image.shape[:2], resolution=resolution).hint)


def _hint_chunk(seeds: list[int], control: str, sprites: Path, size: int, made: MadeOf) -> Image:
    if control not in NEEDS_TRUTH:
        import torch

        torch.set_num_threads(1)
    library = SpriteLibrary.load(sprites, all_objects()[: made.things])
    make = HINT_MAKERS[control]
    truth = control in NEEDS_TRUTH
    scenes = (make_scene(seed, library, size, truth=truth, framed=made.framed) for seed in seeds)
    return np.stack([make(scene, random.Random(scene.seed)) for scene in scenes])


def select(data: Path, control: str, count: int) -> list[int]:
    """Return the indices of the first ``count`` scenes that the control can learn from.

    The pose control learns from scenes with people; one in eight of the others, whose map is black, is added.
    """
    captions = Scenes.open(data).captions
    if control == "openpose":
        shows = [bool(PEOPLE & set(caption.lower().replace(",", " ").split())) for caption in captions]
        return [i for i, there in enumerate(shows) if there or i % 8 == 0][:count]
    return list(range(min(count, len(captions))))


def cache_hints(data: Path, control: str, sprites: Path, *, count: int, workers: int = 2) -> None:
    """Write hints_CONTROL.npy (n, H, W[, 3]) uint8 and hints_CONTROL.json, the indices of their scenes."""
    if control not in HINT_MAKERS:
        raise ValueError(f"control is {control!r}: give one of {', '.join(HINT_MAKERS)}.")
    size = Scenes.open(data).images.shape[1]
    which = select(data, control, count)
    made_from = made_of(data)
    seeds = [made_from.first_seed + i for i in which]
    chunks = [seeds[i : i + 64] for i in range(0, len(seeds), 64)]
    partial_path = data / f"hints_{control}.partial.npy"
    hints: np.memmap | None = None
    done = 0
    with ProcessPoolExecutor(workers) as pool:
        make = partial(_hint_chunk, control=control, sprites=sprites, size=size, made=made_from)
        work = pool.map(make, chunks)
        for made in tqdm(work, total=len(chunks), desc=f"hints {control}", mininterval=10):
            if hints is None:
                shape = (len(which), *made.shape[1:])
                hints = np.lib.format.open_memmap(partial_path, mode="w+", dtype=np.uint8, shape=shape)
            hints[done : done + len(made)] = made
            done += len(made)
    if hints is None:
        raise ValueError(f"{data} holds no scene that the control {control!r} could learn from: render more.")
    hints.flush()
    (data / f"hints_{control}.json").write_text(json.dumps(which))
    os.replace(partial_path, data / f"hints_{control}.npy")


def rows_by_class(maps: Image) -> tuple[NDArray[np.int64], ...]:
    """Return for each class that occurs which of the ``maps`` (n, H, W, 3) uint8 RGB of classes show it."""
    few = maps[:, STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE]
    classes = nearest(few.reshape(-1, few.shape[2], 3))[0].reshape(len(few), -1)
    shown = [(classes == one).mean(1) >= SHOWN for one in np.unique(classes)]
    return tuple(np.flatnonzero(rows) for rows in shown if rows.any())


@dataclass(frozen=True, slots=True)
class CachedHints:
    """Hints (n, H, W[, 3]) uint8, mapped from disk, and the indices of the scenes they belong to.

    Of maps of classes ``by_class`` are the rows that show each class.
    """

    hints: Image
    scenes: NDArray[np.int64]
    by_class: tuple[NDArray[np.int64], ...] = ()

    @classmethod
    def open(cls, data: Path, control: str) -> CachedHints:
        """Open what ``cache_hints`` wrote.

        Raises:
            FileNotFoundError: with the command that makes the hints.
        """
        path = data / f"hints_{control}.npy"
        if not path.exists():
            raise FileNotFoundError(
                f"{path} is not there. Run: python -m core.training hints --control {control} --data {data}"
            )
        which = json.loads((data / f"hints_{control}.json").read_text())
        hints = np.load(path, mmap_mode="r")
        return cls(hints, np.array(which, np.int64), rows_by_class(hints) if control == "seg" else ())

    def draw(self, size: int, scenes: int, generator: torch.Generator) -> NDArray[np.int64]:
        """Draw ``size`` rows of hints of the first so many ``scenes``.

        Every second one of the maps of classes shows a class drawn before it, so that rare ones are seen.
        """
        usable = int((self.scenes < scenes).sum())
        rows: NDArray[np.int64] = torch.randint(usable, (size,), generator=generator).numpy()
        for i in range(0, size if self.by_class else 0, 2):
            one, row = torch.randint(2**31, (2,), generator=generator).tolist()
            showing = self.by_class[one % len(self.by_class)]
            showing = showing[showing < usable]
            if len(showing):
                rows[i] = showing[row % len(showing)]
        return rows
