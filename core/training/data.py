"""Rendered scenes on disk, and the latents made of them: what the demo model's networks learn from."""

from __future__ import annotations

import copy
import json
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from core.models.vae import AutoencoderKL
from core.training.toyworld.objects import all_objects
from core.training.toyworld.scene import Scene, make_scene
from core.training.toyworld.sprites import SpriteLibrary
from core.training.vae_init import without_idle_branches

log = logging.getLogger(__name__)

REDRAWN = "redrawn.npz"
MADE_OF = "made_of.json"
THINGS = "things.npy"
PLACE = 16  # px: of a place that is known to show a thing or not


def places_shown(scene: Scene) -> NDArray[np.bool_]:
    """Return which places of a scene, squares of PLACE pixels, show a thing in their middle."""
    middles = slice(PLACE // 2, None, PLACE)
    return np.asarray(scene.index_map[middles, middles] > 0)


def _render_chunk(
    seeds: Sequence[int], sprites: Path, size: int, things: int | None, framed: bool
) -> tuple[NDArray[np.uint8], list[str], NDArray[np.bool_]]:
    library = SpriteLibrary.load(sprites, all_objects()[:things])
    scenes = [make_scene(seed, library, size, framed=framed) for seed in seeds]
    shown = np.stack([places_shown(scene) for scene in scenes])
    return np.stack([scene.image for scene in scenes]), [scene.caption for scene in scenes], shown


def render(
    output: Path,
    sprites: Path,
    count: int,
    *,
    first_seed: int = 0,
    size: int = 256,
    things: int | None = None,
    framed: bool = False,
    workers: int = 2,
) -> None:
    """Write ``count`` scenes to ``output``: images.npy (count, size, size, 3) uint8 RGB and captions.json.

    ``things`` limits the scenes to the first so many rows of objects.csv, beside people and solids;
    ``framed`` ones show one thing each, see ``make_scene``. What makes the scenes again goes to made_of.json,
    and which places, squares of PLACE pixels, show a thing in their middle, to things.npy.
    """
    output.mkdir(parents=True, exist_ok=True)
    partial_path = output / "images.partial.npy"
    images = np.lib.format.open_memmap(partial_path, mode="w+", dtype=np.uint8, shape=(count, size, size, 3))
    captions: list[str] = []
    shown: list[NDArray[np.bool_]] = []
    seeds = range(first_seed, first_seed + count)
    chunks = [seeds[i : i + 128] for i in range(0, count, 128)]
    with ProcessPoolExecutor(workers) as pool:
        work = pool.map(
            partial(_render_chunk, sprites=sprites, size=size, things=things, framed=framed), chunks
        )
        for pictures, words, places in tqdm(work, total=len(chunks), desc="render", mininterval=10):
            images[len(captions) : len(captions) + len(words)] = pictures
            captions += words
            shown.append(places)
    images.flush()
    (output / "captions.json").write_text(json.dumps(captions, ensure_ascii=False, indent=0))
    np.save(output / THINGS, np.concatenate(shown))
    (output / MADE_OF).write_text(json.dumps({"first_seed": first_seed, "things": things, "framed": framed}))
    os.replace(partial_path, output / "images.npy")


@dataclass(frozen=True, slots=True)
class MadeOf:
    """What makes the scenes of a folder again; see ``render``."""

    first_seed: int = 0
    things: int | None = None
    framed: bool = False


def made_of(folder: Path) -> MadeOf:
    """Return what makes the scenes in ``folder`` again."""
    if not (folder / MADE_OF).exists():
        return MadeOf()
    return MadeOf(**json.loads((folder / MADE_OF).read_text()))


def shown_things(folder: Path) -> NDArray[np.bool_]:
    """Return which places of the scenes in ``folder`` show a thing, (N, size / PLACE, size / PLACE).

    Raises:
        FileNotFoundError: with the command that renders scenes with it.
    """
    if not (folder / THINGS).exists():
        raise FileNotFoundError(
            f"{folder / THINGS} is not there: the scenes are of an earlier render. "
            f"Run: python -m core.training render --data {folder}"
        )
    return np.asarray(np.load(folder / THINGS), np.bool_)


@dataclass(frozen=True, slots=True)
class Scenes:
    """Rendered scenes: ``images`` (N, size, size, 3) uint8 RGB, mapped from disk, and their captions."""

    images: NDArray[np.uint8]
    captions: tuple[str, ...]

    @classmethod
    def open(cls, folder: Path) -> Scenes:
        """Open what ``render`` wrote.

        Raises:
            FileNotFoundError: with the command that renders the scenes.
        """
        if not (folder / "images.npy").exists():
            raise FileNotFoundError(
                f"{folder} holds no rendered scenes. Run: python -m core.training render --data {folder}"
            )
        captions = json.loads((folder / "captions.json").read_text())
        return cls(np.load(folder / "images.npy", mmap_mode="r"), tuple(captions))

    def __len__(self) -> int:
        """Return how many scenes there are."""
        return len(self.captions)


def to_tensor(images: NDArray[np.uint8]) -> Tensor:
    """Map (B, H, W, 3) uint8 to (B, 3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32)).div_(127.5).sub_(1.0)


@torch.inference_mode()
def cache_latents(vae: AutoencoderKL, data: Path, *, count: int | None = None, batch_size: int = 16) -> None:
    """Write latents.npy (N, C, h, w) float16, scaled modes, of the first ``count`` scenes.

    It computes where ``vae`` is, without the encoder's branches that add nothing.
    """
    vae = copy.deepcopy(vae)
    device = next(vae.parameters()).device
    vae.encoder = without_idle_branches(vae.encoder).to(memory_format=torch.channels_last)
    images = Scenes.open(data).images[:count]
    side = images.shape[1] // vae.factor
    latents = np.empty((len(images), vae.config.embed_dim, side, side), np.float16)
    for start in tqdm(range(0, len(images), batch_size), desc="latents", mininterval=10):
        batch = to_tensor(images[start : start + batch_size]).to(device, memory_format=torch.channels_last)
        latents[start : start + len(batch)] = vae.encode(batch).half().cpu().numpy()
    partial_path = data / "latents.partial.npy"
    np.save(partial_path, latents)
    os.replace(partial_path, data / "latents.npy")


@dataclass(frozen=True, slots=True)
class LatentScenes:
    """Cached latents (N, C, h, w) float16, of the first N of the scenes, all of them on one device."""

    latents: Tensor
    scenes: Scenes

    @classmethod
    def open(cls, data: Path, device: torch.device | None = None) -> LatentScenes:
        """Read what ``cache_latents`` wrote; ``device`` is where it goes, by default main memory.

        Raises:
            FileNotFoundError: with the command that makes the latents.
        """
        if not (data / "latents.npy").exists():
            raise FileNotFoundError(
                f"{data} holds no latents. Run: python -m core.training latents --data {data}"
            )
        return cls(torch.from_numpy(np.load(data / "latents.npy")).to(device or "cpu"), Scenes.open(data))

    def draw(
        self, size: int, generator: torch.Generator, cells: int | None = None
    ) -> tuple[NDArray[np.int64], Tensor]:
        """Draw indices (size,) and their latents (size, C, h, w) float32.

        With ``cells`` a square of so many cells of each, wherever chance puts it.
        """
        which = torch.randint(len(self.latents), (size,), generator=generator)
        side = self.latents.shape[-1]
        if cells is None or cells >= side:
            return which.numpy(), self.latents[which.to(self.latents.device)].float()
        corners = torch.randint(side - cells + 1, (size, 2), generator=generator).tolist()
        squares = [
            self.latents[i, :, y : y + cells, x : x + cells]
            for i, (y, x) in zip(which.tolist(), corners, strict=True)
        ]
        return which.numpy(), torch.stack(squares).float()


@dataclass(frozen=True, slots=True)
class Redrawn:
    """Latents (N, C, h, w) float16, and the numbers (N,) of the scenes that they show."""

    latents: NDArray[np.float16]
    scenes: NDArray[np.int64]

    @classmethod
    def open(cls, data: Path) -> Redrawn:
        """Read what ``redraw`` wrote to ``data``.

        Raises:
            FileNotFoundError: with the command that draws them.
        """
        if not (data / REDRAWN).exists():
            raise FileNotFoundError(
                f"{data} holds no redrawn latents. Run: python -m core.training redraw --data {data}"
            )
        with np.load(data / REDRAWN) as found:
            return cls(found["latents"], found["scenes"])

    def save(self, data: Path) -> None:
        """Write them, whole or not at all."""
        partial = data / f"partial.{REDRAWN}"
        np.savez(partial, latents=self.latents, scenes=self.scenes)
        os.replace(partial, data / REDRAWN)
