"""Two small networks that name the thing in a picture, to judge whether the model draws what it is told.

They learn from the sprites alone, pasted on the toy world's places: never from what a model has drawn. For
one they are bent, blotched and blurred a little; for the other more, and parts of them are missing. So both
know what is drawn softly, as people do, and each stumbles over other pictures; together they are surer.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from core.runtime.device import autocast
from core.training.data import to_tensor
from core.training.hints import photographed
from core.training.loop import LoopConfig, Trainer
from core.training.norms import settle
from core.training.soft import moved, smooth_noise
from core.training.toyworld.palette import SHIFT_COLORS
from core.training.toyworld.places import PAINTERS
from core.training.toyworld.scene import EVAL_SEED_BASE, Scene, make_scene
from core.training.toyworld.sprites import SpriteLibrary

Image = NDArray[np.uint8]
Floats = NDArray[np.float32]
SIDE = 128  # px: of what the network sees
WIDTHS = (32, 64, 128, 256)
BATCH = 64  # sprites
STEPS = 5000  # a quarter of an hour on two cores, for each network
HEIGHTS = (0.15, 0.85)  # of a thing, as shares of the picture's
COARSE, FINE = 4, 9  # parts along a side of a thing, each bent and blotched its own way
BEND = 0.05  # by how much of its size a thing is bent, about
BLOTCH = 0.2  # how much lighter or darker parts of it are, as shares, about
STAIN = 0.12  # or how much is added to their colours, about, where 1 is from black to white
GONE = 1.5  # of a smooth noise of about 1: from where on parts of a thing are missing
NORM_BATCHES = 20  # from which the normalisations' means are taken in the end
PLACES = 256  # pictures of places, on which all sprites are pasted
SEED_STRIDE = 1 << 32  # between the sprites of one seed and those of the next

NetworkT = TypeVar("NetworkT", bound=nn.Module)


class Block(nn.Module):
    """Two convolutions at half the side, beside a short cut."""

    def __init__(self, channels: int, width: int) -> None:
        """Make it with random weights, for ``channels`` in and ``width`` out."""
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(channels, width, 3, 2, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.shortcut = nn.Sequential(
            nn.AvgPool2d(2), nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return features (B, width, H / 2, W / 2) of (B, channels, H, W), sides even."""
        return functional.relu(self.convs(x) + self.shortcut(x))


