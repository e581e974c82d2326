"""Measure the demo model on scenes and words that training never saw."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from core.errors import WeightsMissing
from core.models.controlnet import ControlNet
from core.models.vae import AutoencoderKL
from core.pipeline import ControlNetPipeline
from core.request import ControlUnit, Request
from core.training.classifier import Judge, accuracy, single_things
from core.training.data import to_tensor
from core.training.evaluate_controls import HEADER, Drawn, Obedience, obedience
from core.training.hints import CONTROLS, in_colour, plain_hint
from core.training.toyworld.palette import PAINTS, SHIFT_COLORS
from core.training.toyworld.scene import Scene
from core.training.toyworld.sprites import SpriteLibrary

BACKDROPS = ("red", "orange", "yellow", "green", "blue", "purple", "pink")
SIZES = ((256, 512), (512, 256), (320, 192), (384, 384))  # height and width, beside the model's own
LARGE = 400  # px of a thing from which its colour is looked at

Image = NDArray[np.uint8]
log = logging.getLogger(__name__)


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
    """The figures of one evaluation: what, how much, and what chance or the truth itself would give."""

    scenes: int
    figures: tuple[tuple[str, str, str], ...]
    controls: tuple[Obedience, ...]

    def table(self) -> str:
        """Return the figures as two Markdown tables."""
        lines = [f"| figure ({self.scenes} held-out scenes) | measured | for comparison |", "|---|---|---|"]
        lines += [f"| {' | '.join(row)} |" for row in self.figures]
        return "\n".join([*lines, "", HEADER, *(found.row() for found in self.controls)])


@torch.inference_mode()
def psnr(vae: AutoencoderKL, scenes: Sequence[Scene]) -> float:
    """Return the mean peak signal-to-noise ratio in dB of pictures sent through the autoencoder."""
    dtype = next(vae.parameters()).dtype
    values = []
    for scene in scenes:
        x = to_tensor(scene.image[None])
        y = vae.decode(vae.encode(x.to(dtype))).float().clamp(-1, 1)
        values.append(10 * np.log10(4.0 / float((x - y).pow(2).mean())))
    return float(np.mean(values))


@torch.inference_mode()
def starts_as_nothing(pipe: ControlNetPipeline) -> bool:
    """Say whether a ControlNet that was not trained changes nothing of the UNet's prediction, bit for bit."""
    config, unet = pipe.config, pipe.networks.unet
    generator = torch.Generator().manual_seed(0)
    side = pipe.resolution
    latents = (2, config.unet.in_channels, side // 8, side // 8)
    draw = [torch.randn(shape, generator=generator) for shape in (latents, (2, 77, config.unet.context_dim))]
    x, context = (value.to(pipe.device, pipe.dtype) for value in draw)
    hint = torch.rand((2, 3, side, side), generator=generator).to(pipe.device, pipe.dtype)
    t = torch.tensor([1, 999], device=pipe.device)
    net = ControlNet.from_unet(unet, config.control).to(pipe.device, pipe.dtype)
    residuals = net(x, t, context, net.embed_hint(hint))
    return torch.equal(unet(x, t, context, residuals), unet(x, t, context))


def drawn_sizes(pipe: ControlNetPipeline, base: Request) -> str:
    """Draw a picture of every size in few steps; return those that came out, width first."""
    made = []
    for size in SIZES:
        picture = pipe(replace(base, prompt="a red car on green grass", size=size, steps=4)).images[0]
        if picture.shape[:2] == size and picture.std() > 1:
            made.append(f"{size[1]}x{size[0]}")
    return ", ".join(made) or "none"


def evaluate(
    pipe: ControlNetPipeline,
    library: SpriteLibrary,
    judge: Judge,
    count: int,
    *,
    steps: int = 20,
    batch: int = 1,
) -> Report:
    """Make pictures of ``count`` held-out scenes for every control and for words alone, and compare.

    ``batch`` pictures are drawn at once.
    """
    drawn = Drawn(pipe, library, count, steps, batch)
    controls = []
    for control in (name for name in CONTROLS if name in pipe.controls):
        try:
            controls.append(obedience(drawn, control))
        except WeightsMissing as error:
            log.warning("%s is not measured. %s", control, error)
    figures = [
        ("VAE, PSNR", f"{psnr(pipe.networks.vae, drawn.sets[False][:64]):.1f} dB", ""),
        *_words(drawn, library, judge),
        ("an untrained ControlNet changes nothing, bit for bit", str(starts_as_nothing(pipe)).lower(), ""),
        ("other sizes that come out", drawn_sizes(pipe, drawn.base), ""),
        _speed(drawn, steps),
    ]
    return Report(count, tuple(figures), tuple(controls))


def _speed(drawn: Drawn, steps: int) -> tuple[str, str, str]:
    later = drawn.seconds[drawn.batch :] or drawn.seconds
    how = f", {drawn.batch} at once" if drawn.batch > 1 else ""
    return f"seconds a picture, {steps} steps, after the first{how}", f"{np.median(later):.2f}", ""


def _words(drawn: Drawn, library: SpriteLibrary, judge: Judge) -> list[tuple[str, str, str]]:
    """Say in how many pictures the named thing and the named colours are."""
    scenes = single_things(library, drawn.count, drawn.pipe.resolution)
    requests = [replace(drawn.base, prompt=scene.caption, seed=i) for i, scene in enumerate(scenes)]
    units = [ControlUnit("canny", in_colour(plain_hint("canny", scene))) for scene in scenes]
    free = drawn.draw(requests, "one thing")
    led = [replace(request, controls=(unit,)) for request, unit in zip(requests, units, strict=True)]
    edges = drawn.draw(led, "one thing, canny")
    itself = f"the scenes themselves {accuracy(judge, scenes, [s.image for s in scenes]):.1%}"
    chance = f"chance {1 / len(SHIFT_COLORS):.0%}"
    shown = [*zip(scenes, edges, strict=True),
             *zip(drawn.sets[False], drawn.pictures("canny", False), strict=True)]  # fmt: skip
    colours = [right for scene, picture in shown for right in _colours_right(scene, picture)]
    backdrops = _backdrops(drawn)
    thing = f"{len(scenes)} pictures of one thing"
    return [
        (f"named thing found, no control ({thing})", f"{accuracy(judge, scenes, free):.0%}", itself),
        (f"named thing found, with Canny edges ({thing})", f"{accuracy(judge, scenes, edges):.0%}", itself),
        (f"the thing has the named colour, with Canny edges ({len(colours)} repainted things)",
         f"{np.mean(colours):.0%}" if colours else "none", chance),
        (f"the backdrop has the named colour, no control ({len(backdrops)} prompts)",
         f"{np.mean(backdrops):.0%}", chance),
    ]  # fmt: skip


def _colours_right(scene: Scene, picture: Image) -> list[bool]:
    masks = [(thing, scene.index_map == thing.depth) for thing in scene.objects if thing.repainted]
    return [named_color(picture, mask) == thing.color for thing, mask in masks if mask.sum() > LARGE]


def _backdrops(drawn: Drawn, per_color: int = 3) -> list[bool]:
    rng = random.Random(0)
    names = ("lion", "camera", "teddy bear", "house", "robot", "pineapple")
    wanted = [(word, seed) for word in BACKDROPS for seed in range(per_color)]
    prompts = [f"a {rng.choice(names)} on a plain {word} background" for word, _ in wanted]
    requests = [
        replace(drawn.base, prompt=prompt, seed=seed)
        for prompt, (_, seed) in zip(prompts, wanted, strict=True)
    ]
    pictures = drawn.draw(requests, "backdrops")
    border = np.ones(pictures[0].shape[:2], bool)
    border[24:, 24:-24] = False
    return [named_color(picture, border) == word for picture, (word, _) in zip(pictures, wanted, strict=True)]
