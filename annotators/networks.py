"""The detectors' networks: loaded by name when first used, kept within a budget of memory."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from core.weights.registry import Registry

if TYPE_CHECKING:
    import torch
    from torch import nn

    NetworkT = TypeVar("NetworkT", bound=nn.Module)

log = logging.getLogger(__name__)

BUDGET_BYTES = 1500 * 2**20  # all detectors in float32 take about 1.1 GB


@dataclass(frozen=True, slots=True)
class Weights:
    """Which file a detector uses: ``name`` and ``title`` in the registry, and whether it is a stand-in."""

    name: str
    title: str
    demo: bool


def find_weights(name: str, demo_name: str | None = None) -> Weights:
    """Return which of a detector's weights are here: the published ones, else the bundled stand-in.

    Raises:
        WeightsMissing: neither is; with the file, its size, its licence and the command that gets it.
    """
    registry = Registry.load()
    known = demo_name is not None and demo_name in registry.files
    if demo_name is not None and known and registry.find(demo_name) and registry.find(name) is None:
        return Weights(demo_name, registry[demo_name].title, demo=True)
    registry.locate(name)
    return Weights(name, registry[name].title, demo=False)


def stand_in_words(weights: Weights, published: str) -> str:
    """Say plainly what a stand-in's maps are worth, and how to get the weights called ``published``."""
    real = Registry.load()[published]
    return (
        f"{weights.title}: demo detector, trained on toy scenes; on photographs it is only a guess. "
        f"The real one: {real.title}, {real.size_text}, licence {real.licence_text}: "
        f"python -m core.weights get {published}"
    )


class NetworkCache:
    """Networks by name; those longest unused are dropped beyond the budget. Safe for threads."""

    def __init__(self, budget_bytes: int = BUDGET_BYTES) -> None:
        """Start empty."""
        self.budget_bytes = budget_bytes
        self.device, self.dtype = "auto", "auto"
        self._networks: OrderedDict[tuple[str, torch.dtype], nn.Module] = OrderedDict()
        self._lock = threading.Lock()

    def configure(
        self, *, device: str | None = None, dtype: str | None = None, budget_bytes: int | None = None
    ) -> None:
        """Say where to compute, in which numbers, and within how much memory; None leaves as it is.

        ``device`` and ``dtype`` are as for ``core.load_pipeline``. What is loaded is dropped.

        Raises:
            ValueError: there is no such device or number format; names the choices.
        """
        from core.runtime.device import resolve_device, resolve_dtype

        wanted_device, wanted_dtype = device or self.device, dtype or self.dtype
        resolve_dtype(wanted_dtype, resolve_device(wanted_device))
        with self._lock:
            self.device, self.dtype = wanted_device, wanted_dtype
            self.budget_bytes = self.budget_bytes if budget_bytes is None else budget_bytes
            self._networks.clear()

    def get(
        self,
        name: str,
        build: Callable[[Mapping[str, str]], NetworkT],
        *,
        key_of: Callable[[str], str] | None = None,
        ignored: Callable[[str], bool] | None = None,
        half: bool = True,
    ) -> NetworkT:
        """Return the network whose weights are called ``name`` in the registry; load it when first asked.

        ``build`` is given the file's metadata (empty in published files) and makes the network; it is called
        on the meta device. ``key_of`` turns one of the network's names into the file's; ``ignored`` tells
        which of the file's keys the network does not need. ``half`` allows 16-bit numbers where the device
        is fastest with them; without it the network computes in float32.

        Raises:
            WeightsMissing: the file is not here; says how to get it.
            CheckpointMismatch: the file does not hold this network; names it and the keys.
        """
        import torch

        from core.runtime.device import resolve_device, resolve_dtype
        from core.weights.plain import load_plain

        with self._lock:
            device = resolve_device(self.device)
            dtype = resolve_dtype(self.dtype, device) if half else torch.float32
            found = self._networks.get((name, dtype))
            if found is None:
                registry = Registry.load()
                path = registry.locate(name)
                log.info("Loading %s.", registry[name].title)
                with torch.inference_mode(False):
                    found = load_plain(
                        build, path, name=name, device=device, dtype=dtype, key_of=key_of, ignored=ignored
                    )
                self._networks[name, dtype] = found
            self._networks.move_to_end((name, dtype))
            while len(self._networks) > 1 and self._bytes() > self.budget_bytes:
                self._networks.popitem(last=False)
            return found  # type: ignore[return-value]  # what build made under this name

    def __contains__(self, name: str) -> bool:
        """Say whether the network called ``name`` is in memory."""
        with self._lock:
            return any(name == loaded for loaded, _ in self._networks)

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            self._networks.clear()

    def _bytes(self) -> int:
        return sum(t.nbytes for net in self._networks.values() for t in (*net.parameters(), *net.buffers()))


NETWORKS = NetworkCache()
configure = NETWORKS.configure