class Classifier(nn.Module):
    """Names the one thing in a picture, among the things of ``names``."""

    def __init__(self, names: Sequence[str]) -> None:
        """Make the network with random weights."""
        super().__init__()
        self.names = tuple(names)
        first, last = WIDTHS[0], WIDTHS[-1]
        self.stem = nn.Sequential(
            nn.Conv2d(3, first, 3, 2, 1, bias=False), nn.BatchNorm2d(first), nn.ReLU(inplace=True)
        )
        self.blocks = nn.Sequential(*(Block(*pair) for pair in itertools.pairwise(WIDTHS)))
        self.head = nn.Linear(last, len(self.names))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, names) of pictures (B, 3, SIDE, SIDE) in [-1, 1]."""
        features: Tensor = self.blocks(self.stem(x))
        logits: Tensor = self.head(features.amax((2, 3)))
        return logits


class Judge:
    """Names the one thing in a picture as its networks do together."""

    def __init__(self, networks: Sequence[Classifier]) -> None:
        """Ask these networks, which know the same things."""
        self.networks, self.names = tuple(networks), networks[0].names

    @torch.inference_mode()
    def name(self, images: Sequence[Image]) -> list[str]:
        """Name the thing in each picture (H, W, 3) of any size."""
        small = [cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for image in images]
        x = to_tensor(np.stack(small))
        said = [net(x.to(net.head.weight.device)).float().softmax(1) for net in self.networks]
        return [self.names[i] for i in torch.stack(said).mean(0).argmax(1).tolist()]


def places(rng: random.Random, side: int = SIDE) -> list[Image]:
    """Return pictures (side, side, 3) uint8 of all kinds of places."""
    painters = list(PAINTERS.values())
    return [painters[i % len(painters)](rng, side, False).image for i in range(PLACES)]


def pasted(
    library: SpriteLibrary, grounds: Sequence[Image], softness: Softness, rng: random.Random
) -> tuple[Image, int]:
    """Return a sprite, at times repainted, on a place of ``grounds``, as large as that, and its number."""
    number = rng.randrange(len(library.specs))
    spec = library.specs[number]
    color = rng.choice([word for word in SHIFT_COLORS if word != spec.color]) if spec.shift else None
    sprite = library.sprite(spec.name, color if rng.random() < 0.6 else None)
    image = rng.choice(grounds).copy()
    whole, height = len(image), min(rng.uniform(*HEIGHTS), 0.95 / sprite.aspect)
    size = max(4, round(height * whole * sprite.aspect)), max(4, round(height * whole))
    drawn = softness.change(sprite.at(*size).astype(np.float32), rng)
    if rng.random() < 0.5:
        drawn = drawn[:, ::-1]
    x, y = (rng.randint(0, whole - side) for side in size)
    under = image[y : y + size[1], x : x + size[0]]
    mixed = drawn[..., :3] + under * (1 - drawn[..., 3:] / 255)
    under[:] = np.rint(mixed).clip(0, 255).astype(np.uint8)
    if rng.random() < 0.5:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, softness.blur)), np.uint8)
    return photographed(image, rng), number


def as_from_memory(drawn: Floats, rng: random.Random) -> Floats:
    """Bend and blotch a thing (h, w, 4), colours times alpha in [0, 255], as chance has it."""
    smooth = smooth_noise(drawn.shape[:2], COARSE, rng)
    bent = bend(drawn, smooth)
    bent[..., :3] *= np.clip(1 + BLOTCH * smooth[..., 2:], 0, None)
    bent[..., :3] = np.minimum(bent[..., :3], bent[..., 3:])
    return bent


def half_forgotten(drawn: Floats, rng: random.Random) -> Floats:
    """Bend and stain a thing (h, w, 4), colours times alpha in [0, 255], more finely, and leave parts out."""
    size = drawn.shape[:2]
    smooth = np.asarray(smooth_noise(size, COARSE, rng) + smooth_noise(size, FINE, rng) / 2, np.float32)
    bent = bend(drawn, smooth)
    bent[..., :3] += STAIN * bent[..., 3:] * smooth[..., 2:]
    bent[..., :3] = np.clip(bent[..., :3], 0, bent[..., 3:])
    there = np.clip(2 * (GONE - smooth_noise(size, COARSE, rng)[..., :1]), 0, 1)
    return np.asarray(bent * there, np.float32)


def bend(drawn: Floats, smooth: Floats) -> Floats:
    """Bend a thing (h, w, 4) by ``smooth_noise``."""
    x, y = moved(smooth, BEND * max(drawn.shape[:2]))
    return np.asarray(cv2.remap(drawn, x, y, cv2.INTER_LINEAR), np.float32)


@dataclass(frozen=True, slots=True)
class Softness:
    """How softly a thing is drawn: ``change`` alters it; the picture is blurred by ``blur`` px at most."""

    change: Callable[[Floats, random.Random], Floats]
    blur: float


SOFTNESS = (Softness(as_from_memory, 1.5), Softness(half_forgotten, 2.5))  # for a network each


def train_on_sprites(
    build: Callable[[Sequence[str]], NetworkT],
    library: SpriteLibrary,
    softness: Softness,
    loop: LoopConfig,
    *,
    side: int,
    batch_size: int,
    device: torch.device,
) -> NetworkT:
    """Train what ``build`` makes of the things' names on pasted sprites, pictures of ``side`` pixels.

    It resumes from ``loop.output``; the moving average is returned.
    """
    torch.manual_seed(loop.seed)
    net = build([spec.name for spec in library.specs])
    net.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    trainer = Trainer(net.named_parameters(), loop)
    grounds = places(random.Random(loop.seed), side)
    first = loop.seed * SEED_STRIDE

    def loss(step: int, generator: torch.Generator | None = None) -> Tensor:
        numbers = range(first + step * batch_size, first + (step + 1) * batch_size)
        samples = [pasted(library, grounds, softness, random.Random(number)) for number in numbers]
        pictures = to_tensor(np.stack([picture for picture, _ in samples]))
        pictures = pictures.to(device, memory_format=torch.channels_last)
        with autocast(device.type):
            logits = net(pictures)
        return functional.cross_entropy(
            logits.float(), torch.tensor([number for _, number in samples], device=device)
        )

    trainer.run(loss, batch_size)
    trainer.use_average()
    settle(net, lambda number: loss(loop.steps + number), NORM_BATCHES)
    return net.requires_grad_(False)


def sprite_loop(output: Path, steps: int, minutes: float | None, seed: int = 0) -> LoopConfig:
    """Return how long and how fast a network learns from sprites; ``minutes`` may end a run earlier."""
    return LoopConfig(
        output=output,
        steps=steps,
        minutes=minutes,
        learning_rate=3e-3,
        weight_decay=0.05,
        warmup=20,
        decay=steps * 7 // 10,
        muon=True,
        ema_decay=0.99,
        seed=seed,
    )


def single_things(library: SpriteLibrary, count: int, size: int = 256) -> list[Scene]:
    """Return the first held-out scenes that show one sprite and nothing else."""
    found: list[Scene] = []
    seed = EVAL_SEED_BASE
    while len(found) < count:
        scene = make_scene(seed, library, size)
        seed += 1
        if len(scene.objects) == 1 and scene.objects[0].name in library.by_name:
            found.append(scene)
    return found


def load_or_train(
    library: SpriteLibrary, runs: Path, device: torch.device, *, minutes: float | None = None
) -> Judge:
    """Return the judge for this library's things; do what its training in ``runs`` still lacks.

    It ends after so many ``minutes``, if given, shared by the networks.
    """
    each = None if minutes is None else minutes / len(SOFTNESS)
    outputs = [runs / f"judge_{len(library.specs)}_{SIDE}_{number}" for number in range(len(SOFTNESS))]
    return Judge(
        [
            train_on_sprites(
                Classifier, library, softness, sprite_loop(output, STEPS, each),
                side=SIDE, batch_size=BATCH, device=device,
            )
            for output, softness in zip(outputs, SOFTNESS, strict=True)
        ]
    )  # fmt: skip


def accuracy(judge: Judge, scenes: Sequence[Scene], pictures: Sequence[Image]) -> float:
    """Return in which share of the pictures the judge finds the thing of the scene."""
    named = judge.name(pictures)
    return float(np.mean([n == scene.objects[0].name for n, scene in zip(named, scenes, strict=True)]))
