"""Pictures on the way: what the control makes of some hints, every so many steps, in a folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from core.config import ModelConfig
from core.errors import SuiteError
from core.images import hint_to_tensor
from core.request import ControlUnit
from core.sampling.guidance import GuidedDenoiser, prepare_control, text_rows
from core.sampling.noise import ImageNoise
from core.sampling.samplers import SAMPLERS
from core.sampling.schedule import Schedule
from core.training.batches import Encoder
from core.training.controlled import ControlledUNet
from core.training.pairs import PairFolder

CAPTION = 16  # px, under each picture
SEED = 1234  # of the noise, the same at every step: what changes is the control
CONTROL = "trained"


@dataclass(frozen=True, slots=True)
class Validation:
    """Draws the first ``count`` pairs of ``data`` and writes sheets to ``folder``: hint, target, result."""

    config: ModelConfig
    model: ControlledUNet
    encoder: Encoder
    data: PairFolder
    folder: Path
    count: int
    cfg_scale: float
    steps: int = 20

    def write(self, step: int) -> NDArray[np.uint8]:
        """Draw, write step_00000000.png, and return the sheet (H, W, 3) uint8."""
        shown = range(min(self.count, len(self.data)))
        columns = []
        for i in shown:
            hint, target = self.data.hint(i), self.data.target(i)
            result = self.draw(hint, self.data.pairs[i].prompt, SEED + i)
            columns.append(
                np.vstack([hint, target, result, caption(self.data.pairs[i].prompt, hint.shape[1])])
            )
        sheet = np.hstack(columns)
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / "sheet.partial"
        Image.fromarray(sheet).save(partial, format="PNG")
        os.replace(partial, self.folder / f"step_{step:08d}.png")
        return sheet

    @torch.no_grad()
    def draw(self, hint: NDArray[np.uint8], prompt: str, seed: int) -> NDArray[np.uint8]:
        """Return the picture (H, W, 3) uint8 that the control, as it is now, makes of a hint and a prompt."""
        config, model, device = self.config, self.model, self.encoder.device
        context = self.encoder.context([prompt, ""])
        unit = ControlUnit(CONTROL, hint)
        height, width = (side // self.encoder.vae.factor for side in hint.shape[:2])
        noise = ImageNoise((seed,), (config.unet.in_channels, height, width), device)
        low = model.precision != torch.float32
        with torch.autocast(device.type, model.precision, enabled=low):
            denoiser = GuidedDenoiser(
                unet=model.unet,
                schedule=Schedule(config.schedule),
                context_kv=text_rows(model.unet, context, 1),
                controls=[prepare_control(model.net, unit, hint_to_tensor(hint), context, 1)],
                cfg_scale=self.cfg_scale,
                guess_mode=False,
                steps=self.steps,
            )
            *_, last = SAMPLERS["ddim"](denoiser, noise(), denoiser.schedule, self.steps, 0.0, noise)
        return self.encoder.pictures(last.x_t)[0]


def caption(words: str, width: int) -> NDArray[np.uint8]:
    """Return a strip (16, width, 3) with ``words``, black on white."""
    strip = Image.new("RGB", (width, CAPTION), "white")
    ImageDraw.Draw(strip).text((4, 2), words, fill="black")
    return np.asarray(strip)


class Board:
    """Figures and sheets for TensorBoard, which has to be installed."""

    def __init__(self, folder: Path) -> None:
        """Write to ``folder``.

        Raises:
            SuiteError: TensorBoard is not installed.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise SuiteError("--tensorboard needs TensorBoard: pip install tensorboard") from error
        self._writer: Any = SummaryWriter(str(folder))

    def figures(self, step: int, figures: Mapping[str, float]) -> None:
        """Write figures by name."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def sheet(self, step: int, sheet: NDArray[np.uint8]) -> None:
        """Write a sheet (H, W, 3) uint8."""
        self._writer.add_image("validation", sheet, step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()
