"""What each step of training on pairs sees: a function of the seed and the sample's number, of nothing else.

So a resumed run goes on exactly, and two processes with batch 2, one with batch 4, and one with batch 1 that
accumulates 4 take the same steps.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from core.images import to_uint8
from core.runtime.device import vae_dtype
from core.training.control import ControlBatch
from core.training.data import to_tensor
from core.training.loop import step_generator
from core.training.pairs import READERS, PairFolder, fingerprint
from core.weights.checkpoint import BaseNetworks

log = logging.getLogger(__name__)

LATENTS, CONTEXTS, MARK = "latents.npy", "contexts.npy", "made_of.txt"
ORDER_STREAM, SAMPLE_STREAM = 1, 2

Picture = Future[NDArray[np.uint8]]


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a batch is and at which noise: ``batch``, ``noise`` like its latents, ``t`` (B,) int64."""

    batch: ControlBatch
    noise: Tensor
    t: Tensor


@dataclass(frozen=True, slots=True)
class Share:
    """Which samples are this process's: ``size`` a batch, number ``rank`` of ``count`` processes."""

    size: int
    rank: int = 0
    count: int = 1

    def numbers(self, batch: int) -> range:
        """Return the numbers, over the whole run, of this process's samples in a batch."""
        first = (batch * self.count + self.rank) * self.size
        return range(first, first + self.size)


@dataclass(frozen=True, slots=True)
class Reading:
    """The pictures of a batch while they are read; no targets where their latents are cached."""

    hints: list[Picture]
    targets: list[Picture]


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """Return the order in which an epoch goes through ``count`` pairs."""
    return torch.randperm(count, generator=step_generator(seed, epoch, ORDER_STREAM)).numpy()


class Encoder:
    """The base's autoencoder and text encoder: between pictures and prompts, and what the UNet sees."""

    def __init__(
        self,
        networks: BaseNetworks,
        device: torch.device,
        precision: torch.dtype = torch.float32,
        *,
        leave: bool = False,
    ) -> None:
        """Compute on ``device``; with ``leave`` both networks are there only while they compute."""
        self.precision = precision
        self.vae, self.text, self.device = networks.vae, networks.text, device
        self.rest = torch.device("cpu") if leave else device
        for network in (self.vae, self.text):
            network.to(self.rest)

    @contextmanager
    def _in_use(self, network: nn.Module) -> Iterator[None]:
        network.to(self.device)
        number = vae_dtype(self.precision) if network is self.vae else self.precision
        with torch.no_grad(), torch.autocast(self.device.type, number, enabled=number != torch.float32):
            yield
        network.to(self.rest)

    def latents(self, targets: NDArray[np.uint8]) -> Tensor:
        """Return the scaled latents (B, C, h, w) float32 of pictures (B, H, W, 3): the means."""
        with self._in_use(self.vae):
            return self.vae.encode(to_tensor(targets).to(self.device)).float()

    def pictures(self, latents: Tensor) -> list[NDArray[np.uint8]]:
        """Return the pictures (H, W, 3) uint8 of latents (B, C, h, w), one after the other."""
        with self._in_use(self.vae):
            return [picture for x_0 in latents.split(1) for picture in to_uint8(self.vae.decode(x_0))]

    def context(self, prompts: Sequence[str]) -> Tensor:
        """Return the context (B, tokens, width) float32 of the prompts."""
        with self._in_use(self.text):
            return self.text.encode(prompts).float()


