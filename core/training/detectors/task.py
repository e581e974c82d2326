"""What a detector of the toy world learns: its network, its samples, its loss, and the file it becomes."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from core.training.toyworld.layout import draw_kind
from core.training.toyworld.scene import Scene

Image = NDArray[np.uint8]
Truth = tuple[NDArray[np.generic], ...]
TRIES = 16  # seeds that a sample of a scene with people chooses from


class Task(ABC):
    """One detector in training. ``file`` is the name of what it is exported to.

    ``sides`` are the sides of the scenes in pixels and the share of the steps at which each one begins: the
    small ones, which take less time, come first. ``needs_truth`` asks for the scenes' maps.
    """

    file: ClassVar[str]
    sides: ClassVar[tuple[tuple[float, int], ...]]
    needs_truth: ClassVar[bool] = True

    @abstractmethod
    def build(self) -> nn.Module:
        """Make the network as it learns."""

    @abstractmethod
    def config(self) -> str:
        """Return the network's configuration as the file's metadata holds it."""

    def seed(self, index: int) -> int:
        """Return the seed of the scene that the sample of this number shows."""
        return index

    @abstractmethod
    def sample(self, scene: Scene, rng: random.Random) -> tuple[Image, Truth]:
        """Return what the network sees, (H, W, 3) uint8, and what it should find there."""

    @abstractmethod
    def loss(self, net: nn.Module, seen: Tensor, truth: tuple[Tensor, ...]) -> Tensor:
        """Compare what the network makes of pictures (B, 3, H, W), float32 in 0 to 255, with the truth."""

    def exported(self, net: nn.Module) -> Mapping[str, Tensor]:
        """Return the trained network's tensors under the file's names."""
        return net.state_dict()

    def begin(self, net: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Give ``net`` what ``exported`` made of a trained one, to go on from there.

        Raises:
            ValueError: the file's tensors are not those of a network that can go on.
        """
        own = net.state_dict()
        count = "num_batches_tracked"  # whole numbers, which the file has not
        wanted = {key: value.shape for key, value in own.items() if not key.endswith(count)}
        if wanted != {key: value.shape for key, value in tensors.items()}:
            raise ValueError(f"training cannot go on from this {self.file}: begin without --start.")
        net.load_state_dict(own | {key: value.float() for key, value in tensors.items()})

    def side(self, progress: float) -> int:
        """Return the side of the scenes, in pixels, at ``progress``, the share of the steps that are done."""
        return next(side for begin, side in reversed(self.sides) if progress >= begin)


def seed_with_people(index: int) -> int:
    """Return a seed whose scene shows people for seven of eight ``index``, and any seed for the others."""
    seeds = range(TRIES * index, TRIES * (index + 1))
    if index % 8 == 0:
        return seeds[0]
    return next((seed for seed in seeds if draw_kind(random.Random(seed)) == "people"), seeds[0])


def mirrored(picture: Image, truth: Truth, rng: random.Random) -> tuple[Image, Truth]:
    """Mirror a picture and its maps, or leave them."""
    if rng.random() < 0.5:
        return picture, truth
    return np.ascontiguousarray(picture[:, ::-1]), tuple(np.ascontiguousarray(a[:, ::-1]) for a in truth)
