"""Programs that draw the same picture from the same weights: ours, and diffusers in several ways."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from core.config import load_config
from core.models.text_encoder import TextEncoder
from core.request import ControlUnit, Request
from core.sampling.noise import ImageNoise, image_seeds
from tests.bench.random_model import CONTROL

PROMPT, NEGATIVE, SEED = "a red car on green grass", "blurry", 7
CFG_SCALE = 4.0  # multiplies the rounding, too: with the usual 9 two runs in bfloat16 are 2.7 % apart


@dataclass(frozen=True, slots=True)
class Files:
    """One set of random weights: ``ours``, a YAML file, and ``diffusers``, a folder made from the same."""

    model: str
    ours: Path
    diffusers: Path

    @property
    def openvino(self) -> Path:
        """The folder of the networks in OpenVINO's format."""
        return self.diffusers.with_name("openvino")


@dataclass(frozen=True, slots=True)
class Job:
    """Pictures to draw together: ``pixels`` is their side, ``batch`` how many, in so many DDIM ``steps``."""

    pixels: int
    batch: int
    steps: int

    @property
    def hint(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The map (H, W, 3): a square's edges."""
        hint = np.zeros((self.pixels, self.pixels, 3), np.uint8)
        a, b = self.pixels // 4, 3 * self.pixels // 4
        hint[a:b, (a, b)] = 255
        hint[(a, b), a:b] = 255
        return hint


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """What came of a job: the latents (B, C, h, w) before decoding, and the seconds.

    ``steps`` are the seconds of each step but the first, in which also the text and the hint are read.
    """

    latents: Tensor
    steps: tuple[float, ...]
    seconds: float


Networks = tuple[Any, Any, Any, Any]  # of diffusers: UNet, autoencoder, ControlNet, text encoder


class Peer(Protocol):
    """One way to draw."""

    name: str
    dtype: torch.dtype

    def load(self) -> None:
        """Bring all weights to the device."""

    def draw(self, job: Job) -> Drawn:
        """Draw the pictures of ``job``, to the end."""


class Clock:
    """Notes when each step of a job ends."""

    def __init__(self, device: torch.device) -> None:
        """Begin the job."""
        self._device = device
        self._began = time.perf_counter()
        self._ends: list[float] = []

    def _now(self, wait: bool) -> float:
        if wait and self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def step(self, *, wait: bool) -> None:
        """Note the end of a step; ``wait`` where a GPU may not have come to it yet."""
        self._ends.append(self._now(wait))

    def finished(self, latents: Tensor) -> Drawn:
        """End the job.

        On a GPU, where only the first end and the last one are waited for, every step counts as their mean.
        """
        seconds = self._now(wait=True) - self._began
        steps = tuple(b - a for a, b in zip(self._ends, self._ends[1:], strict=False))
        if self._device.type == "cuda":
            steps = (statistics.fmean(steps),)
        return Drawn(latents.detach().float().cpu(), steps, seconds)


class Ours:
    """This project, as launch.py sets it up, but for the number format where one is given."""

    def __init__(
        self, files: Files, device: torch.device, dtype: str = "auto", how: str = "", **options: Any
    ) -> None:
        """Draw on ``device``; ``dtype`` and ``options`` go to ``load_pipeline``; ``how`` names them."""
        from core.runtime.device import resolve_dtype

        self.dtype = resolve_dtype(dtype, device)
        self.name = ", ".join(filter(None, ("ours", str(self.dtype).removeprefix("torch."), how)))
        self._files, self._device, self._dtype, self._options = files, device, dtype, options

    def load(self) -> None:
        """Load base and ControlNet."""
        from core.loading import load_pipeline

        self._pipe = load_pipeline(
            self._files.ours, device=str(self._device), dtype=self._dtype, **self._options
        )
        self._latents: list[Tensor] = []
        coder = self._pipe._draw._coder
        decode = coder.decode

        def watched(latents: Tensor) -> Any:
            self._latents[:] = [latents]
            return decode(latents)

        coder.decode = watched  # type: ignore[method-assign]
        with torch.inference_mode():
            self._pipe._cache.get([CONTROL])

    def draw(self, job: Job) -> Drawn:
        """Draw by the very call that the page makes."""
        unit = ControlUnit(CONTROL, job.hint)
        request = Request(
            prompt=PROMPT,
            controls=(unit,),
            negative_prompt=NEGATIVE,
            num_samples=job.batch,
            steps=job.steps,
            cfg_scale=CFG_SCALE,
            seed=SEED,
        )
        clock = Clock(self._device)
        for _ in zip(range(job.steps), updates := self._pipe.sample(request), strict=False):
            clock.step(wait=False)  # it is told of once it is done, the next one being under way
        for _ in updates:
            pass
        return clock.finished(self._latents[0])


class Diffusers:
    """diffusers' ControlNet pipeline."""

    def __init__(
        self,
        files: Files,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        *,
        channels_last: bool = False,
        compiled: bool = False,
    ) -> None:
        """Draw on ``device``; without more, as diffusers does when nothing is said."""
        how = [
            str(dtype).removeprefix("torch."),
            *["channels_last"] * channels_last,
            *["compiled"] * compiled,
        ]
        self.name = f"diffusers, {', '.join(how)}"
        self.dtype = dtype
        self._files, self._device = files, device
        self._channels_last, self._compiled = channels_last, compiled

    def _networks(self) -> Networks:
        """Load the UNet, the autoencoder, the ControlNet and the text encoder."""
        from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel

        def read(kind: Any, name: str) -> Any:
            folder = self._files.diffusers / name
            return kind.from_pretrained(folder, torch_dtype=self.dtype).to(self._device).eval()

        unet, vae = read(UNet2DConditionModel, "unet"), read(AutoencoderKL, "vae")
        control = read(ControlNetModel, CONTROL)
        for network in (unet, control, vae) if self._channels_last else ():
            network.to(memory_format=torch.channels_last)
        if self._compiled:
            unet, control = torch.compile(unet), torch.compile(control)
        return unet, vae, control, self._read_text(self.dtype)

    def _read_text(self, dtype: torch.dtype) -> Any:
        from transformers import CLIPTextModel

        folder = self._files.diffusers / "text_encoder"
        return CLIPTextModel.from_pretrained(folder, torch_dtype=dtype).to(self._device).eval()

    def load(self) -> None:
        """Load the networks, and put them into a pipeline that draws as ours does."""
        from diffusers import DDIMScheduler, StableDiffusionControlNetPipeline
        from diffusers.utils import logging

        logging.set_verbosity_error()
        unet, vae, control, self._text = self._networks()
        scheduler = DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            steps_offset=1,
            set_alpha_to_one=False,
            clip_sample=False,
        )
        self._pipe = StableDiffusionControlNetPipeline(
            vae, None, None, unet, control, scheduler, None, None, requires_safety_checker=False
        )
        self._pipe.set_progress_bar_config(disable=True)
        config = load_config(self._files.model)
        with torch.device("meta"):
            self._tokenize = TextEncoder(config.text).tokenize

    @torch.inference_mode()
    def draw(self, job: Job) -> Drawn:
        """Draw and decode, from the noise that ours begins with."""
        clock = Clock(self._device)
        kept: list[Tensor] = []

        def after(pipe: Any, i: int, t: Any, values: dict[str, Tensor]) -> dict[str, Tensor]:
            kept[:] = [values["latents"]]
            clock.step(wait=i in (0, job.steps - 1))
            return values

        ids = self._tokenize([PROMPT, NEGATIVE]).to(self._device)
        wanted, unwanted = self._text(ids).last_hidden_state.split(1)
        side = job.pixels // 8
        noise = ImageNoise(image_seeds(SEED, job.batch), (4, side, side), self._device)()
        hint = torch.from_numpy(job.hint).permute(2, 0, 1)[None].float() / 255
        self._pipe(
            prompt_embeds=wanted,
            negative_prompt_embeds=unwanted,
            num_images_per_prompt=job.batch,
            image=hint.to(self._device, wanted.dtype),
            height=job.pixels,
            width=job.pixels,
            num_inference_steps=job.steps,
            guidance_scale=CFG_SCALE,
            latents=noise.to(wanted.dtype),
            output_type="np",
            callback_on_step_end=after,
        )
        return clock.finished(kept[0])


def half(device: torch.device) -> torch.dtype:
    """Return the number format of 16 bits that suits ``device``."""
    return torch.bfloat16 if device.type == "cpu" else torch.float16


def peers(files: Files, device: torch.device, dtype: str) -> dict[str, Callable[[], Peer]]:
    """Return ways to make each peer by a short name; ``dtype`` is that of ours and of diffusers' best."""
    from tests.bench.openvino_peer import OpenVino

    number = Ours(files, device, dtype).dtype
    return {
        "ours": lambda: Ours(files, device, dtype),
        "eager": lambda: Ours(files, device, dtype, "without graphs", graphs=False),
        "low_vram": lambda: Ours(files, device, dtype, "low VRAM", low_vram=True),
        "ours_compiled": lambda: Ours(files, device, dtype, "compiled", compile=True),
        "default": lambda: Diffusers(files, device),
        "half": lambda: Diffusers(files, device, number),
        "best": lambda: Diffusers(files, device, number, channels_last=True),
        "compiled": lambda: Diffusers(files, device, number, channels_last=True, compiled=True),
        "openvino": lambda: OpenVino(files, number),
    }
