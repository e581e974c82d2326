"""A small network that names what each place of latents shows: what the model draws is made nameable by it.

It learns from the latents of scenes, blurred and noisy, as what a model takes for them halfway is. The
judge of words, ``core/training/classifier.py``, is another one: that sees pictures, and sprites alone.
"""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from core.runtime.device import CPU, autocast, for_training
from core.training.data import LatentScenes, MadeOf, Scenes, made_of
from core.training.loop import LoopConfig, Trainer
from core.training.toyworld.objects import all_objects
from core.training.toyworld.scene import make_scene
from core.training.toyworld.sprites import SpriteLibrary

CELL = 16  # px: of a place that is named, two latents wide
NOTHING = 0  # the number of a place that shows no thing
WIDTHS = (64, 160, 256)  # at 8, 16 and 32 px
GROUPS = 16  # of the channels, whose values are normalised together
HAZE = 0.6  # the most that latents, whose deviation is 1, are blurred or noisy
ELSEWHERE = 0.2  # the weight of places without a thing, beside those with one
FEW = 1.0  # place with things that is always counted as there


def _names_chunk(seeds: list[int], sprites: Path, size: int, made: MadeOf) -> NDArray[np.uint16]:
    library = SpriteLibrary.load(sprites, all_objects()[: made.things])
    numbers = {spec.name: i for i, spec in enumerate(library.specs, start=1)}
    labels = []
    for seed in seeds:
        scene = make_scene(seed, library, size, framed=made.framed)
        names = [NOTHING, *(numbers.get(thing.name, len(numbers) + 1) for thing in scene.objects)]
        labels.append(np.array(names, np.uint16)[scene.index_map[CELL // 2 :: CELL, CELL // 2 :: CELL]])
    return np.stack(labels)


def cache_names(data: Path, sprites: Path, *, workers: int = 2) -> None:
    """Write names.npy (N, H / CELL, W / CELL) uint16: what is in the middle of each place of the scenes.

    0 is for no thing, then come the library's things in its order, at last what else there is: people and
    solids.
    """
    scenes, made = Scenes.open(data), made_of(data)
    size = scenes.images.shape[1]
    seeds = range(made.first_seed, made.first_seed + len(scenes))
    chunks = [list(seeds[i : i + 128]) for i in range(0, len(seeds), 128)]
    with ProcessPoolExecutor(workers) as pool:
        work = pool.map(partial(_names_chunk, sprites=sprites, size=size, made=made), chunks)
        found = list(tqdm(work, total=len(chunks), desc="names", mininterval=10))
    partial_path = data / "names.partial.npy"
    np.save(partial_path, np.concatenate(found))
    os.replace(partial_path, data / "names.npy")


def open_names(data: Path) -> Tensor:
    """Return what ``cache_names`` wrote, as (N, h, w) int64.

    Raises:
        FileNotFoundError: with the command that writes it.
    """
    path = data / "names.npy"
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there. Run: python -m core.training names --data {data}")
    return torch.from_numpy(np.load(path).astype(np.int64))


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(
                layer
                for _ in range(2)
                for layer in (nn.GroupNorm(GROUPS, width), nn.SiLU(), nn.Conv2d(width, width, 3, 1, 1))
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Namer(nn.Module):
    """Names the thing at each place of latents."""

    def __init__(self, channels: int, names: int) -> None:
        """Make the network with random weights, for latents of so many channels and so many names."""
        super().__init__()
        first, second, third = WIDTHS
        self.fine = nn.Sequential(nn.Conv2d(channels, first, 3, 1, 1), _Block(first))
        self.middle = nn.Sequential(nn.Conv2d(first, second, 3, 2, 1), _Block(second), _Block(second))
        self.coarse = nn.Sequential(nn.Conv2d(second, third, 3, 2, 1), _Block(third), _Block(third))
        self.join = nn.Sequential(nn.Conv2d(second + third, second, 3, 1, 1), _Block(second))
        self.head = nn.Sequential(nn.GroupNorm(GROUPS, second), nn.SiLU(), nn.Conv2d(second, names, 1))

    def forward(self, latents: Tensor) -> Tensor:
        """Return logits (B, names, h / 2, w / 2) of latents (B, C, h, w)."""
        middle = self.middle(self.fine(latents))
        coarse = F.interpolate(self.coarse(middle), size=middle.shape[2:])
        logits: Tensor = self.head(self.join(torch.cat([middle, coarse], dim=1)))
        return logits


def hazed(latents: Tensor, generator: torch.Generator) -> Tensor:
    """Return latents (B, C, h, w), each blurred and noisy as chance has it."""
    amounts = torch.rand((2, len(latents), 1, 1, 1), generator=generator) * HAZE
    noise = torch.randn(latents.shape, generator=generator)
    blur, grain = amounts.to(latents.device)
    smooth = F.avg_pool2d(latents, 3, stride=1, padding=1, count_include_pad=False)
    return latents + blur * (smooth - latents) + grain * noise.to(latents.device)


def misnamed(logits: Tensor, names: Tensor) -> Tensor:
    """Return by how much places (B, h, w) are not named as they are; each picture counts alike."""
    wrong = F.cross_entropy(logits.float(), names, reduction="none")
    things = (names != NOTHING).float()
    with_thing = (wrong * things).sum(dim=(1, 2)) / (things.sum(dim=(1, 2)) + FEW)
    without = (wrong * (1 - things)).sum(dim=(1, 2)) / ((1 - things).sum(dim=(1, 2)) + FEW)
    return (with_thing + ELSEWHERE * without).mean()


def train_namer(
    sources: list[tuple[LatentScenes, Tensor]],
    loop: LoopConfig,
    *,
    batch_size: int,
    device: torch.device = CPU,
) -> Namer:
    """Train on latents and the names of their places; resumes from ``loop.output``; return the average.

    A batch has as many of each of the ``sources``.
    """
    torch.manual_seed(loop.seed)
    count = 1 + max(int(names.max()) for _, names in sources)
    net = Namer(sources[0][0].latents.shape[1], count)
    for_training(net, device)
    trainer = Trainer(net.named_parameters(), loop)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        latents, named = [], []
        for scenes, names in sources:
            which, x_0 = scenes.draw(batch_size // len(sources), generator)
            latents.append(x_0)
            named.append(names[torch.from_numpy(which)].to(device))
        with autocast(device.type):
            logits = net(hazed(torch.cat(latents), generator))
        return misnamed(logits, torch.cat(named))

    trainer.run(loss, batch_size)
    trainer.use_average()
    return net.requires_grad_(False)


def load_namer(run: Path, device: torch.device = CPU) -> Namer:
    """Return the network that ``train_namer`` left in ``run``.

    Raises:
        FileNotFoundError: with the command that trains it.
    """
    path = run / "checkpoint.pt"
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is not there. Run: python -m core.training namer --runs {run.parent}"
        )
    average = torch.load(path, map_location="cpu", weights_only=True)["ema"]
    net = Namer(average["fine.0.weight"].shape[1], average["head.2.weight"].shape[0])
    net.load_state_dict(average)
    for_training(net.requires_grad_(False), device)
    return net
