"""Scenes with all their maps, made by other processes while a GPU trains, and kept in the GPU's memory.

A GPU takes hundreds of scenes a step: neither disks nor one process that cuts maps can feed it.
"""

from __future__ import annotations

import copy
import logging
import multiprocessing
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.errors import SuiteError
from core.models.text_encoder import TextEncoder
from core.models.vae import AutoencoderKL
from core.runtime.device import autocast
from core.training.base import BaseBatch
from core.training.control import EMPTY_PROMPTS, ControlBatch
from core.training.data import PLACE
from core.training.diffusion import on_device
from core.training.hints import SHOWN, STRIDE, CachedHints, class_colours
from core.training.near import CLOSE_SHARE, as_many, check_sides, corners, squares
from core.training.pieces import CAPTIONS, NEAR_BY, OF_ALL, Piece, made_with, make_piece, start_worker
from core.training.toyworld.sprites import SpriteLibrary
from core.training.vae_init import without_idle_branches

log = logging.getLogger(__name__)

CHUNK = 64  # scenes a process makes at a time


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
        self.places = torch.zeros(count, NEAR_BY, 2, dtype=torch.int8, device=device)
        self.empty = text.tokenize([""]).to(device)
        self.maps = {name: self._room(name) for name in made_with(truth=True, framed=framed)}
        self.cached: dict[str, NDArray[np.int64]] = {}  # of maps made before: their scenes, in order
        self.ready = 0
        self.failed: Exception | None = None
        self.palette = torch.from_numpy(class_colours()).to(device)
        seg = self.with_truth if "seg" in self.maps else 0
        # Which of the maps of classes show which class.
        self.classes = torch.zeros(len(self.palette), seg, dtype=torch.bool, device=device)

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
        self.places[first:last] = torch.from_numpy(piece.places).to(self.device)
        for name, made in piece.maps.items():
            room = self.maps[name]
            begin = room.count
            end = min(begin + len(made), len(room.values))
            room.values[begin:end] = torch.from_numpy(made[: end - begin]).to(self.device)
            if name == "seg":
                few = room.values[begin:end, STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE].flatten(1)
                for one in few.unique().tolist():
                    self.classes[one, begin:end] = (few == one).float().mean(1) >= SHOWN
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

    def draw_control(
        self, name: str, size: int, generator: torch.Generator, close: Sequence[int] = ()
    ) -> ControlBatch:
        """Draw latents, captions and maps of ``size`` scenes for the control ``name``.

        Every second one of the maps of classes shows a class drawn before it, so that rare ones are seen.
        With ``close`` half of the batches are of squares of one of those sides in pixels, which show a thing
        from near by: as many as have a batch's pixels.

        Raises:
            SuiteError: no scene with such a map is there.
            ValueError: a side is none of a square of these scenes.
        """
        check_sides(close, self.size)
        side = self._side(close, generator)
        size = as_many(size, self.size, side)
        generator = on_device(generator, self.device)
        room = self.maps[name]
        rows = self._numbers(room.count, size, generator)
        if name == "seg":
            rows[::2] = self._showing(len(rows[::2]), generator, rows[::2])
        which = room.scenes[rows]
        factor = self.vae.factor
        x_0, cells = self.latents.permute(0, 2, 3, 1), self.size // factor
        begin = torch.zeros(size, 2, dtype=torch.long, device=self.device)
        if side < self.size:
            places = self.places[which, self._numbers(NEAR_BY, size, generator)]
            begin = corners(places, PLACE / factor, cells, side // factor, generator)
        maps = squares(room.values, rows, begin * factor, side)
        if name == "seg":
            maps = self.palette[maps.int()]
        elif maps.ndim == 3:
            maps = maps[..., None].expand(-1, -1, -1, 3)
        hint = maps.contiguous().permute(0, 3, 1, 2).float().div_(255.0)
        context = self._context(which, EMPTY_PROMPTS, generator)
        cut = squares(x_0, which, begin, side // factor).permute(0, 3, 1, 2).float()
        return ControlBatch(cut.contiguous(), context, hint)

    def _side(self, close: Sequence[int], generator: torch.Generator) -> int:
        if not close or float(torch.rand((), generator=generator, device=generator.device)) >= CLOSE_SHARE:
            return self.size
        return close[int(torch.randint(len(close), (), generator=generator, device=generator.device))]

    def _showing(self, size: int, generator: torch.Generator, others: Tensor) -> Tensor:
        """Draw ``size`` rows of maps of classes, each of one that shows a class drawn first."""
        shown = self.classes[:, : self.maps["seg"].count]
        shown = shown[shown.any(1)]
        if not len(shown):
            return others
        drawn = shown[self._numbers(len(shown), size, generator)].float()
        return torch.multinomial(drawn, 1, generator=generator)[:, 0]

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
