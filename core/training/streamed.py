"""Scenes with all their maps, made by other processes while a GPU trains, and kept in the GPU's memory.

A GPU takes hundreds of scenes a step: neither disks nor one process that cuts maps can feed it.
"""

from __future__ import annotations

import copy
import logging
import multiprocessing
import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.config import TextConfig
from core.errors import SuiteError
from core.models.text_encoder import TextEncoder
from core.models.vae import AutoencoderKL
from core.runtime.device import autocast
from core.training.base import BaseBatch, vary_caption
from core.training.control import EMPTY_PROMPTS, ControlBatch
from core.training.diffusion import on_device
from core.training.hints import (
    CachedHints,
    canny_hint,
    class_colours,
    depth_hint,
    normal_hint,
    openpose_hint,
)
from core.training.toyworld.scene import make_scene
from core.training.toyworld.sprites import SpriteLibrary
from core.training.vae_init import without_idle_branches

log = logging.getLogger(__name__)

Image = NDArray[np.uint8]
CHUNK = 64  # scenes a process makes at a time
CAPTIONS = 4  # how many ways each scene's caption is kept in
DRAWN = ("canny", "depth", "normal", "seg", "openpose")  # maps that are made with the scenes
OF_ALL = ("canny",)  # the others are made of the first scenes alone
_LIBRARY: SpriteLibrary | None = None  # of this process
_TEXT: TextEncoder | None = None  # without weights: its tokenizer alone is asked


@dataclass(frozen=True, slots=True)
class Piece:
    """Some scenes: ``images`` (n, H, W, 3) RGB, ``tokens`` (n, CAPTIONS, length) int32, and maps by name.

    A map is (n, H, W) uint8, or (n, H, W, 3); "seg" holds the numbers of the classes. "openpose" may be of
    fewer scenes: those of ``people``, (k,), counted within the piece.
    """

    images: Image
    tokens: NDArray[np.int32]
    maps: dict[str, Image]
    people: NDArray[np.int64]


def _made_with(truth: bool, framed: bool) -> tuple[str, ...]:
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
    images, tokens, people = [], [], []
    maps: dict[str, list[Image]] = {name: [] for name in _made_with(truth, framed)}
    for at, seed in enumerate(seeds):
        scene = make_scene(seed, _LIBRARY, size, truth=truth, framed=framed)
        rng = random.Random(seed)
        images.append(scene.image)
        captions = [vary_caption(scene.caption, rng) for _ in range(CAPTIONS)]
        tokens.append(_TEXT.tokenize(captions).numpy().astype(np.int32))
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
    return Piece(np.stack(images), np.stack(tokens), stacked, np.array(people, np.int64))


@dataclass(slots=True)
class Maps:
    """Maps (n, H, W[, 3]) uint8 on the GPU, and their scenes (n,); the first ``count`` are there."""

    values: Tensor
    scenes: Tensor
    count: int = 0