class Cache:
    """All latents and contexts of a data set, on disk; then neither encoder needs to stay in memory."""

    def __init__(self, folder: Path, data: PairFolder) -> None:
        """Open what ``make`` wrote to ``folder``."""
        self.latents = np.load(folder / LATENTS, mmap_mode="r")
        self.contexts = np.load(folder / CONTEXTS, mmap_mode="r")
        self.rows = {prompt: row for row, prompt in enumerate(cached_prompts(data))}

    @staticmethod
    def current(folder: Path, data: PairFolder, base: str) -> bool:
        """Whether ``folder`` holds the cache of just these data and this base."""
        mark = folder / MARK
        return mark.is_file() and mark.read_text() == f"{base} {fingerprint(data)}"

    @staticmethod
    def make(folder: Path, data: PairFolder, encoder: Encoder, base: str, batch: int = 8) -> None:
        """Write latents and contexts as float16, and last a mark of what they were made of."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARK).unlink(missing_ok=True)
        config = encoder.vae.config
        height, width = (side // encoder.vae.factor for side in data.size)
        latents = _new(folder / LATENTS, (len(data), config.embed_dim, height, width))
        with ThreadPoolExecutor(READERS) as pool:
            for first in tqdm(range(0, len(data), batch), desc="latents", mininterval=5):
                part = range(first, min(first + batch, len(data)))
                targets = np.stack(list(pool.map(data.target, part)))
                latents[part.start : part.stop] = encoder.latents(targets).half().cpu().numpy()
        prompts = cached_prompts(data)
        width = encoder.text.config.width
        contexts = _new(folder / CONTEXTS, (len(prompts), encoder.text.config.context_length, width))
        for first in tqdm(range(0, len(prompts), 32), desc="prompts", mininterval=5):
            some = prompts[first : first + 32]
            contexts[first : first + len(some)] = encoder.context(some).half().cpu().numpy()
        latents.flush()
        contexts.flush()
        (folder / MARK).write_text(f"{base} {fingerprint(data)}")


def cached_prompts(data: PairFolder) -> list[str]:
    """Return all prompts of a data set, each once, and the empty one."""
    return sorted({"", *(pair.prompt for pair in data.pairs)})


def _new(path: Path, shape: tuple[int, ...]) -> np.memmap:
    path.unlink(missing_ok=True)
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)


class PairBatches:
    """Draws batches from a data set; the pictures of the next one are read while a step computes."""

    def __init__(
        self,
        data: PairFolder,
        share: Share,
        seed: int,
        *,
        source: Encoder | Cache,
        timesteps: int,
        drop_prompts: float,
        device: torch.device,
    ) -> None:
        """Take the pairs; a share ``drop_prompts`` of the prompts, drawn by the seed, is replaced by none."""
        self.data, self.share, self.seed, self.source = data, share, seed, source
        self.timesteps, self.drop_prompts, self.device = timesteps, drop_prompts, device
        self._pool = ThreadPoolExecutor(min(READERS, os.cpu_count() or 1))
        self._ahead: dict[int, Reading] = {}

    def index(self, number: int) -> int:
        """Return which pair the sample with this number, over the whole run, is."""
        epoch, at = divmod(number, len(self.data))
        return int(epoch_order(self.seed, epoch, len(self.data))[at])

    def named(self, batch: int) -> list[str]:
        """Return the names of the pictures in a batch, for messages."""
        return [self.data.pairs[self.index(n)].target.name for n in self.share.numbers(batch)]

    def __call__(self, batch: int) -> Drawn:
        """Return the batch with this number, from 0 over the whole run.

        Raises:
            SuiteError: a picture can no longer be read; names it and says what to do.
        """
        numbers = self.share.numbers(batch)
        reading = self._read(batch)
        self._ahead = {batch + 1: self._read(batch + 1)}
        draws = [self._draw(number) for number in numbers]
        x_0, context = self._encoded(numbers, reading.targets, [dropped for dropped, _, _ in draws])
        hints = np.stack([future.result() for future in reading.hints])
        hint = torch.from_numpy(hints).to(self.device).permute(0, 3, 1, 2).float().div(255.0)
        noise = torch.stack([noise for _, _, noise in draws])
        t = torch.tensor([t for _, t, _ in draws])
        return Drawn(ControlBatch(x_0, context, hint), noise.to(self.device), t.to(self.device))

    def _read(self, batch: int) -> Reading:
        if batch in self._ahead:
            return self._ahead[batch]
        pairs = [self.index(number) for number in self.share.numbers(batch)]
        hints = [self._pool.submit(self.data.hint, i) for i in pairs]
        cached = isinstance(self.source, Cache)
        return Reading(hints, [] if cached else [self._pool.submit(self.data.target, i) for i in pairs])

    def _draw(self, number: int) -> tuple[bool, int, Tensor]:
        """Draw whether the prompt is dropped, the time step, and the noise (C, h, w) of a sample."""
        generator = step_generator(self.seed, number, SAMPLE_STREAM)
        dropped = float(torch.rand((), generator=generator)) < self.drop_prompts
        t = int(torch.randint(self.timesteps, (), generator=generator))
        return dropped, t, torch.randn(self.latent_shape, generator=generator)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one picture's latents."""
        if isinstance(self.source, Cache):
            channels, height, width = self.source.latents.shape[1:]
            return channels, height, width
        vae = self.source.vae
        return vae.config.embed_dim, self.data.size[0] // vae.factor, self.data.size[1] // vae.factor

    def _encoded(self, numbers: range, targets: list[Picture], drops: list[bool]) -> tuple[Tensor, Tensor]:
        pairs = [self.index(number) for number in numbers]
        prompts = ["" if d else self.data.pairs[i].prompt for i, d in zip(pairs, drops, strict=True)]
        if isinstance(self.source, Encoder):
            pictures = np.stack([future.result() for future in targets])
            return self.source.latents(pictures), self.source.context(prompts)
        x_0 = torch.from_numpy(self.source.latents[pairs]).to(self.device)
        rows = [self.source.rows[prompt] for prompt in prompts]
        return x_0.float(), torch.from_numpy(self.source.contexts[rows]).to(self.device).float()
