"""Measure what the variants of a ControlNet cost and how well each is obeyed, with and without a prompt."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from core.config import ModelConfig, with_variant
from core.models.packing import pack_weights
from core.models.unet import UNet
from core.models.variants import AnyControlNet, control_class
from core.pipeline import ControlNetPipeline
from core.request import ControlUnit, Request
from core.runtime.device import CPU, autocast
from core.training.control import ControlBatch, control_prediction
from core.training.figures import edge_f1
from core.training.hints import found_lines
from core.weights.checkpoint import BaseNetworks, load_control
from core.weights.formats import open_tensors

Image = NDArray[np.uint8]
NONE = "none"  # the base alone
GUESS_SCALE = 4.0  # guidance; the original advises 3 to 5 for guess mode
MODES = ("prompt", "no prompt", "guess mode")
SHOWN = 3  # scenes on the sheet
LABEL = 28  # px, height of a line of words on the sheet


@dataclass
class Measured:
    """What one variant costs and how well it is obeyed.

    ``f1`` has the edges' F1 at 3 px against the given hint for each mode and scene, ``shuffled`` against
    another scene's, with the prompt. Seconds are the processor's. ``pictures`` are those of the first scenes.
    """

    parameters: int = 0
    step_seconds: float = 0.0
    seconds: list[float] = field(default_factory=list)
    f1: dict[str, list[float]] = field(default_factory=lambda: {mode: [] for mode in MODES})
    shuffled: list[float] = field(default_factory=list)
    pictures: dict[str, list[Image]] = field(default_factory=lambda: {mode: [] for mode in MODES})

    @property
    def picture_seconds(self) -> float:
        """The median of the pictures' seconds."""
        return float(np.median(self.seconds))


