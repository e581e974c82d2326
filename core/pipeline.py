"""The one object that turns requests into pictures; every page, command line and test goes through it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from core.additions import Lora, loras_text
from core.config import ModelConfig
from core.errors import SuiteError, WeightsMissing
from core.images import hint_to_tensor, to_uint8
from core.models.strips import decode_in_strips
from core.models.variants import AnyControlNet
from core.prompts.embeddings import Embeddings
from core.prompts.encode import encode_prompts
from core.request import ControlUnit, Progress, Request, Result
from core.runtime.control_cache import DEFAULT_BUDGET, ControlCache
from core.runtime.device import vae_dtype
from core.runtime.placement import Hold, Placement
from core.sampling.guidance import GuidedDenoiser, check_finite, is_active, prepare_control, text_rows
from core.sampling.noise import ImageNoise, image_seeds
from core.sampling.preview import LatentPreview, Throttle
from core.sampling.repaint import Repaint, add_noise, composite, latent_share
from core.sampling.samplers import SAMPLERS, Denoiser, StepState, first_time
from core.sampling.schedule import Schedule
from core.weights.checkpoint import BaseNetworks
from core.weights.mixing import LoraMixer

MASKED = 127  # above, a pixel of the mask counts as covered
STRIPS_ABOVE = 1024  # px on a side

Module = TypeVar("Module", bound=nn.Module)


class ControlNetPipeline:
    """A base model with its ControlNets. Requests are immutable and leave nothing behind on it.

    One request runs at a time, whichever threads ask; the others wait. Picture i of a request is made from
    noise of its own seed, the same on every device and in every batch. What may differ is the rounding of
    sums inside the networks, whose order depends on device, batch size and number format: about 1e-4 of the
    latents in float32.
    """

    def __init__(
        self,
        config: ModelConfig,
        base: BaseNetworks,
        load_control: Callable[[str], AnyControlNet],
        *,
        locate_control: Callable[[str], object] | None = None,
        controls: Sequence[str] | None = None,
        device: torch.device | None = None,
        low_vram: bool = False,
        max_controls: int = DEFAULT_BUDGET,
        embeddings: Path | None = None,
        mixer: LoraMixer | None = None,
        vae: str | None = None,
        transfer_from: str | None = None,
        strips: bool | None = None,
    ) -> None:
        """Take networks that are loaded, and a way to load ControlNets.

        Args:
            config: describes ``base``.
            base: the networks, kept as ``networks``; the number format of their weights is computed in.
            load_control: gives the ControlNet of a name, or raises ``WeightsMissing``.
            locate_control: raises ``WeightsMissing`` where the weights of a name are not there.
            controls: the names that requests may use; by default those of ``config``.
            device: where to compute; by default where the UNet is.
            low_vram: keep only the networks in use on ``device``, the others in main memory.
            max_controls: how many ControlNets stay in memory.
            embeddings: the folder of textual-inversion files; by default ckpts/embeddings.
            mixer: puts LoRAs on ``base``; without one there can be none.
            vae: the name of the file that the autoencoder is from, where that is not the base model's.
            transfer_from: the name of the base model that the ControlNets were moved from, if they were.
            strips: whether to decode pictures strip by strip, in less memory; by default with ``low_vram``,
                and where a side is above 1024 px.

        Raises:
            ValueError: there is no such folder.
        """
        self.config = config
        self.controls = tuple(config.controls if controls is None else controls)
        weight = next(base.unet.parameters())
        self.device = weight.device if device is None else device
        self.dtype = weight.dtype
        self._schedule = Schedule(config.schedule)
        self._placement = Placement(self.device, low_vram=low_vram)
        self.networks = base
        self._vae_dtype = vae_dtype(self.dtype)
        base.vae.to(self._vae_dtype)
        for module in (base.unet, base.vae, base.text):
            self._settle(module)
        self._cache = ControlCache(lambda name: self._settle(load_control(name)), max_controls)
        self._locate_control = locate_control
        self._embeddings = Embeddings(embeddings, width=config.text.width, title=config.title)
        self._mixer = mixer
        self._told = {"vae": vae, "transfer_from": transfer_from}
        self._strips = strips
        self._preview: LatentPreview | None = None
        # Not an RLock: a generator may be resumed, and so release it, in another thread.
        self._lock = threading.Lock()

    def _settle(self, module: Module) -> Module:
        """Put a network where it rests, its convolutions in the layout that is fastest."""
        return module.to(self._placement.rest_device).to(memory_format=torch.channels_last)

    @property
    def name(self) -> str:
        """The model's short name, such as "sd15"."""
        return self.config.name

    @property
    def title(self) -> str:
        """The model's name for people."""
        return self.config.title

    @property
    def resolution(self) -> int:
        """The short side, in pixels, that the model was trained at."""
        return self.config.resolution

    def explain_missing(self, control: str) -> str | None:
        """Return None where the weights of ``control`` are on this machine, else how to get them.

        Raises:
            ValueError: this model has no such ControlNet; names the choices.
        """
        self._check_known(control)
        if self._locate_control is None or control in self._cache:
            return None
        try:
            self._locate_control(control)
        except WeightsMissing as error:
            return str(error)
        return None

    def available_controls(self) -> tuple[str, ...]:
        """Return the names of the ControlNets whose weights are on this machine."""
        return tuple(name for name in self.controls if self.explain_missing(name) is None)

    def set_loras(self, loras: Sequence[str | Path | Lora]) -> None:
        """Have exactly these LoRA files, each "FILE" or "FILE:WEIGHT", on the base model from now on.

        An empty sequence takes all off: the weights are then, bit for bit, those of the base model's file.
        ControlNets stay as they are. Waits for the request that runs.

        Raises:
            ValueError: a weight is out of range, or this pipeline was not loaded from a file.
            CheckpointMismatch: a file is no LoRA for this model; nothing was changed.
        """
        if self._mixer is None:
            raise ValueError("This pipeline was not made by load_pipeline: it cannot take LoRAs.")
        with self._lock:
            self._mixer.set([Lora.parse(lora) for lora in loras])

    def __call__(self, request: Request) -> Result:
        """Make the pictures of ``request``.

        Raises:
            ValueError: this model has no such ControlNet, or a prompt is too long.
            WeightsMissing: the weights of a ControlNet are not on this machine.
            CheckpointMismatch: an embedding that a prompt names cannot be used.
            NumericalError: the latents stopped being finite.
        """
        for update in self.sample(request):
            if isinstance(update, Result):
                return update
        raise SuiteError("Sampling ended without a result: report the request that led here.")

    def sample(self, request: Request) -> Iterator[Progress | Result]:
        """Return a generator of one ``Progress`` a step and last the ``Result``; closing it cancels.

        From the first item until it ends or is closed it holds the model: a thread that stops in the middle
        and starts another request without closing this one waits for ever.

        Raises:
            ValueError: this model has no such ControlNet; raised at once.
            ValueError, WeightsMissing, CheckpointMismatch, NumericalError: as above, from the generator.
        """
        for unit in request.controls:
            self._check_known(unit.control)
        return self._sample(request)

    def _check_known(self, control: str) -> None:
        if control not in self.controls:
            choices = ", ".join(self.controls) or "none: this model has no ControlNets"
            raise ValueError(f"control is {control!r}: {self.title} has {choices}.")

    @torch.inference_mode()  # a `with` around a yield would leave it on in the caller
    def _sample(self, request: Request) -> Iterator[Progress | Result]:
        with self._lock:
            began = time.perf_counter()
            try:
                latents = yield from self._sample_latents(request)
                images = _finish(request, self._decode(latents))
            except torch.OutOfMemoryError:
                raise SuiteError(
                    "The device ran out of memory: make fewer or smaller pictures, or start with --low-vram."
                ) from None
            seconds = time.perf_counter() - began
        yield Result(
            images=images,
            request=request,
            seeds=image_seeds(request.seed, request.num_samples),
            model=self.name,
            seconds=seconds,
            extra=self._extra(),
        )

    def _extra(self) -> dict[str, str]:
        """Say what else bears on the pictures."""
        told = {"device": str(self.device), "dtype": str(self.dtype).removeprefix("torch.")}
        clip_skip, loras = self.config.text.clip_skip, self._mixer.loras if self._mixer is not None else ()
        more = {**self._told, "clip_skip": str(clip_skip or ""), "loras": loras_text(loras)}
        return told | {name: text for name, text in more.items() if text}

    def _sample_latents(self, request: Request) -> Generator[Progress, None, Tensor]:
        """Yield one Progress a step; return the finished latents (B, C, h, w)."""
        steps = request.walked_steps
        units = [unit for unit in request.controls if _acts(unit, steps)]
        nets = self._cache.get([unit.control for unit in units])
        context = self._encode_text(request)
        throttle = Throttle(self._fitted_preview())
        height, width = request.height_width
        factor = self.networks.vae.factor
        shape = (self.config.unet.in_channels, height // factor, width // factor)
        noise = ImageNoise(image_seeds(request.seed, request.num_samples), shape, self.device)
        x_0, unet = self._encode_init(request), self.networks.unet
        with self._placement.changing() as hold:
            denoiser = self._denoiser(request, context, [(nets[unit.control], unit) for unit in units], hold)
            states = self._states(request, denoiser, x_0, noise)
            busy = 0.0
            for i in range(steps):
                resumed = time.perf_counter()
                hold([unet, *_computing(nets, units, i, steps)])
                state = next(states)
                check_finite(state.x_t, f"after step {state.step} of {steps}", self.dtype)
                busy += time.perf_counter() - resumed
                yield Progress(state.step, steps, throttle(state.x_0), busy / state.step)
        return state.x_t

    def _states(
        self, request: Request, denoiser: Denoiser, x_0: Tensor | None, noise: ImageNoise
    ) -> Iterator[StepState]:
        """Walk from noise alone or, with the latents ``x_0`` of a picture, from that under noise."""
        sampler, steps = SAMPLERS[request.sampler], request.walked_steps
        schedule = self._schedule.after(request.steps - steps)
        x_T = start = noise()
        if x_0 is not None and request.denoise < 1.0:
            start = add_noise(x_0, x_T, schedule, first_time(sampler, schedule, steps))
        if x_0 is not None and request.mask is not None:
            share = latent_share(request.mask, self.networks.vae.factor).to(self.device)
            denoiser = Repaint(denoiser, schedule, x_0, x_T, share)
        return sampler(denoiser, start, schedule, steps, request.eta, noise)

    def _encode_init(self, request: Request) -> Tensor | None:
        """Return the latents (1, C, h, w) of the picture to start from, where they are needed."""
        if request.init is None or (request.denoise == 1.0 and request.mask is None):
            return None
        picture = hint_to_tensor(request.init) * 2.0 - 1.0
        with self._placement.in_use(self.networks.vae):
            x_0 = self.networks.vae.encode(picture.to(self.device, self._vae_dtype)).float()
        check_finite(x_0, "after encoding the picture", self._vae_dtype)
        return x_0

    def _encode_text(self, request: Request) -> Tensor:
        """Return the context (1 or 2, 77 * n, d): the prompt and, where it is needed, the negative one."""
        prompts = [request.prompt] if request.cfg_scale == 1.0 else [request.prompt, request.negative_prompt]
        with self._placement.in_use(self.networks.text):
            return encode_prompts(self.networks.text, prompts, self._embeddings).to(self.dtype)

    def _denoiser(
        self,
        request: Request,
        context: Tensor,
        controls: Sequence[tuple[AnyControlNet, ControlUnit]],
        hold: Hold,
    ) -> GuidedDenoiser:
        """Compute what stays the same over the steps of ``request``, with one network at a time."""
        count = request.num_samples
        seen = context[:1] if request.guess_mode else context
        prepared = []
        for net, unit in controls:
            hold([net])
            prepared.append(
                prepare_control(net, unit, self._hint(unit, request), seen, count, self._is_pooled(unit))
            )
        hold([self.networks.unet])
        return GuidedDenoiser(
            unet=self.networks.unet,
            schedule=self._schedule,
            context_kv=text_rows(self.networks.unet, context, count),
            controls=prepared,
            cfg_scale=request.cfg_scale,
            guess_mode=request.guess_mode,
            steps=request.walked_steps,
            guess_depth=self.config.control.guess_depth,
        )

    def _is_pooled(self, unit: ControlUnit) -> bool:
        return unit.control in self.config.pooled_controls

    def _hint(self, unit: ControlUnit, request: Request) -> Tensor:
        """Return the hint (1, 3, H, W) in [0, 1], or -1 where a control that knows masks shall see none."""
        hint = hint_to_tensor(unit.hint)
        if request.mask is not None and unit.control in self.config.masked_controls:
            hint[:, :, torch.from_numpy(request.mask > MASKED)] = -1.0
        return hint

    def _fitted_preview(self) -> LatentPreview:
        """Return the preview of this model, fitted when first asked for."""
        if self._preview is None:
            with self._placement.in_use(self.networks.vae):
                self._preview = LatentPreview(self.networks.vae)
        return self._preview

    def _decode(self, latents: Tensor) -> tuple[NDArray[np.uint8], ...]:
        """Return the pictures of ``latents`` (B, C, h, w), one at a time to bound the memory."""
        vae = self.networks.vae
        images: list[NDArray[np.uint8]] = []
        with self._placement.in_use(vae):
            for x_0 in latents.to(self._vae_dtype).split(1):
                picture = self._decode_one(x_0.contiguous(memory_format=torch.channels_last))
                check_finite(picture, "after decoding", self._vae_dtype)
                images += to_uint8(picture)
        return tuple(images)

    def _decode_one(self, x_0: Tensor) -> Tensor:
        vae = self.networks.vae
        strips = self._strips
        if strips is None:
            strips = self._placement.low_vram or max(x_0.shape[2:]) * vae.factor > STRIPS_ABOVE
        return decode_in_strips(vae, x_0, rest=self._placement.rest_device) if strips else vae.decode(x_0)


def _finish(request: Request, images: tuple[NDArray[np.uint8], ...]) -> tuple[NDArray[np.uint8], ...]:
    """Put back, to the bit, what a mask keeps of the picture."""
    picture, mask = request.init, request.mask
    if picture is None or mask is None:
        return images
    return tuple(composite(image, picture, mask) for image in images)


def _acts(unit: ControlUnit, steps: int) -> bool:
    """Say whether ``unit`` changes anything; if not, its ControlNet is not even loaded."""
    return unit.strength > 0.0 and any(is_active(unit.start, unit.end, i, steps) for i in range(steps))


def _computing(
    nets: Mapping[str, AnyControlNet], units: Sequence[ControlUnit], step_index: int, steps: int
) -> list[AnyControlNet]:
    """Return the ControlNets that compute in a step (from 0), each once."""
    acting = [nets[u.control] for u in units if is_active(u.start, u.end, step_index, steps)]
    return [net for net in dict.fromkeys(acting) if not net.static]
