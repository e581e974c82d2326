"""The one object that turns requests into pictures; every page, command line and test goes through it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from core.additions import Lora, loras_text
from core.config import ModelConfig
from core.errors import SuiteError, WeightsMissing
from core.models.variants import AnyControlNet
from core.prompts.embeddings import Embeddings
from core.request import Progress, Request, Result
from core.runtime.control_cache import DEFAULT_BUDGET, ControlCache
from core.runtime.device import vae_dtype
from core.runtime.placement import Placement
from core.sampling.coding import PictureCoder
from core.sampling.draw import Drawer, Images
from core.sampling.graphs import StepGraphs, choose_predict
from core.sampling.noise import image_seeds
from core.sampling.prepare import Preparer
from core.sampling.walk import Walker
from core.weights.checkpoint import BaseNetworks
from core.weights.mixing import LoraMixer

NO_RESULT = "Sampling ended without a result: report the request that led here."
OUT_OF_MEMORY = "The device ran out of memory: make fewer or smaller pictures, or start with --low-vram."

Update = Progress | Result | Exception  # of one request among several
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
        graphs: bool | None = None,
        vae_number: torch.dtype | None = None,
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
            graphs: whether to record steps as CUDA graphs and replay them, with the same result; by default
                on a CUDA device, without ``low_vram``.
            vae_number: the number format of the autoencoder; by default the one that suits that of ``base``.

        Raises:
            ValueError: there is no such folder, or there can be no ``graphs``.
        """
        self.config = config
        self.controls = tuple(config.controls if controls is None else controls)
        weight = next(base.unet.parameters())
        self.device = weight.device if device is None else device
        self.dtype = weight.dtype
        self._placement = Placement(self.device, low_vram=low_vram)
        self.networks = base
        number = vae_dtype(self.dtype, self.device) if vae_number is None else vae_number
        base.vae.to(number)
        for module in (base.unet, base.vae, base.text):
            self._settle(module)
        self._cache = ControlCache(lambda name: self._settle(load_control(name)), max_controls)
        self._locate_control = locate_control
        words = Embeddings(embeddings, width=config.text.width, title=config.title)
        coder = PictureCoder(base.vae, self._placement, self.device, number, strips)
        self._prepare = Preparer(config, base, words, coder, self._placement, self.dtype)
        self._predict = choose_predict(self.device, graphs=graphs, low_vram=low_vram)
        walk = Walker(config, base, self._placement, self.device, self._predict)
        self._draw = Drawer(self._cache, self._prepare, walk, coder, self.dtype)
        self._mixer = mixer
        self._told = {"vae": vae, "transfer_from": transfer_from}
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
        raise SuiteError(NO_RESULT)

    def sample(self, request: Request) -> Iterator[Progress | Result]:
        """Return a generator of one ``Progress`` a step and last the ``Result``; closing it cancels.

        From the first item until it ends or is closed it holds the model: a thread that stops in the middle
        and starts another request without closing this one waits for ever.

        Raises:
            ValueError: this model has no such ControlNet; raised at once.
            ValueError, WeightsMissing, CheckpointMismatch, NumericalError: as above, from the generator.
        """
        self.check(request)
        return self._sample(request)

    def check(self, request: Request) -> None:
        """Raise ``ValueError`` where this model has no ControlNet that ``request`` names."""
        for unit in request.controls:
            self._check_known(unit.control)

    def batch_key(self, request: Request) -> Hashable:
        """Return what is equal for requests that can be drawn as one batch.

        Raises:
            ValueError: this model has no such ControlNet, or a prompt is too long.
            CheckpointMismatch: an embedding that a prompt names cannot be used.
        """
        self.check(request)
        return self._prepare.key(request)

    def _check_known(self, control: str) -> None:
        if control not in self.controls:
            choices = ", ".join(self.controls) or "none: this model has no ControlNets"
            raise ValueError(f"control is {control!r}: {self.title} has {choices}.")

    def _sample(self, request: Request) -> Iterator[Progress | Result]:
        with closing(self._together([request], _always)) as updates:
            try:
                for _, update in updates:
                    if isinstance(update, Exception):
                        raise update
                    yield update
            except torch.OutOfMemoryError:
                raise SuiteError(OUT_OF_MEMORY) from None

    def sample_together(
        self, requests: Sequence[Request], wanted: Callable[[int], bool] | None = None
    ) -> Generator[tuple[int, Update]]:
        """Return a generator of (index of a request, update): ``sample`` for several requests at once.

        Each picture is what it is alone, within the rounding that this class tells of. An error that is of
        one request alone is its last update; the others go on. ``wanted`` says whether anybody still waits
        for a request: of others nothing is told or decoded. Closing the generator cancels all of them.

        Raises:
            ValueError: they differ in ``batch_key``; raised at once.
            WeightsMissing, torch.OutOfMemoryError: from the generator; this is of all of them.
        """
        if len({self.batch_key(request) for request in requests}) != 1:
            raise ValueError("requests must have one batch_key to be drawn together: draw each by itself.")
        return self._together(requests, wanted or _always)

    @torch.inference_mode()  # a `with` around a yield would leave it on in the caller
    def _together(
        self, requests: Sequence[Request], wanted: Callable[[int], bool]
    ) -> Generator[tuple[int, Update]]:
        last: tuple[int, Update] | None = None
        with self._lock:
            began = time.perf_counter()
            try:
                for i, update in self._draw(requests, wanted):
                    if last is not None:
                        yield last
                        last = None
                    if isinstance(update, tuple):
                        last = i, self._result(requests[i], update, time.perf_counter() - began)
                    else:
                        yield i, update
            except torch.OutOfMemoryError:
                if isinstance(self._predict, StepGraphs):
                    self._predict.clear()  # what they hold may be what the next request lacks
                raise
        if last is not None:  # once the model is free
            yield last

    def _result(self, request: Request, images: Images, seconds: float) -> Result:
        return Result(
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


def _always(index: int) -> bool:
    return True
