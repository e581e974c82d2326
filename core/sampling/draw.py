"""From requests of one key to their pictures, each request's errors its own."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.errors import NumericalError, SuiteError
from core.models.variants import AnyControlNet
from core.request import Progress, Request
from core.runtime.control_cache import ControlCache
from core.sampling.coding import PictureCoder
from core.sampling.guidance import not_finite
from core.sampling.prepare import Prepared, Preparer, acting_units
from core.sampling.preview import MAX_SHARE, Throttle
from core.sampling.repaint import composite
from core.sampling.walk import Walker

Images = tuple[NDArray[np.uint8], ...]


class Drawer:
    """Prepares requests, walks them as one batch and decodes their pictures."""

    def __init__(
        self, nets: ControlCache, prepare: Preparer, walk: Walker, coder: PictureCoder, dtype: torch.dtype
    ) -> None:
        """Put the parts together; the networks' numbers are of ``dtype``."""
        self._nets, self._prepare, self._walk, self._coder = nets, prepare, walk, coder
        self._dtype = dtype

    def __call__(
        self, requests: Sequence[Request], wanted: Callable[[int], bool]
    ) -> Generator[tuple[int, Progress | Images | Exception]]:
        """Yield (index of a request, one Progress a step and last the pictures, or an error that ends it).

        ``wanted`` says whether anybody still waits for a request.

        Raises:
            WeightsMissing, torch.OutOfMemoryError: this is of all requests.
        """
        nets = self._nets.get([unit.control for unit in acting_units(requests[0])])
        prepared: dict[int, Prepared] = {}
        for i, request in enumerate(requests):
            try:
                prepared[i] = self._prepare(request)
            except (ValueError, SuiteError) as error:
                yield i, error
        latents = (yield from self._latents(prepared, nets, wanted)) if prepared else {}
        for i, x_0 in latents.items():
            if wanted(i):
                yield i, self._pictures(requests[i], x_0)

    def _latents(
        self,
        batch: Mapping[int, Prepared],
        nets: Mapping[str, AnyControlNet],
        wanted: Callable[[int], bool],
    ) -> Generator[tuple[int, Progress | Exception], None, dict[int, Tensor]]:
        """Return the finished latents (B, C, h, w) of those that stayed finite; stop where none is wanted."""
        preview, total = self._coder.preview(), next(iter(batch.values())).request.walked_steps
        throttles = {i: Throttle(preview, MAX_SHARE / len(batch)) for i in batch}
        done: dict[int, Tensor] = {}
        with closing(self._walk(list(batch.values()), nets)) as steps:
            for s in steps:
                done = dict(zip(batch, s.x_t, strict=True))
                for i, x_0, finite in zip(batch, s.x_0, s.finite, strict=True):
                    if i not in throttles or not wanted(i):
                        continue
                    if finite:
                        yield i, Progress(s.step, total, throttles[i](x_0), s.seconds_per_step)
                    else:
                        del throttles[i]
                        yield i, not_finite(f"after step {s.step} of {total}", self._dtype)
                if not any(map(wanted, throttles)):
                    return {}
        return {i: x_t for i, x_t in done.items() if i in throttles}

    def _pictures(self, request: Request, latents: Tensor) -> Images | NumericalError:
        """Decode, and put back, to the bit, what a mask keeps of the picture."""
        try:
            images = self._coder.decode(latents)
        except NumericalError as error:
            return error
        picture, mask = request.init, request.mask
        if picture is None or mask is None:
            return images
        return tuple(composite(image, picture, mask) for image in images)
