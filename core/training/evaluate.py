"""Measure the demo model on scenes and words that training never saw."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from core.models.vae import AutoencoderKL
from core.pipeline import ControlNetPipeline
from core.request import ControlUnit, Request
from core.training.data import to_tensor
from core.training.toyworld.palette import PAINTS, SHIFT_COLORS
from core.training.toyworld.scene import EVAL_SEED_BASE, Scene, make_scene
from core.training.toyworld.sprites import SpriteLibrary

EDGE_RADIUS = 3  # px
CANNY = (100, 200)  # the app's default thresholds
BACKDROPS = ("red", "orange", "yellow", "green", "blue", "purple", "pink")

Image = NDArray[np.uint8]


def edges(image: Image) -> Image:
    """Return the edges (H, W) uint8, 0 or 255, of ``image`` (H, W, 3)."""
    return np.asarray(cv2.Canny(image, *CANNY), np.uint8)


def edge_f1(found: Image, given: Image, radius: int = EDGE_RADIUS) -> float:
    """Return the F1 of two edge maps (H, W): an edge is met within ``radius`` px of one in the other."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    found_on, given_on = found > 0, given > 0
    if not found_on.any() or not given_on.any():
        return float(found_on.any() == given_on.any())
    precision = float((cv2.dilate(given, kernel)[found_on] > 0).mean())
    recall = float((cv2.dilate(found, kernel)[given_on] > 0).mean())
    return 2 * precision * recall / max(precision + recall, 1e-9)


def named_color(image: Image, mask: NDArray[np.bool_]) -> str:
    """Return the colour word that most pixels of ``image`` (H, W, 3) under ``mask`` (H, W) are nearest to.

    Nearness is taken in hue for saturated paints and in lightness for white, grey and black.
    """
    pixels = image[mask].reshape(-1, 1, 3)
    hsv = cv2.cvtColor(pixels.astype(np.float32) / 255.0, cv2.COLOR_RGB2HSV)[:, 0]
    hue, saturation, value = hsv[:, 0], hsv[:, 1], hsv[:, 2]
    hues = {word: PAINTS[word] for word in SHIFT_COLORS if word not in {"white", "black"}}
    words = [*hues, "white", "black"]
    distance = np.stack([np.abs((hue - h + 180) % 360 - 180) for h, _, _ in hues.values()])
    votes = np.where(saturation < 0.15, np.where(value > 0.6, len(hues), len(hues) + 1), distance.argmin(0))
    votes = np.where((value < 0.4) & (saturation < 0.4) | (value < 0.22), len(hues) + 1, votes)
    return words[int(np.bincount(votes, minlength=len(words)).argmax())]


@dataclass(frozen=True, slots=True)
class Report:
    """The figures of one evaluation; ``examples`` are (scene, hint, picture) of the first scenes."""

    scenes: int
    psnr_db: float
    edge_f1: float
    edge_f1_shuffled: float
    object_color: float
    object_color_scenes: int
    backdrop_color: float
    backdrop_color_prompts: int
    seconds_per_picture: float
    examples: tuple[tuple[Scene, Image, Image], ...] = ()

    def table(self) -> str:
        """Return the figures as a Markdown table."""
        rows = [
            ("VAE, PSNR on held-out scenes", f"{self.psnr_db:.1f} dB", ""),
            ("edge F1 at 3 px against the given hint", f"{self.edge_f1:.3f}", f"{self.edge_f1_shuffled:.3f}"),
            (
                f"object has the colour that the prompt names ({self.object_color_scenes} repainted objects)",
                f"{self.object_color:.0%}",
                f"{1 / len(SHIFT_COLORS):.0%}",
            ),
            (
                f"backdrop has the named colour, no control ({self.backdrop_color_prompts} prompts)",
                f"{self.backdrop_color:.0%}",
                f"{1 / len(SHIFT_COLORS):.0%}",
            ),
        ]
        lines = [f"| figure ({self.scenes} held-out scenes) | measured | floor |", "|---|---|---|"]
        return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


@torch.inference_mode()
def psnr(vae: AutoencoderKL, scenes: list[Scene]) -> float:
    """Return the mean peak signal-to-noise ratio in dB of pictures sent through the autoencoder."""
    dtype = next(vae.parameters()).dtype
    values = []
    for scene in scenes:
        x = to_tensor(scene.image[None])
        y = vae.decode(vae.encode(x.to(dtype))).float().clamp(-1, 1)
        values.append(10 * np.log10(4.0 / float((x - y).pow(2).mean())))
    return float(np.mean(values))


def _picture(pipe: ControlNetPipeline, request: Request) -> tuple[Image, float]:
    result = pipe(request)
    return result.images[0], result.seconds


def evaluate(pipe: ControlNetPipeline, library: SpriteLibrary, count: int, *, steps: int = 20) -> Report:
    """Make a picture of each of ``count`` held-out scenes from its edges and its caption, and compare."""
    scenes = [make_scene(EVAL_SEED_BASE + i, library, pipe.resolution) for i in range(count)]
    hints = [edges(scene.image) for scene in scenes]
    base = Request("", size=(pipe.resolution, pipe.resolution), steps=steps, cfg_scale=pipe.config.cfg_scale)
    pictures, seconds = [], []
    for i, (scene, hint) in enumerate(zip(tqdm(scenes, desc="evaluate", mininterval=10), hints, strict=True)):
        unit = ControlUnit("canny", np.repeat(hint[:, :, None], 3, axis=2))
        picture, took = _picture(pipe, replace(base, prompt=scene.caption, controls=(unit,), seed=i))
        pictures.append(picture)
        seconds.append(took)
    found = [edges(picture) for picture in pictures]
    shuffled = hints[1:] + hints[:1]
    colors = [
        named_color(picture, scene.index_map == obj.depth) == obj.color
        for scene, picture in zip(scenes, pictures, strict=True)
        for obj in scene.objects
        if obj.repainted and (scene.index_map == obj.depth).sum() > 400
    ]
    backdrops = _backdrops(pipe, base)
    return Report(
        scenes=count,
        psnr_db=psnr(pipe.networks.vae, scenes[:64]),
        edge_f1=float(np.mean([edge_f1(f, h) for f, h in zip(found, hints, strict=True)])),
        edge_f1_shuffled=float(np.mean([edge_f1(f, h) for f, h in zip(found, shuffled, strict=True)])),
        object_color=float(np.mean(colors)) if colors else float("nan"),
        object_color_scenes=len(colors),
        backdrop_color=float(np.mean(backdrops)),
        backdrop_color_prompts=len(backdrops),
        seconds_per_picture=float(np.median(seconds)),
        examples=tuple(zip(scenes, hints, pictures, strict=True))[:16],
    )


def _backdrops(pipe: ControlNetPipeline, base: Request, per_color: int = 3) -> list[bool]:
    rng = random.Random(0)
    names = ("lion", "camera", "teddy bear", "house", "robot", "pineapple")
    right = []
    for word in BACKDROPS:
        for seed in range(per_color):
            prompt = f"a {rng.choice(names)} on a plain {word} background"
            picture, _ = _picture(pipe, replace(base, prompt=prompt, seed=seed))
            border = np.zeros(picture.shape[:2], bool)
            border[:24], border[:, :24], border[:, -24:] = True, True, True
            right.append(named_color(picture, border) == word)
    return right
