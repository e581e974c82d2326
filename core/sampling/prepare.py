"""What is computed of a request before its first step: text, starting picture, hints."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from core.config import ModelConfig
from core.images import hint_to_tensor
from core.prompts.embeddings import Embeddings
from core.prompts.encode import count_chunks, encode_prompts
from core.request import ControlUnit, Request
from core.runtime.placement import Placement
from core.sampling.coding import PictureCoder
from core.sampling.guidance import is_active
from core.sampling.noise import image_seeds
from core.sampling.repaint import latent_share
from core.weights.checkpoint import BaseNetworks

MASKED = 127  # above, a pixel of the mask counts as covered
# What each picture of a batch may have for itself, or what ``Preparer.key`` looks at more closely. All other
# fields, those to come too, are the same over a batch.
OWN = {"prompt", "negative_prompt", "num_samples", "cfg_scale", "seed"}
LOOKED_AT = {"controls", "size", "init", "denoise", "mask"}
OWN_OF_UNITS = {"hint", "strength"}


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A request and what its walk needs of it.

    ``context`` (1 or 2, 77 * n, d) is the prompt and, where it is needed, the negative one. ``hints`` (1, 3,
    H, W) belong to ``units``, the controls that act. ``x_0`` (1, C, h, w) are the latents of the picture to
    start from, and ``share`` (1, 1, h, w) how much of them is painted over; None where that plays no part.
    """

    request: Request
    context: Tensor
    units: tuple[ControlUnit, ...]
    hints: tuple[Tensor, ...]
    x_0: Tensor | None = None
    share: Tensor | None = None

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the pictures."""
        return image_seeds(self.request.seed, self.request.num_samples)


class Preparer:
    """Prepares requests for one model, each by itself, with one network at a time on the device."""

    def __init__(
        self,
        config: ModelConfig,
        networks: BaseNetworks,
        embeddings: Embeddings,
        coder: PictureCoder,
        placement: Placement,
        dtype: torch.dtype,
    ) -> None:
        """Encode with ``networks`` and ``coder``; contexts are in ``dtype``."""
        self._config, self._networks, self._embeddings = config, networks, embeddings
        self._coder, self._placement, self._dtype = coder, placement, dtype

    def __call__(self, request: Request) -> Prepared:
        """Prepare ``request``.

        Raises:
            ValueError: a prompt is too long.
            CheckpointMismatch: an embedding that a prompt names cannot be used.
            NumericalError: the latents of its picture are not finite.
        """
        context = self._encode_text(request)
        units = acting_units(request)
        hints = tuple(self._hint(unit, request) for unit in units)
        x_0 = self._encode_init(request)
        share = None
        if x_0 is not None and request.mask is not None:
            share = latent_share(request.mask, self._networks.vae.factor).to(x_0.device)
        return Prepared(request, context, units, hints, x_0, share)

    def key(self, request: Request) -> Hashable:
        """Return what is equal for requests that can be walked as one batch.

        Raises:
            ValueError: a prompt is too long.
            CheckpointMismatch: an embedding that a prompt names cannot be used.
        """
        shared = [getattr(request, f.name) for f in fields(request) if f.name not in OWN | LOOKED_AT]
        units = [
            tuple(getattr(unit, f.name) for f in fields(unit) if f.name not in OWN_OF_UNITS)
            for unit in acting_units(request)
        ]
        return (
            *shared,
            *units,
            request.height_width,
            request.walked_steps,
            request.init is not None and request.denoise < 1.0,
            request.init is not None and request.mask is not None,
            request.cfg_scale == 1.0,
            count_chunks(self._networks.text, _prompts(request), self._embeddings),
        )

    def _encode_text(self, request: Request) -> Tensor:
        prompts = _prompts(request)
        text = self._networks.text
        with self._placement.in_use(text):
            return encode_prompts(text, prompts, self._embeddings).to(self._dtype)

    def _encode_init(self, request: Request) -> Tensor | None:
        if request.init is None or (request.denoise == 1.0 and request.mask is None):
            return None
        return self._coder.encode(request.init)

    def _hint(self, unit: ControlUnit, request: Request) -> Tensor:
        """Return the hint in [0, 1], or -1 where a control that knows masks shall see none."""
        hint = hint_to_tensor(unit.hint)
        if request.mask is not None and unit.control in self._config.masked_controls:
            hint[:, :, torch.from_numpy(request.mask > MASKED)] = -1.0
        return hint


def _prompts(request: Request) -> list[str]:
    return [request.prompt] if request.cfg_scale == 1.0 else [request.prompt, request.negative_prompt]


def acting_units(request: Request) -> tuple[ControlUnit, ...]:
    """Return the controls that change anything; of the others the ControlNets are not even loaded."""
    steps = request.walked_steps
    return tuple(
        unit
        for unit in request.controls
        if unit.strength > 0.0 and any(is_active(unit.start, unit.end, i, steps) for i in range(steps))
    )
