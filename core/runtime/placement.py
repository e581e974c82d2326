"""Which networks are on the device: all of them, or, where memory is short, only those in use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

Move = Callable[[nn.Module, torch.device], object]
Hold = Callable[[Sequence[nn.Module]], None]


def move_module(module: nn.Module, device: torch.device) -> None:
    """Move every weight of ``module``; nothing is copied where it is there already."""
    # Weights made in inference mode could not be moved outside of it, and the other way round.
    with torch.inference_mode(False):
        module.to(device)


class Placement:
    """Brings networks to the device and, with ``low_vram``, back to main memory after use."""

    def __init__(self, device: torch.device, *, low_vram: bool = False, move: Move = move_module) -> None:
        """Compute on ``device``; ``move`` moves one network."""
        self.device = device
        self.low_vram = low_vram
        self.rest_device = torch.device("cpu") if low_vram else device
        self._move = move

    @contextmanager
    def in_use(self, *modules: nn.Module) -> Iterator[None]:
        """Have ``modules`` on the device inside the block; with ``low_vram`` only there."""
        with self.changing() as hold:
            hold(modules)
            yield

    @contextmanager
    def changing(self) -> Iterator[Hold]:
        """Give a function that has the modules it is called with on the device, until it is called again.

        With ``low_vram`` the others of these go back at once, and all of them at the end of the block.
        """
        here: list[nn.Module] = []

        def hold(modules: Sequence[nn.Module]) -> None:
            if not self.low_vram:
                return
            gone = [module for module in here if module not in modules]
            for module in gone:
                self._move(module, self.rest_device)
                here.remove(module)
            if gone and self.device.type == "cuda":
                torch.cuda.empty_cache()
            for module in modules:
                if module not in here:
                    here.append(module)  # first: a move that fails half way is undone too
                    self._move(module, self.device)

        try:
            yield hold
        finally:
            hold(())