class SceneStream:
    """Scenes in a GPU's memory, more and more of them until all are there."""

    def __init__(
        self,
        library: SpriteLibrary,
        vae: AutoencoderKL,
        text: TextEncoder,
        count: int,
        with_truth: int,
        *,
        size: int,
        device: torch.device,
        framed: bool = False,
    ) -> None:
        """Make room for ``count`` scenes of ``size`` pixels, the first ``with_truth`` of them with all maps.

        ``text`` must lie on ``device``. ``framed`` scenes, see ``make_scene``, have no maps.
        """
        self.framed = framed
        self.device, self.text, self.size, self.count = device, text, size, count
        self.with_truth = min(with_truth, count)
        self.library = library
        vae = copy.deepcopy(vae)
        vae.encoder = without_idle_branches(vae.encoder)
        self.vae = vae.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        cells = size // vae.factor
        shape = (count, vae.config.embed_dim, cells, cells)
        self.latents = torch.empty(shape, dtype=torch.float16, device=device)
        length = text.config.context_length
        self.tokens = torch.zeros(count, CAPTIONS, length, dtype=torch.int32, device=device)
        self.empty = text.tokenize([""]).to(device)
        self.maps = {name: self._room(name) for name in _made_with(truth=True, framed=framed)}
        self.cached: dict[str, NDArray[np.int64]] = {}  # of maps made before: their scenes, in order
        self.ready = 0
        self.failed: Exception | None = None
        self.palette = torch.from_numpy(class_colours()).to(device)

    def _room(self, name: str) -> Maps:
        count = self.count if name in OF_ALL else self.with_truth
        colours = (3,) if name in ("normal", "openpose") else ()
        if name == "openpose":
            count = count // 2
        values = torch.empty(count, self.size, self.size, *colours, dtype=torch.uint8, device=self.device)
        return Maps(values, torch.arange(count, device=self.device))

    def add_cached(self, data: Path, names: Sequence[str]) -> None:
        """Add the maps that ``hints`` made of the first scenes in ``data``."""
        for name in names:
            cached = CachedHints.open(data, name)
            usable = int((cached.scenes < self.count).sum())
            values = torch.from_numpy(np.array(cached.hints[:usable])).to(self.device)
            scenes = torch.from_numpy(cached.scenes[:usable]).to(self.device)
            self.maps[name] = Maps(values, scenes)
            self.cached[name] = cached.scenes[:usable]

    def start(self, workers: int) -> None:
        """Begin to make scenes in ``workers`` other processes; they end by themselves."""
        # Spawned, not forked: a copy of this process, whose threads are not copied, could wait for ever.
        context = multiprocessing.get_context("spawn")
        given = self.library, self.text.config
        pool = ProcessPoolExecutor(workers, context, initializer=start_worker, initargs=given)
        sizes = range(0, self.count, CHUNK)
        futures = []
        for first in sizes:
            seeds = range(first, min(first + CHUNK, self.count))
            truth = first < self.with_truth
            futures.append(pool.submit(make_piece, seeds, self.size, truth, self.framed))

        def take() -> None:
            try:
                while futures:
                    self._add(futures.pop(0).result())
            except Exception as error:
                log.error("The scenes can no longer be made: %r", error)
                self.failed = error  # the next batch raises it
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

        self._pool = pool
        threading.Thread(target=take, daemon=True).start()

    @torch.inference_mode()
    def _add(self, piece: Piece) -> None:
        first, last = self.ready, self.ready + len(piece.images)
        pictures = torch.from_numpy(piece.images).to(self.device).permute(0, 3, 1, 2)
        self.latents[first:last] = self.vae.encode(pictures.float().div_(127.5).sub_(1.0)).half()
        self.tokens[first:last] = torch.from_numpy(piece.tokens).to(self.device)
        for name, made in piece.maps.items():
            room = self.maps[name]
            begin = room.count
            end = min(begin + len(made), len(room.values))
            room.values[begin:end] = torch.from_numpy(made[: end - begin]).to(self.device)
            if name == "openpose":
                people = torch.from_numpy(piece.people[: end - begin]).to(self.device)
                room.scenes[begin:end] = people + first
            room.count = end
        self.ready = last
        for name, scenes in self.cached.items():
            self.maps[name].count = int(np.searchsorted(scenes, last))

    def wait(self, count: int) -> None:
        """Return as soon as ``count`` scenes are there.

        Raises:
            SuiteError: scenes can no longer be made; says why.
        """
        while self.ready < min(count, self.count):
            self._check()
            time.sleep(0.05)
        self._check()

    def _check(self) -> None:
        if self.failed is not None:
            told = f"the scenes can no longer be made ({self.failed!r}): start again."
            raise SuiteError(told) from self.failed

    def draw_base(self, size: int, generator: torch.Generator) -> BaseBatch:
        """Draw latents and captions of ``size`` scenes."""
        generator = on_device(generator, self.device)
        which = self._numbers(self.ready, size, generator)
        return BaseBatch(self.latents[which].float(), self._context(which, 0.0, generator))

    def draw_control(self, name: str, size: int, generator: torch.Generator) -> ControlBatch:
        """Draw latents, captions and maps of ``size`` scenes for the control ``name``."""
        generator = on_device(generator, self.device)
        room = self.maps[name]
        rows = self._numbers(room.count, size, generator)
        which = room.scenes[rows]
        maps = room.values[rows]
        if name == "seg":
            maps = self.palette[maps.int()]
        elif maps.ndim == 3:
            maps = maps[..., None].expand(-1, -1, -1, 3)
        hint = maps.contiguous().permute(0, 3, 1, 2).float().div_(255.0)
        context = self._context(which, EMPTY_PROMPTS, generator)
        return ControlBatch(self.latents[which].float(), context, hint)

    def _numbers(self, below: int, size: int, generator: torch.Generator) -> Tensor:
        self._check()
        if below == 0:
            raise SuiteError(
                "none of the scenes that are there has this map: have more of them, or more truth."
            )
        return torch.randint(below, (size,), generator=generator, device=self.device)

    def _context(self, which: Tensor, empty: float, generator: torch.Generator) -> Tensor:
        tokens = self.tokens[which, self._numbers(CAPTIONS, len(which), generator)].long()
        if empty:
            dropped = torch.rand(len(which), generator=generator, device=self.device) < empty
            tokens = torch.where(dropped[:, None], self.empty, tokens)
        with torch.no_grad(), autocast(self.device.type):
            return self.text(tokens)
