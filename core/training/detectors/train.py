"""Train a detector on scenes that are drawn as they are needed, and write the file that ships."""

from __future__ import annotations

import random
from collections.abc import Generator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from core.runtime.device import autocast
from core.training.detectors.depth import DepthTask
from core.training.detectors.pose import PoseTask
from core.training.detectors.segmentation import SegmentationTask
from core.training.detectors.task import Task
from core.training.loop import LoopConfig, Trainer
from core.training.norms import settle
from core.training.toyworld.scene import make_scene
from core.training.toyworld.sprites import SpriteLibrary
from core.weights.writing import write_state

TASKS: dict[str, Task] = {"depth": DepthTask(), "pose": PoseTask(), "segmentation": SegmentationTask()}
NORM_BATCHES = 40  # from which the normalisations' means are taken in the end
AHEAD = 4  # batches that every worker prepares
SAMPLES = 1_000_000  # between those of one seed and of the next
SEEDS = 40  # of scenes to learn from: far below those kept for evaluation

Batch = tuple[Tensor, tuple[Tensor, ...]]


@lru_cache(maxsize=1)
def _library(sprites: Path) -> SpriteLibrary:
    return SpriteLibrary.load(sprites)


def draw_batch(name: str, sprites: Path, first: int, size: int, side: int) -> Batch:
    """Draw ``size`` samples from number ``first`` on: pictures (B, 3, H, W) uint8, and their truths."""
    task, seen, truths = TASKS[name], [], []
    for index in range(first, first + size):
        scene = make_scene(task.seed(index), _library(sprites), side, truth=task.needs_truth)
        picture, truth = task.sample(scene, random.Random(index))
        seen.append(picture)
        truths.append(truth)
    pictures = torch.from_numpy(np.stack(seen)).permute(0, 3, 1, 2).contiguous()
    return pictures, tuple(torch.from_numpy(np.stack(each)) for each in zip(*truths, strict=True))


class Batches:
    """The batches of a run by step; ``workers`` processes prepare them, or none does."""

    def __init__(
        self, name: str, sprites: Path, batch_size: int, steps: int, side: int | None = None, seed: int = 0
    ) -> None:
        """Draw ``batch_size`` samples a step, ``side`` pixels wide and high; each ``seed`` has other ones.

        Without ``side`` they are of the size that the task wants at that step of ``steps``.

        Raises:
            ValueError: ``seed`` is not one of those that there are scenes for.
        """
        if not 0 <= seed < SEEDS:
            raise ValueError(f"seed is {seed}: there are scenes to learn from for 0 to {SEEDS - 1}.")
        self.name, self.sprites, self.batch_size, self.steps = name, sprites, batch_size, steps
        self.side, self.first = side, seed * SAMPLES

    def arguments(self, step: int) -> tuple[str, Path, int, int, int]:
        """Return what ``draw_batch`` is given for a step."""
        side = self.side or TASKS[self.name].side(step / max(1, self.steps))
        return self.name, self.sprites, self.first + step * self.batch_size, self.batch_size, side

    def run(self, first: int, workers: int) -> Generator[Batch]:
        """Yield the batches of all steps from ``first`` on, without end."""
        if workers == 0:
            while True:
                yield draw_batch(*self.arguments(first))
                first += 1
        with ExitStack() as stack:
            pool = stack.enter_context(ProcessPoolExecutor(workers, initializer=_one_thread))
            stack.callback(pool.shutdown, cancel_futures=True)
            waiting: list[Future[Batch]] = []
            while True:
                while len(waiting) < AHEAD * workers:
                    waiting.append(pool.submit(draw_batch, *self.arguments(first)))
                    first += 1
                yield waiting.pop(0).result()


def _one_thread() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def train_detector(
    name: str,
    sprites: Path,
    loop: LoopConfig,
    *,
    batch_size: int,
    device: torch.device,
    workers: int,
    output: Path,
    start: Path | None = None,
    side: int | None = None,
) -> None:
    """Train the detector called ``name``; resumes from ``loop.output``; writes ``output`` in the end.

    ``sprites`` is the folder of the toy world's sprites; ``workers`` processes draw the scenes, or, if 0,
    the one that trains does. ``start`` is an exported file that a new run goes on from, ``side`` as for
    ``Batches``.

    Raises:
        ValueError: training cannot go on from ``start``, or ``loop.seed`` is none that there are scenes for.
    """
    task = TASKS[name]
    source = Batches(name, sprites, batch_size, loop.steps, side, loop.seed)
    torch.manual_seed(loop.seed)
    net = task.build()
    if start is not None:
        task.begin(net, load_file(start))
    net.to(device)
    trainer = Trainer(net.named_parameters(), loop)
    batches = source.run(trainer.step, workers)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        return _loss(task, net, next(batches), device)

    trainer.run(loss, batch_size)
    trainer.use_average()

    def go_on(number: int) -> Tensor:
        return _loss(task, net, draw_batch(*source.arguments(loop.steps - 1 + number)), device)

    settle(net, go_on, NORM_BATCHES)
    export_detector(task, net.cpu(), output)


def _loss(task: Task, net: nn.Module, batch: Batch, device: torch.device) -> Tensor:
    pictures, truth = batch
    seen = pictures.to(device, non_blocking=True).float()
    with autocast(device.type):
        return task.loss(net, seen, tuple(each.to(device, non_blocking=True) for each in truth))


def export_detector(task: Task, net: nn.Module, path: Path) -> None:
    """Write a trained network as float16 safetensors, its configuration in the metadata."""
    half = {
        key: value.detach().half().contiguous()
        for key, value in task.exported(net).items()
        if value.is_floating_point()
    }
    write_state(path, half, {"format": "controlnet-suite", "config": task.config()})