def lines(image: Image) -> Image:
    """Return the edges (H, W) of ``image`` (H, W, 3) that the Canny app finds by its own settings."""
    return found_lines("canny", image)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and its standard error."""
    error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
    return float(np.mean(values)), float(error)


def variants_pipeline(
    config: ModelConfig, base: BaseNetworks, files: Mapping[str, Path]
) -> ControlNetPipeline:
    """Return a pipeline on the CPU whose ControlNets are called as the variants in ``files``."""
    dtype = next(base.unet.parameters()).dtype
    for network in (base.unet, base.vae, base.text):
        pack_weights(network)

    def load(name: str) -> AnyControlNet:
        net = load_control(config, files[name], device=CPU, dtype=dtype)
        pack_weights(net)
        return net

    return ControlNetPipeline(config, base, load, controls=tuple(files), max_controls=len(files))


def file_parameters(path: Path) -> int:
    """Return how many parameters a control file holds."""
    return sum(math.prod(info.shape) for info in open_tensors(path).tensors.values())


def training_seconds(
    config: ModelConfig, unet: UNet, variants: Sequence[str], batch: int, side: int, rounds: int = 5
) -> dict[str, float]:
    """Return the least processor seconds of a training step of each variant, timed in turn.

    A step is forward, backward and AdamW for ``batch`` squares of ``side`` pixels.
    """
    generator = torch.Generator().manual_seed(0)
    cells = side // 8
    x = torch.randn(batch, config.unet.in_channels, cells, cells, generator=generator)
    context = torch.randn(batch, 77, config.unet.context_dim, generator=generator)
    seen = ControlBatch(x, context, torch.rand(batch, 3, side, side, generator=generator))
    t = torch.full((batch,), 500)
    steps = {name: _training_step(with_variant(config, name), unet, seen, x, t) for name in variants}
    least = dict.fromkeys(variants, float("inf"))
    for step in steps.values():
        step()
    for _ in range(rounds):
        for name, step in steps.items():
            began = time.process_time()
            step()
            least[name] = min(least[name], time.process_time() - began)
    return least


def _training_step(
    config: ModelConfig, unet: UNet, batch: ControlBatch, x: torch.Tensor, t: torch.Tensor
) -> Callable[[], None]:
    net = control_class(config.control).from_unet(unet, config.control)
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)

    def step() -> None:
        with autocast("cpu"):
            loss = control_prediction(unet, net, batch, x, t).float().square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def requests(base: Request, caption: str, control: str, hint: Image, seed: int) -> dict[str, Request]:
    """Return what is asked for in each mode; without control there is but one."""
    plain = replace(base, seed=seed)
    if control == NONE:
        return {"prompt": replace(plain, prompt=caption)}
    plain = replace(plain, controls=(ControlUnit(control, np.repeat(hint[:, :, None], 3, axis=2)),))
    guess = replace(plain, guess_mode=True, cfg_scale=GUESS_SCALE)
    return {"prompt": replace(plain, prompt=caption), "no prompt": plain, "guess mode": guess}


def measure(
    pipe: ControlNetPipeline, scenes: Sequence[tuple[Image, str]], *, steps: int = 20
) -> tuple[dict[str, Measured], list[Image]]:
    """Draw scenes, pictures with captions, from their edges: with every control of ``pipe``, and with none.

    The controls take turns, so that what else the machine does meets all alike. Also return the hints (H, W)
    of the first scenes.
    """
    hints = [lines(image) for image, _ in scenes]
    base = Request("", size=hints[0].shape[:2], steps=steps, cfg_scale=pipe.config.cfg_scale)
    found = {name: Measured() for name in (NONE, *pipe.controls)}
    for name in found:  # loads the networks, and warms up
        pipe(replace(requests(base, "", name, hints[0], 0)["prompt"], steps=2))
    for i, (_, caption) in enumerate(tqdm(scenes, desc="variants", mininterval=10)):
        for name, measured in found.items():
            for mode, request in requests(base, caption, name, hints[i], i).items():
                began = time.process_time()
                picture = pipe(request).images[0]
                if mode == "prompt":
                    measured.seconds.append(time.process_time() - began)
                    measured.shuffled.append(edge_f1(lines(picture), hints[(i + 1) % len(hints)]))
                measured.f1[mode].append(edge_f1(lines(picture), hints[i]))
                if i < SHOWN:
                    measured.pictures[mode].append(picture)
    return found, hints[:SHOWN]


def table(found: Mapping[str, Measured]) -> str:
    """Return the figures as a Markdown table; ± is the standard error of the mean over the scenes."""
    rows = [
        "| variant | parameters | s / training step | s / picture | time saved "
        "| F1, prompt | F1, no prompt | F1, guess mode | another scene's edges |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    full = found["full"].picture_seconds if "full" in found else float("nan")
    for name, m in found.items():
        cells = [name, *(["", ""] if name == NONE else [f"{m.parameters:,}", f"{m.step_seconds:.2f}"])]
        cells += [f"{m.picture_seconds:.2f}", f"{1 - m.picture_seconds / full:.0%}"]
        for values in (*m.f1.values(), m.shuffled):
            cells.append("{:.3f} ± {:.3f}".format(*mean_and_error(values)) if values else "")
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _words(text: str, width: int) -> Image:
    bar = np.full((LABEL, width, 3), 255, np.uint8)
    cv2.putText(bar, text, (6, LABEL - 9), cv2.FONT_HERSHEY_SIMPLEX, 0.55, (0, 0, 0), 1, cv2.LINE_AA)
    return bar


def sheet(found: Mapping[str, Measured], hints: Sequence[Image]) -> Image:
    """Return a picture: for each mode and scene a row, with the hint and what each variant made of it."""
    names = [name for name in found if name != NONE]
    side = hints[0].shape[0]
    rows = []
    for mode in MODES:
        rows.append(np.hstack([_words(words, side) for words in (mode, *names)]))
        for i, hint in enumerate(hints):
            inverted = np.repeat(255 - hint[:, :, None], 3, axis=2)
            rows.append(np.hstack([inverted, *(found[name].pictures[mode][i] for name in names)]))
    return np.asarray(np.vstack(rows), np.uint8)
