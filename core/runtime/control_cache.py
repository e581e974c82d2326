"""A few ControlNets kept in memory, the least recently used one dropped first."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch

from core.models.variants import AnyControlNet

log = logging.getLogger(__name__)

DEFAULT_BUDGET = 2


class ControlCache:
    """Loads ControlNets when first used and keeps at most ``budget``, or as many as one request needs."""

    def __init__(self, load: Callable[[str], AnyControlNet], budget: int = DEFAULT_BUDGET) -> None:
        """Load with ``load``, which is given a ControlNet's name.

        Raises:
            ValueError: ``budget`` is below 1.
        """
        if budget < 1:
            raise ValueError(f"max_controls is {budget}: give at least 1.")
        self._load = load
        self._budget = budget
        self._nets: OrderedDict[str, AnyControlNet] = OrderedDict()

    def __contains__(self, name: str) -> bool:
        """Say whether ``name`` is in memory."""
        return name in self._nets

    def get(self, names: Sequence[str]) -> dict[str, AnyControlNet]:
        """Return the ControlNets called ``names``; what is too much is dropped before anything is loaded."""
        wanted = list(dict.fromkeys(names))
        missing = [name for name in wanted if name not in self._nets]
        spare = [name for name in self._nets if name not in wanted]
        excess = len(self._nets) + len(missing) - self._budget
        for name in spare[: max(0, excess)]:
            del self._nets[name]
        for name in missing:
            log.info("Loading ControlNet %s.", name)
            # Sampling runs in inference mode; weights made there could not be moved or trained later.
            with torch.inference_mode(False):
                self._nets[name] = self._load(name)
        for name in wanted:
            self._nets.move_to_end(name)
        return {name: self._nets[name] for name in wanted}
