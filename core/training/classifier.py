"""A small network that names the thing in a picture: it judges whether the demo model draws what it is told.

It learns from the sprites alone, pasted on the toy world's places: never from what a model has drawn. They
are bent, blotched and blurred, so that it names what is drawn softly too, as people do.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

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
from core.training.toyworld.palette import SHIFT_COLORS
from core.training.toyworld.places import PAINTERS
from core.training.toyworld.scene import EVAL_SEED_BASE, Scene, make_scene
from core.training.toyworld.sprites import SpriteLibrary

Image = NDArray[np.uint8]
SIDE = 96  # px: of what the network sees
WIDTHS = (32, 64, 128, 256)
STEPS = 4000  # of 64 sprites: three to seven minutes
HEIGHTS = (0.15, 0.85)  # of a thing, as shares of the picture's
BEND = 0.05  # by how much of its size a thing is bent at most, about
BLOTCH = 0.2  # how much lighter or darker parts of it are at most, about
BLUR = 1.5  # px, at most
NORM_BATCHES = 20  # from which the normalisations' means are taken in the end
PLACES = 256  # pictures of places, on which all sprites are pasted


class Classifier(nn.Module):
    """Names the one thing in a picture, among the things of ``names``."""

    def __init__(self, names: Sequence[str]) -> None:
        """Make the network with random weights."""
        super().__init__()
        self.names = tuple(names)
        layers: list[nn.Module] = []
        channels = 3
        for width in WIDTHS:
            stride = 2 if channels == 3 else 1
            layers += [nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)]
            layers += [nn.ReLU(inplace=True), nn.MaxPool2d(2)]
            channels = width
        self.features = nn.Sequential(*layers[:-1])
        self.head = nn.Linear(channels, len(self.names))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, names) of pictures (B, 3, SIDE, SIDE) in [-1, 1]."""
        features: Tensor = self.features(x)
        logits: Tensor = self.head(features.amax((2, 3)))
        return logits

    @torch.inference_mode()
    def name(self, images: Sequence[Image]) -> list[str]:
        """Name the thing in each picture (H, W, 3) of any size."""
        small = [cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for image in images]
        logits = self(to_tensor(np.stack(small)).to(self.head.weight.device))
        return [self.names[i] for i in logits.argmax(1).tolist()]


def places(rng: random.Random) -> list[Image]:
    """Return pictures (SIDE, SIDE, 3) uint8 of all kinds of places."""
    painters = list(PAINTERS.values())
    return [painters[i % len(painters)](rng, SIDE, False).image for i in range(PLACES)]


def pasted(library: SpriteLibrary, grounds: Sequence[Image], rng: random.Random) -> tuple[Image, int]:
    """Return a sprite, at times repainted, on a place, (SIDE, SIDE, 3) uint8, and its number there."""
    number = rng.randrange(len(library.specs))
    spec = library.specs[number]
    color = rng.choice([word for word in SHIFT_COLORS if word != spec.color]) if spec.shift else None
    sprite = library.sprite(spec.name, color if rng.random() < 0.6 else None)
    image = rng.choice(grounds).copy()
    height = min(rng.uniform(*HEIGHTS), 0.95 / sprite.aspect)
    size = max(4, round(height * SIDE * sprite.aspect)), max(4, round(height * SIDE))
    drawn = as_from_memory(sprite.at(*size).astype(np.float32), rng)
    if rng.random() < 0.5:
        drawn = drawn[:, ::-1]
    x, y = (rng.randint(0, SIDE - side) for side in size)
    under = image[y : y + size[1], x : x + size[0]]
    mixed = drawn[..., :3] + under * (1 - drawn[..., 3:] / 255)
    under[:] = np.rint(mixed).clip(0, 255).astype(np.uint8)
    if rng.random() < 0.5:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, BLUR)), np.uint8)
    return photographed(image, rng), number


def as_from_memory(drawn: NDArray[np.float32], rng: random.Random) -> NDArray[np.float32]:
    """Bend and blotch a thing (h, w, 4), colours times alpha in [0, 255], as chance has it."""
    height, width = drawn.shape[:2]
    noise = np.random.default_rng(rng.getrandbits(32))
    coarse = noise.normal(size=(4, 4, 5)).astype(np.float32) * rng.random()
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    far = BEND * max(height, width)
    bent = cv2.remap(drawn, x + far * smooth[..., 0], y + far * smooth[..., 1], cv2.INTER_LINEAR)
    bent[..., :3] *= np.clip(1 + BLOTCH * smooth[..., 2:], 0, None)
    bent[..., :3] = np.minimum(bent[..., :3], bent[..., 3:])
    return np.asarray(bent, np.float32)


def train_classifier(
    library: SpriteLibrary, loop: LoopConfig, *, batch_size: int, device: torch.device
) -> Classifier:
    """Train on pasted sprites; resumes from ``loop.output``; return the moving average."""
    torch.manual_seed(loop.seed)
    net = Classifier([spec.name for spec in library.specs]).to(device)
    trainer = Trainer(net.named_parameters(), loop)
    grounds = places(random.Random(loop.seed))

    def loss(step: int, generator: torch.Generator | None = None) -> Tensor:
        numbers = range(step * batch_size, (step + 1) * batch_size)
        samples = [pasted(library, grounds, random.Random(number)) for number in numbers]
        pictures = to_tensor(np.stack([picture for picture, _ in samples])).to(device)
        with autocast(device.type):
            logits = net(pictures)
        return functional.cross_entropy(
            logits.float(), torch.tensor([number for _, number in samples], device=device)
        )

    trainer.run(loss, batch_size)
    trainer.use_average()
    settle(net, lambda number: loss(loop.steps + number), NORM_BATCHES)
    return net.requires_grad_(False)


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
) -> Classifier:
    """Return the classifier for this library's things; do what its training in ``runs`` still lacks."""
    loop = LoopConfig(
        output=runs / f"classifier_{len(library.specs)}_{SIDE}",
        steps=STEPS,
        minutes=minutes,
        learning_rate=3e-3,
        weight_decay=0.05,
        warmup=20,
        decay=STEPS // 2,
        ema_decay=0.99,
    )
    return train_classifier(library, loop, batch_size=64, device=device)


def accuracy(net: Classifier, scenes: Sequence[Scene], pictures: Sequence[Image]) -> float:
    """Return in which share of the pictures the network finds the thing of the scene."""
    named = net.name(pictures)
    return float(np.mean([n == scene.objects[0].name for n, scene in zip(named, scenes, strict=True)]))
